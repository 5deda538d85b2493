//! Even ticks finer than the runtime's timers, which are a millisecond coarse: a request that is sent late because the generator was
//! asleep would count against the server.

use std::{io, time::Duration};

/// Ticks until it is dropped.
#[cfg(target_os = "linux")]
pub(crate) struct Ticks(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>);

#[cfg(target_os = "linux")]
impl Ticks {
    /// The first one comes after `length`.
    ///
    /// # Errors
    /// When the system gives no timer.
    #[allow(unsafe_code)]
    pub(crate) fn every(length: Duration) -> io::Result<Ticks> {
        use rustix::time::{
            Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
            timerfd_settime,
        };
        let length =
            Timespec { tv_sec: length.as_secs().cast_signed(), tv_nsec: length.subsec_nanos().into() };
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let even = Itimerspec { it_interval: length, it_value: length };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &even)?;
        // SAFETY: the descriptor is the timer's own, and stays open and the same for as long as that is owned. tokio has deprecated
        // the constructors that do not ask for this. Without the timer half a millisecond of each latency was the generator's.
        let timer =
            unsafe { tokio::io::unix::AsyncFd::register_with_interest(timer, tokio::io::Interest::READABLE) };
        Ok(Ticks(timer?))
    }

    /// Waits for the next tick; those that were missed are one.
    ///
    /// # Errors
    /// When the timer cannot be read.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        let mut count = [0; 8];
        let read = |timer: &std::os::fd::OwnedFd| Ok(rustix::io::read(timer, &mut count)?);
        self.0.async_io(tokio::io::Interest::READABLE, read).await.map(drop)
    }
}

/// As fine as the runtime's.
#[cfg(not(target_os = "linux"))]
pub(crate) struct Ticks(tokio::time::Interval);

#[cfg(not(target_os = "linux"))]
impl Ticks {
    pub(crate) fn every(length: Duration) -> io::Result<Ticks> {
        Ok(Ticks(tokio::time::interval(length)))
    }

    pub(crate) async fn next(&mut self) -> io::Result<()> {
        self.0.tick().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn each_comes_no_earlier_than_it_is_due() {
        let (length, start) = (Duration::from_micros(200), Instant::now());
        let mut ticks = Ticks::every(length).unwrap();
        for _ in 0..10 {
            ticks.next().await.unwrap();
        }
        assert!(start.elapsed() >= length * 9);
    }
}
