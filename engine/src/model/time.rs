//! Times, in milliseconds and as text.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};

/// Milliseconds since the Unix epoch, the resolution of every time in the HTTP contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The node's wall clock. Stored deadlines are computed in Postgres, not from this.
    pub fn now() -> Timestamp {
        let Timestamp(ms) = SystemTime::now().into();
        Timestamp(ms + crate::failpoint::clock_ms())
    }

    /// Whole seconds since the epoch, as `webhook-timestamp` wants them.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp(ms): Timestamp) -> SystemTime {
        let from_epoch = Duration::from_millis(ms.unsigned_abs());
        if ms < 0 { UNIX_EPOCH - from_epoch } else { UNIX_EPOCH + from_epoch }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        Timestamp(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => ms(after),
            Err(before) => -ms(before.duration()),
        })
    }
}

/// ISO-8601 in UTC with milliseconds, such as `2026-01-31T08:00:00.123Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
        let (second, ms) = (ms / 1000 % 60, ms % 1000);
        // Written twice for each event, and digits by themselves take a tenth of what formatting takes.
        if !(0..10_000).contains(&year) {
            return write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z");
        }
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let parts = [(year, 4), (month, 7), (day, 10), (hour, 13), (minute, 16), (second, 19), (ms, 23)];
        for (mut number, mut end) in parts {
            while number > 0 {
                end -= 1;
                text[end] += (number % 10) as u8;
                number /= 10;
            }
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Of the form that is written, with or without milliseconds; nothing else.
impl std::str::FromStr for Timestamp {
    type Err = ();

    fn from_str(text: &str) -> Result<Timestamp, ()> {
        let bytes = text.as_bytes();
        let (fraction, ms) = match bytes.len() {
            20 => (bytes.get(19..).ok_or(())?, 0),
            24 if bytes[19] == b'.' => (&bytes[23..], number(&bytes[20..23])?),
            _ => return Err(()),
        };
        let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if fraction != b"Z" || separators.iter().any(|(at, letter)| bytes[*at] != *letter) {
            return Err(());
        }
        let part = |from: usize, to: usize| number(&bytes[from..to]);
        let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
        let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
        let days = days_from_civil(year, month, day);
        // A day that is none comes back as another.
        if hour > 23 || minute > 59 || second > 59 || civil_from_days(days) != (year, month, day) {
            return Err(());
        }
        Ok(Timestamp((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms))
    }
}

/// A number of decimal digits and nothing else.
fn number(digits: &[u8]) -> Result<i64, ()> {
    digits.iter().try_fold(
        0,
        |n, d| {
            if d.is_ascii_digit() { Ok(n * 10 + i64::from(d - b'0')) } else { Err(()) }
        },
    )
}

/// The inverse of [`civil_from_days`], from the same source.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Days since 1970-01-01 to (year, month, day): the algorithm of Howard Hinnant's "chrono-compatible
/// low-level date algorithms", which counts in eras of 400 years that begin on the first of March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_read_as_iso_8601_with_milliseconds() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_704_067_200_001, "2024-01-01T00:00:00.001Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ];
        for (ms, text) in cases {
            assert_eq!(Timestamp(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(ms)));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same_time(ms in -62_167_219_200_000i64..253_402_300_800_000) {
            prop_assert_eq!(Timestamp(ms).to_string().parse(), Ok(Timestamp(ms)));
        }
    }

    /// Beyond four digits of a year, which nothing we store has.
    #[test]
    fn far_years_are_written_too() {
        assert_eq!(Timestamp(253_402_300_800_000).to_string(), "10000-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(-62_167_219_200_001).to_string(), "-001-12-31T23:59:59.999Z");
    }

    #[test]
    fn only_times_are_read_as_times() {
        assert_eq!("2024-01-01T00:00:00Z".parse(), Ok(Timestamp(1_704_067_200_000)));
        for text in [
            "",
            "2024-01-01",
            "2024-02-30T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-10T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00+1",
            "2024-01-01T00:00:0éZ",
            "-024-01-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(()), "{text}");
        }
    }
}
