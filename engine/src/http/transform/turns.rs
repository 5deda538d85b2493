//! How much of what costs processor time is done at once, for all accounts and for one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::super::ApiError;
use crate::model::AccountId;

/// Places for calls of one kind.
pub struct Turns {
    inner: Arc<Inner>,
    /// Names the calls in a refusal.
    code: &'static str,
}

struct Inner {
    at_once_max: usize,
    account_max: usize,
    running: Mutex<HashMap<AccountId, usize>>,
}

/// A place, given back when it is dropped, so also when the caller goes away.
pub(super) struct Turn {
    inner: Arc<Inner>,
    account: AccountId,
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, HashMap<AccountId, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = self.inner.running();
        if let Some(own) = running.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                running.remove(&self.account);
            }
        }
    }
}

impl Turns {
    fn new(code: &'static str, at_once_max: usize, account_max: usize) -> Turns {
        Turns { inner: Arc::new(Inner { at_once_max, account_max, running: Mutex::default() }), code }
    }

    /// For uploads, until their module is compiled.
    pub fn uploads() -> Turns {
        Turns::new("too_many_uploads", 8, 2)
    }

    /// For dry runs.
    pub fn dry_runs() -> Turns {
        Turns::new("too_many_dry_runs", 4, 1)
    }

    /// Takes a place for a call of an account.
    ///
    /// # Errors
    /// At once, when there is none.
    pub(super) fn turn(&self, account: AccountId) -> Result<Turn, ApiError> {
        let mut running = self.inner.running();
        if running.get(&account).copied().unwrap_or_default() >= self.inner.account_max {
            return Err(ApiError::too_many_of_yours(self.code));
        }
        if running.values().sum::<usize>() >= self.inner.at_once_max {
            return Err(ApiError::too_many_here(self.code));
        }
        *running.entry(account).or_default() += 1;
        Ok(Turn { inner: self.inner.clone(), account })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(turn: Result<Turn, ApiError>) -> u16 {
        turn.map_or_else(|error| error.into_response().status().as_u16(), |_| 200)
    }

    #[test]
    fn an_account_has_some_of_the_places() {
        let turns = Turns::new("x", 3, 2);
        let turn = |account| turns.turn(AccountId(account));
        let mut own: Vec<_> = (0..2).map(|_| turn(1).unwrap()).collect();
        assert_eq!((status(turn(1)), status(turn(2))), (429, 200));
        let other = turn(2).unwrap();
        assert_eq!(status(turn(3)), 503);
        own.pop();
        assert_eq!(status(turn(3)), 200, "a call that ended gives its place back");
        drop((own, other));
        assert!(turns.inner.running().is_empty());
    }
}
