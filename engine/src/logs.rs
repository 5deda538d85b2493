//! How this process writes its log, and warnings that may come with each event but must not fill it.

use std::{
    io::IsTerminal as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter,
    filter::{ParseError, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::config::{Log, value::LogFormat};

/// Writes the log to stderr from now on. Of a second call only the check of the filter is left: there is one log.
///
/// # Errors
/// When `filter` cannot be read.
pub fn begin(settings: &Log, filter: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only when there is a subscriber already, and then logs go there.
    let _ = match settings.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            lines.finish().with(filter_fn(is_for_all)).try_init()
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            lines.finish().with(filter_fn(is_for_all)).try_init()
        }
    };
    Ok(())
}

/// Whatever the filter says: below `info` the Postgres client writes every statement's parameters, which are payloads, headers,
/// URLs and replies.
fn is_for_all(line: &Metadata<'_>) -> bool {
    *line.level() <= Level::INFO || !line.target().starts_with("tokio_postgres")
}

/// Milliseconds between two of the same warning.
const PAUSE_MS: u64 = 1000;

/// When one warning may be said again. One for each place that warns.
pub struct Seldom {
    /// Milliseconds since the first warning of the process.
    again: AtomicU64,
    suppressed: AtomicU64,
}

impl Seldom {
    pub const fn new() -> Seldom {
        Seldom { again: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether it may be said now, with how many were not said since the last one. Of several threads at the same moment one
    /// is told so.
    pub fn turn(&self) -> Option<u64> {
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        let now = BEGIN.get_or_init(Instant::now).elapsed().as_millis();
        self.turn_at(u64::try_from(now).unwrap_or(u64::MAX))
    }

    fn turn_at(&self, now_ms: u64) -> Option<u64> {
        let again = self.again.load(Relaxed);
        let next = now_ms.saturating_add(PAUSE_MS);
        if now_ms < again || self.again.compare_exchange(again, next, Relaxed, Relaxed).is_err() {
            self.suppressed.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Relaxed))
    }
}

impl Default for Seldom {
    fn default() -> Seldom {
        Seldom::new()
    }
}

/// A warning, at most once a second from this place. The field `suppressed` says how many others there were.
macro_rules! warn_seldom {
    ($($what:tt)*) => {{
        static SAID: $crate::logs::Seldom = $crate::logs::Seldom::new();
        if let Some(suppressed) = SAID.turn() {
            tracing::warn!(suppressed, $($what)*);
        }
    }};
}

/// The same for errors.
macro_rules! error_seldom {
    ($($what:tt)*) => {{
        static SAID: $crate::logs::Seldom = $crate::logs::Seldom::new();
        if let Some(suppressed) = SAID.turn() {
            tracing::error!(suppressed, $($what)*);
        }
    }};
}

pub(crate) use {error_seldom, warn_seldom};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_said_once_a_second_with_how_many_were_not() {
        let seldom = Seldom::new();
        assert_eq!(seldom.turn_at(0), Some(0));
        for ms in [0, 1, 999] {
            assert_eq!(seldom.turn_at(ms), None);
        }
        assert_eq!(seldom.turn_at(1000), Some(3));
        assert_eq!(seldom.turn_at(1999), None);
        assert_eq!(seldom.turn_at(60_000), Some(1));
        assert_eq!(seldom.turn_at(61_000), Some(0));
    }

    #[test]
    fn of_many_threads_one_speaks() {
        let seldom = Seldom::new();
        let spoke = std::thread::scope(|scope| {
            let ask = || (0..100).filter(|_| seldom.turn_at(5).is_some()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(spoke, 1);
        assert_eq!(seldom.turn_at(5000), Some(799));
    }

    #[test]
    fn both_forms_are_read_from_settings() {
        for (format, text) in [(LogFormat::Text, "format = \"text\""), (LogFormat::Json, "format = \"json\"")]
        {
            let read: Log = toml::from_str(text).unwrap();
            assert_eq!(read.format, format);
        }
        assert!(toml::from_str::<Log>("format = \"xml\"").is_err());
        assert!(begin(&Log::default(), "a=b=c").is_err());
    }
}
