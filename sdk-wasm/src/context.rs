//! The facts that come with an event.

use std::{fmt::Display, str::FromStr};

use crate::Error;

/// Facts that were fixed when the event was accepted, so that every attempt of a delivery sees the same ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    event_id: String,
    event_type: String,
    webhook_id: String,
    created_at_ms: u64,
    config: Vec<(String, String)>,
}

impl Context {
    /// Makes a context for a test. In a module the host makes it.
    pub fn new(event_type: &str) -> Context {
        Context {
            event_id: "1".to_owned(),
            event_type: event_type.to_owned(),
            webhook_id: "1".to_owned(),
            ..Context::default()
        }
    }

    /// Sets one of the webhook's settings, for a test.
    #[must_use]
    pub fn with_config(mut self, name: &str, value: &str) -> Context {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the event's id, for a test.
    #[must_use]
    pub fn with_event_id(mut self, id: &str) -> Context {
        id.clone_into(&mut self.event_id);
        self
    }

    /// Sets the time at which the event was accepted, for a test.
    #[must_use]
    pub fn with_created_at_ms(mut self, ms: u64) -> Context {
        self.created_at_ms = ms;
        self
    }

    /// Returns the event's id, as the API shows it.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// Returns the event's type, such as `order.paid`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the id of the webhook that this delivery is for.
    pub fn webhook_id(&self) -> &str {
        &self.webhook_id
    }

    /// Returns when the event was accepted, in milliseconds since the Unix epoch. There is no time of now.
    pub fn created_at_ms(&self) -> u64 {
        self.created_at_ms
    }

    /// Returns one of the webhook's settings for this version of the transform.
    pub fn config(&self, name: &str) -> Option<&str> {
        self.configs().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Returns all of the webhook's settings, in the order in which they were given.
    pub fn configs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.config.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns one of the webhook's settings as a number, a flag, or whatever else can be read from text.
    ///
    /// # Errors
    /// When it is set and cannot be read as that.
    pub fn config_as<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.config(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|error| format!("config `{name}`, which is `{text}`: {error}").into())
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) fn from_host(
        event_id: String,
        event_type: String,
        webhook_id: String,
        created_at_ms: u64,
        config: Vec<(String, String)>,
    ) -> Context {
        Context { event_id, event_type, webhook_id, created_at_ms, config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_by_name_and_as_what_they_are_meant_to_be() {
        let context =
            Context::new("a").with_config("min", "1.5").with_config("on", "true").with_config("bad", "x");
        assert_eq!(context.config("min"), Some("1.5"));
        assert_eq!(context.config("none"), None);
        assert_eq!(context.config_as::<f64>("min").unwrap(), Some(1.5));
        assert_eq!(context.config_as::<bool>("on").unwrap(), Some(true));
        assert_eq!(context.config_as::<u32>("none").unwrap(), None);
        let error = context.config_as::<u32>("bad").unwrap_err().to_string();
        assert_eq!(error, "config `bad`, which is `x`: invalid digit found in string");
        assert_eq!(context.configs().count(), 3);
    }
}
