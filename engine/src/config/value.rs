//! The types of settings that TOML and the environment do not have.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that prints as `***`. Empty stands for unset.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself. Never log it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { "***" })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Durations such as `250ms`, `5s`, `1h 30m`.
pub(crate) mod span {
    use super::{Deserialize, Deserializer, Duration, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map_err(|error| {
            de::Error::custom(format_args!("{text:?} is no duration such as 250ms or 5s: {error}"))
        })
    }
}

/// A value that may be missing: empty text then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maybe<T>(pub Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Maybe<T> {
        Maybe(None)
    }
}

impl<T: fmt::Display> Serialize for Maybe<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Maybe<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Maybe<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read =
            |text: &str| text.parse().map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")));
        Ok(Maybe((!text.is_empty()).then(|| read(&text)).transpose()?))
    }
}

/// The waits between attempts, at most 100 of at most 30 days each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

impl Schedule {
    /// 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h: about 28 hours, as users of webhooks know it.
    pub fn standard() -> Schedule {
        Schedule([5, 300, 1800, 7200, 18_000, 36_000, 36_000].map(Duration::from_secs).into())
    }

    pub fn waits(&self) -> &[Duration] {
        &self.0
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Schedule, String> {
        let waits = text
            .split(',')
            .map(str::trim)
            .filter(|wait| !wait.is_empty())
            .map(|wait| match humantime::parse_duration(wait) {
                Ok(wait) if wait <= Duration::from_secs(30 * 86_400) => Ok(wait),
                Ok(_) => Err(format!("{wait:?} is longer than 30 days")),
                Err(error) => Err(format!("{wait:?} is no duration such as 200ms or 5s: {error}")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        match waits.len() {
            0..=100 => Ok(Schedule(waits)),
            n => Err(format!("{n} waits are more than 100")),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, wait) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}", humantime::format_duration(*wait))?;
        }
        Ok(())
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Schedule, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_reads_what_it_prints() {
        let schedule: Schedule = "200ms, 1s,5m".parse().unwrap();
        assert_eq!(schedule.waits().len(), 3);
        assert_eq!(schedule.to_string().parse(), Ok(schedule));
        assert_eq!("".parse(), Ok(Schedule(vec![])));
        assert!("1s,soon".parse::<Schedule>().unwrap_err().contains("soon"));
        assert!("31days".parse::<Schedule>().is_err());
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new("hidden")), "***");
    }
}
