//! How many bytes large requests may hold in memory together, from before their bodies are read until their answers
//! are written: refusing at once when there is no room, and fair between accounts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Error;
use crate::{metrics::Metrics, model::AccountId};

/// The bytes there are, shared by all connections.
#[derive(Clone)]
pub struct Room {
    inner: Arc<Inner>,
}

struct Inner {
    bytes_max: usize,
    held: Mutex<Held>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Held {
    total: usize,
    /// Accounts that hold some; so there are at most as many as requests.
    accounts: HashMap<AccountId, usize>,
}

/// Some of the bytes, given back when it is dropped.
pub struct Permit {
    inner: Arc<Inner>,
    account: AccountId,
    bytes: usize,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({} bytes)", self.bytes)
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, account: AccountId, bytes: usize) -> Result<(), Error> {
        let mut held = self.held();
        let own = held.accounts.get(&account).copied().unwrap_or_default();
        // One that is alone leaves a quarter, because a slow reader's bytes cannot be taken back for a newcomer.
        let others = held.total > own;
        let share = if others { self.bytes_max / 2 } else { self.bytes_max / 4 * 3 };
        let error = if held.total + bytes > self.bytes_max {
            Error::Full
        } else if own + bytes > share {
            Error::Share
        } else {
            held.total += bytes;
            *held.accounts.entry(account).or_default() += bytes;
            self.metrics.http.held.set(held.total as f64);
            return Ok(());
        };
        match error {
            Error::Share => self.metrics.http.held_share.increment(1),
            _ => self.metrics.http.held_full.increment(1),
        }
        Err(error)
    }
}

impl Room {
    pub fn new(bytes_max: usize, metrics: Arc<Metrics>) -> Room {
        Room { inner: Arc::new(Inner { bytes_max, held: Mutex::default(), metrics }) }
    }

    /// Takes bytes for a request of an account.
    ///
    /// # Errors
    /// At once [`Error::Full`] when there are none, and [`Error::Share`] when the account has its part.
    pub fn take(&self, account: AccountId, bytes: usize) -> Result<Permit, Error> {
        self.inner.take(account, bytes)?;
        Ok(Permit { inner: self.inner.clone(), account, bytes })
    }
}

impl Permit {
    /// Takes more, for a body that says its size only by ending. It keeps what it has when there is no more.
    ///
    /// # Errors
    /// As [`Room::take`].
    pub fn grow(&mut self, more: usize) -> Result<(), Error> {
        self.inner.take(self.account, more)?;
        self.bytes += more;
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.inner.held();
        held.total -= self.bytes;
        if let Some(own) = held.accounts.get_mut(&self.account) {
            *own -= self.bytes;
            if *own == 0 {
                held.accounts.remove(&self.account);
            }
        }
        self.inner.metrics.http.held.set(held.total as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: usize) -> Room {
        Room::new(bytes, Arc::new(Metrics::new()))
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let room = room(100);
        let mut one = room.take(AccountId(1), 40).unwrap();
        assert!(matches!(room.take(AccountId(1), 36), Err(Error::Share)), "alone, three quarters");
        one.grow(35).unwrap();
        assert!(one.grow(1).is_err() && one.bytes() == 75);
        let two = room.take(AccountId(2), 25).unwrap();
        assert!(matches!(room.take(AccountId(3), 1), Err(Error::Full)));
        drop(one);
        assert!(matches!(room.take(AccountId(2), 51), Err(Error::Share)), "alone again, it may have 75");
        drop(room.take(AccountId(2), 50).unwrap());
        drop(two);
        assert_eq!(room.inner.held().total, 0);
        assert!(room.inner.held().accounts.is_empty());
    }

    #[test]
    fn beside_others_an_account_may_hold_half() {
        let room = room(100);
        let _two = room.take(AccountId(2), 1).unwrap();
        let mut one = room.take(AccountId(1), 50).unwrap();
        assert!(matches!(one.grow(1), Err(Error::Share)));
        assert!(matches!(room.take(AccountId(1), 1), Err(Error::Share)));
        assert!(room.take(AccountId(3), 49).is_ok());
    }
}
