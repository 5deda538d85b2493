//! The bounded queue between those who want a call and the threads that make it.
//!
//! It is crossbeam's channel with another way to wait. The channel's own looks several times before it sleeps and gives its turn
//! away in between, by `sched_yield`. Where every core is busy, Linux then lets it wait until all others have had theirs, and nobody
//! wakes it when something comes meanwhile: it is not asleep. A thread that sleeps at once is run soon after it is woken.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crossbeam_channel::{RecvTimeoutError, TryRecvError, TrySendError};

/// A queue with `max` places.
pub(super) fn bounded<T>(max: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(max);
    let bell = Arc::new(Bell::default());
    (Sender { items: Some(sender), bell: bell.clone() }, Receiver { items: receiver, bell })
}

/// What threads sleep by.
#[derive(Default)]
struct Bell {
    sleeping: Mutex<usize>,
    rung: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.sleeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where items go in. When it is dropped, receivers get what is left and then hear that there is no more.
pub(super) struct Sender<T> {
    /// None only while it is dropped.
    items: Option<crossbeam_channel::Sender<T>>,
    bell: Arc<Bell>,
}

impl<T> Sender<T> {
    /// Never waits.
    pub(super) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match &self.items {
            Some(items) => items.try_send(item)?,
            None => return Err(TrySendError::Disconnected(item)),
        }
        // A receiver that found nothing either sleeps by now, or has not looked yet for the last time: it does so behind this lock.
        let sleeping = *self.bell.lock() > 0;
        if sleeping {
            self.bell.rung.notify_one();
        }
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.items = None;
        let _no_one_falls_asleep = self.bell.lock();
        self.bell.rung.notify_all();
    }
}

/// Where threads take items out.
pub(super) struct Receiver<T> {
    items: crossbeam_channel::Receiver<T>,
    bell: Arc<Bell>,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        Receiver { items: self.items.clone(), bell: self.bell.clone() }
    }
}

impl<T> Receiver<T> {
    /// The next item. Waits for one, with `patience` no longer than that at a time when nothing comes.
    pub(super) fn recv(&self, patience: Option<Duration>) -> Result<T, RecvTimeoutError> {
        if let Ok(item) = self.items.try_recv() {
            return Ok(item);
        }
        let mut sleeping = self.bell.lock();
        let mut patient = true;
        loop {
            match self.items.try_recv() {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if patient => {}
                Err(TryRecvError::Empty) => return Err(RecvTimeoutError::Timeout),
            }
            *sleeping += 1;
            (sleeping, patient) = self.sleep(sleeping, patience);
            *sleeping -= 1;
        }
    }

    /// Until the bell rings, or the time is up, which it then says.
    fn sleep<'a>(
        &self,
        sleeping: MutexGuard<'a, usize>,
        patience: Option<Duration>,
    ) -> (MutexGuard<'a, usize>, bool) {
        let rung = &self.bell.rung;
        let Some(patience) = patience else {
            return (rung.wait(sleeping).unwrap_or_else(PoisonError::into_inner), true);
        };
        let (sleeping, waited) =
            rung.wait_timeout(sleeping, patience).unwrap_or_else(PoisonError::into_inner);
        (sleeping, !waited.timed_out())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What one thread takes out until there is no more.
    fn drain(receiver: &Receiver<usize>) -> usize {
        let mut taken = 0;
        while receiver.recv(None).is_ok() {
            taken += 1;
        }
        taken
    }

    #[test]
    fn every_item_is_taken_once_though_threads_fall_asleep_between_them() {
        let (sender, receiver) = bounded(4);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let receiver = receiver.clone();
                thread::spawn(move || drain(&receiver))
            })
            .collect();
        let mut sent = 0;
        while sent < 100_000 {
            match sender.try_send(sent) {
                Ok(()) => sent += 1,
                Err(TrySendError::Full(_)) => thread::yield_now(),
                Err(TrySendError::Disconnected(_)) => panic!("all threads are gone"),
            }
            // So that they find it empty at times.
            if sent.is_multiple_of(1000) {
                while !receiver.is_empty() {
                    thread::yield_now();
                }
            }
        }
        drop(sender);
        let taken: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(taken, sent);
    }

    #[test]
    fn what_is_left_is_taken_before_the_end_is_told() {
        let (sender, receiver) = bounded(2);
        assert_eq!(receiver.recv(Some(Duration::from_millis(1))), Err(RecvTimeoutError::Timeout));
        sender.try_send(1).unwrap();
        sender.try_send(2).unwrap();
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        drop(sender);
        assert_eq!((receiver.recv(None), receiver.recv(None)), (Ok(1), Ok(2)));
        assert_eq!(receiver.recv(None), Err(RecvTimeoutError::Disconnected));
    }
}
