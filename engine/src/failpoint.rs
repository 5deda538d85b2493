//! Places where a test makes this process fail: at the seams between two steps, where a crash has its own recovery.
//!
//! They are there in builds with debug assertions only, and do nothing unless `FAILPOINTS` says so: in a release a point is an empty
//! function. The variable names points and what they do, separated by `;`:
//!
//! - `reply=abort:20` ends the process at the twentieth pass, as SIGKILL would.
//! - `leased=stop:3` stops it at the third pass (SIGSTOP), until somebody sends SIGCONT.
//! - `event=abort@poison` ends it whenever the point is passed with this word.
//! - `clock=3600` sets its wall clock an hour ahead (a negative number of seconds sets it back).

#[cfg(debug_assertions)]
pub use armed::{clock_ms, hit, hit_with};

/// Passes a point.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_point: &'static str) {}

/// Passes a point with what it is about.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit_with(_point: &'static str, _word: &str) {}

/// How far the wall clock is set wrong, in milliseconds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn clock_ms() -> i64 {
    0
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    #[derive(Debug, PartialEq, Eq)]
    enum When {
        /// So many passes from now.
        Pass(u64),
        /// At each pass with this word.
        Word(String),
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Does {
        Abort(When),
        Stop(When),
    }

    #[derive(Default)]
    struct Points {
        points: Vec<(String, Does, AtomicU64)>,
        clock_ms: i64,
    }

    fn points() -> &'static Points {
        static POINTS: OnceLock<Points> = OnceLock::new();
        POINTS.get_or_init(|| parse(&std::env::var("FAILPOINTS").unwrap_or_default()))
    }

    /// What cannot be read is left out: a test then sees that nothing fails.
    fn parse(text: &str) -> Points {
        let mut points = Points::default();
        for (name, does) in text.split(';').filter_map(|point| point.trim().split_once('=')) {
            if name == "clock" {
                points.clock_ms = does.parse::<i64>().unwrap_or(0).saturating_mul(1000);
                continue;
            }
            let at = does.find([':', '@']).unwrap_or(does.len());
            let (what, when) = does.split_at(at);
            let when = match when.split_at(when.len().min(1)) {
                ("@", word) => When::Word(word.to_owned()),
                (_, pass) => When::Pass(pass.parse().unwrap_or(1)),
            };
            let does = match what {
                "abort" => Does::Abort(when),
                "stop" => Does::Stop(when),
                _ => continue,
            };
            points.points.push((name.to_owned(), does, AtomicU64::new(0)));
        }
        points
    }

    /// Passes a point.
    pub fn hit(point: &'static str) {
        pass(point, None);
    }

    /// Passes a point with what it is about.
    pub fn hit_with(point: &'static str, word: &str) {
        pass(point, Some(word));
    }

    fn pass(point: &'static str, word: Option<&str>) {
        for (_, does, passes) in points().points.iter().filter(|(name, ..)| name == point) {
            let n = passes.fetch_add(1, Relaxed) + 1;
            let (Does::Abort(when) | Does::Stop(when)) = does;
            let now = match when {
                When::Pass(pass) => n == *pass,
                When::Word(meant) => word == Some(meant),
            };
            if now {
                tracing::warn!(point, pass = n, "failing on purpose");
                fail(does);
            }
        }
    }

    fn fail(does: &Does) {
        use rustix::process::{Signal, getpid, kill_process};
        let signal = match does {
            // Not `abort`: that would leave a core file wherever the system is set up for one.
            Does::Abort(_) => Signal::KILL,
            Does::Stop(_) => Signal::STOP,
        };
        let _ = kill_process(getpid(), signal);
    }

    /// How far the wall clock is set wrong, in milliseconds.
    pub fn clock_ms() -> i64 {
        points().clock_ms
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn points_are_read() {
            let points = parse("reply=abort:20; leased=stop;event=abort@poison;clock=-60;junk;x=y:1");
            let read: Vec<(&str, &Does)> =
                points.points.iter().map(|(name, does, _)| (name.as_str(), does)).collect();
            assert_eq!(
                read,
                [
                    ("reply", &Does::Abort(When::Pass(20))),
                    ("leased", &Does::Stop(When::Pass(1))),
                    ("event", &Does::Abort(When::Word("poison".to_owned()))),
                ]
            );
            assert_eq!(points.clock_ms, -60_000);
        }
    }
}
