//! Waiting for a state, with a bound and the last status in the failure.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

const PAUSE: Duration = Duration::from_millis(20);

/// Calls `probe` every 20 milliseconds until it gives a value. Its `Err` says what the state is instead.
///
/// # Panics
/// When `within` has passed, with `what` was waited for and the last status.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    let mut status = "the first probe did not return".to_owned();
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(now)) => status = now,
            Err(_) => {
                panic!("{what}: not within {within:?}, a probe did not return, before it: {status}")
            }
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}, last status: {status}");
        sleep(PAUSE).await;
    }
}

/// Binds a port that may have been listened on until just now, trying for two seconds. A child that another
/// thread forks at that moment has a copy of the listening socket until it executes its program.
///
/// Apart from [`eventually`], as a future that borrows an async closure cannot be sent to a thread.
pub(crate) async fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn gives_the_value_when_it_is_there() {
        let mut calls = 0;
        let value = eventually("three calls", Duration::from_secs(5), async || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err(format!("{calls} calls")) }
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test(flavor = "current_thread")]
    #[should_panic(expected = "the moon: not within 50ms, last status: still dark")]
    async fn fails_with_the_last_status() {
        eventually::<()>("the moon", Duration::from_millis(50), async || Err("still dark".to_owned())).await;
    }

    #[tokio::test(flavor = "current_thread")]
    #[should_panic(expected = "a probe did not return")]
    async fn a_probe_that_hangs_is_bounded_too() {
        eventually::<()>("a reply", Duration::from_millis(50), async || std::future::pending().await).await;
    }
}
