//! The bounded queue between those who want a call and the threads that make it.
//!
//! It is crossbeam's channel with another way to wait. The channel's own looks several times before it sleeps and gives its turn
//! away in between, by `sched_yield`. Where every core is busy, Linux then lets it wait until all others have had theirs, and nobody
//! wakes it when something comes meanwhile: it is not asleep. A thread that sleeps at once is run soon after it is woken.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst, fence},
    },
    time::{Duration, Instant},
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
    /// Threads that sleep, are about to, or were woken and have not run yet. Changes behind the lock.
    sleeping: AtomicUsize,
    /// How many of them were woken.
    woken: Mutex<usize>,
    rung: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes one thread, if one sleeps that nobody has woken. While all are busy nothing is locked.
    fn ring(&self) {
        // Either this sees a thread that is about to sleep, or the thread sees what was sent before.
        fence(SeqCst);
        if self.sleeping.load(SeqCst) == 0 {
            return;
        }
        let mut woken = self.lock();
        if self.sleeping.load(SeqCst) > *woken {
            *woken += 1;
            self.rung.notify_one();
        }
    }

    /// Until it rings, or `left` is over.
    fn wait<'a>(&self, woken: MutexGuard<'a, usize>, left: Option<Duration>) -> MutexGuard<'a, usize> {
        let mut woken = match left {
            None => self.rung.wait(woken).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.rung.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner).0,
        };
        // Too few only cost a wake that finds nothing.
        *woken = woken.saturating_sub(1);
        woken
    }
}

/// Where items go in. When it is dropped, receivers get what is left and then hear that there is no more.
pub(super) struct Sender<T> {
    /// None only while it is dropped.
    items: Option<crossbeam_channel::Sender<T>>,
    bell: Arc<Bell>,
}

impl<T> Sender<T> {
    /// Does not wait for a place.
    pub(super) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match &self.items {
            Some(items) => items.try_send(item)?,
            None => return Err(TrySendError::Disconnected(item)),
        }
        self.bell.ring();
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
    /// The next item. Waits for one, with `patience` no longer than that.
    pub(super) fn recv(&self, patience: Option<Duration>) -> Result<T, RecvTimeoutError> {
        if let Ok(item) = self.items.try_recv() {
            return Ok(item);
        }
        let until = patience.map(|patience| Instant::now() + patience);
        let mut woken = self.bell.lock();
        self.bell.sleeping.fetch_add(1, SeqCst);
        let outcome = loop {
            fence(SeqCst);
            match self.items.try_recv() {
                Ok(item) => break Ok(item),
                Err(TryRecvError::Disconnected) => break Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break Err(RecvTimeoutError::Timeout);
            }
            woken = self.bell.wait(woken, left);
        };
        self.bell.sleeping.fetch_sub(1, SeqCst);
        outcome
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread, thread::JoinHandle};

    use super::*;

    /// What a thread takes out until there is no more.
    fn take_all(receiver: &Receiver<usize>) -> JoinHandle<Vec<usize>> {
        let receiver = receiver.clone();
        thread::spawn(move || std::iter::from_fn(|| receiver.recv(None).ok()).collect())
    }

    fn until(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(60), "a thread sleeps beside what it could take");
            thread::yield_now();
        }
    }

    #[test]
    fn every_item_is_taken_once_though_threads_fall_asleep_between_them() {
        [1, 3].into_iter().for_each(all_taken_by);
    }

    fn all_taken_by(threads: usize) {
        let (sender, receiver) = bounded(4);
        let threads: Vec<_> = (0..threads).map(|_| take_all(&receiver)).collect();
        let mut sent = 0;
        for round in 0..20_000 {
            // One alone, whose wake nothing makes up for, or several at once.
            for _ in 0..=(round % 4) {
                sender.try_send(sent).unwrap();
                sent += 1;
            }
            until(|| receiver.is_empty());
        }
        drop(sender);
        until(|| threads.iter().all(JoinHandle::is_finished));
        let taken: Vec<usize> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!((taken.len(), taken.into_iter().collect::<HashSet<_>>().len()), (sent, sent));
    }

    #[test]
    fn one_that_waits_for_a_while_gets_what_comes_meanwhile() {
        let (sender, receiver) = bounded(1);
        let waiting = thread::spawn({
            let receiver = receiver.clone();
            move || receiver.recv(Some(Duration::from_secs(600)))
        });
        until(|| receiver.bell.sleeping.load(SeqCst) == 1);
        sender.try_send(7).unwrap();
        // At the end of the wait it would look once more.
        until(|| waiting.is_finished());
        assert_eq!(waiting.join().unwrap(), Ok(7));
    }

    #[test]
    fn wakes_that_bring_nothing_do_not_make_the_wait_longer() {
        let (sender, receiver) = bounded::<usize>(1);
        let waiting = thread::spawn({
            let receiver = receiver.clone();
            move || receiver.recv(Some(Duration::from_millis(50)))
        });
        // More often than the time that it would wait anew.
        until(|| {
            sender.bell.rung.notify_all();
            waiting.is_finished()
        });
        assert_eq!(waiting.join().unwrap(), Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn what_is_left_is_taken_before_the_end_is_told() {
        let (sender, receiver) = bounded(2);
        sender.try_send(1).unwrap();
        sender.try_send(2).unwrap();
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        drop(sender);
        assert_eq!((receiver.recv(None), receiver.recv(None)), (Ok(1), Ok(2)));
        assert_eq!(receiver.recv(None), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn the_end_wakes_all_who_sleep() {
        let (sender, receiver) = bounded(2);
        let threads: Vec<_> = (0..3).map(|_| take_all(&receiver)).collect();
        until(|| receiver.bell.sleeping.load(SeqCst) == 3);
        drop(sender);
        until(|| threads.iter().all(JoinHandle::is_finished));
        assert!(threads.into_iter().all(|thread| thread.join().unwrap().is_empty()));
    }
}
