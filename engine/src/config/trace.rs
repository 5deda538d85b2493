//! Settings of traces.

use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};
use serde::{Deserialize, Serialize};

use super::value::Secret;

/// The most that one process may export: what the exporter and its queue are made for.
const EVENTS_PER_SECOND_MAX: usize = 10_000;

section!(
    /// Spans of what happens to events, for a collector of OpenTelemetry.
    Trace {
        /// Base URL of a collector that takes OTLP over HTTP, such as `http://collector:4318`; `/v1/traces` is added to it. Empty
        /// for none: then a producer's `traceparent` is only passed on.
        endpoint: String = String::new(),
        /// Headers of each export, `name=value` separated by commas, such as a token that the collector asks for.
        headers: Secret = Secret::default(),
        /// PEM file of certificate authorities that the collector's certificate may be of, beside the public ones.
        roots: String = String::new(),
        /// What the collector knows this deployment as.
        service: String = "eventpulse".to_owned(),
        /// Which part of the events that come without a `traceparent` get a trace, 0.0 to 1.0. Of those that have one the producer
        /// says whether they are sampled.
        sample: f64 = 0.01,
        /// Events a second for which a gateway has spans exported, whoever asked for it. Beyond it events go unrecorded, so that
        /// no producer can flood the collector.
        events_per_second_max: usize = 100,
    }
);

impl Trace {
    /// The collector's base URL; none for no collector.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn url(&self) -> Result<Option<Uri>, String> {
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let uri: Option<Uri> = self.endpoint.parse().ok();
        let fits = |uri: &Uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && uri.query().is_none()
        };
        uri.filter(fits).map(Some).ok_or_else(|| {
            "trace.endpoint must be http:// or https:// with a host, and a port and a path if need be"
                .to_owned()
        })
    }

    /// What each export has beside its own headers.
    ///
    /// # Errors
    /// Says that one is no header, and not what it is.
    pub fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let pairs = self.headers.reveal().split(',').map(str::trim).filter(|pair| !pair.is_empty());
        let read = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            let mut value = HeaderValue::try_from(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.trim()).ok()?, value))
        };
        pairs
            .map(|pair| {
                read(pair).ok_or_else(|| {
                    "trace.headers must be such as authorization=Bearer abc,x-team=a".to_owned()
                })
            })
            .collect()
    }

    /// Everything that is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.url().err());
        problems.extend(self.headers().err());
        if let Err(problem) = super::roots::read(&self.roots) {
            problems.push(format!("trace.roots {problem}"));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            problems.push("trace.sample must be within 0.0..1.0".to_owned());
        }
        if self.events_per_second_max > EVENTS_PER_SECOND_MAX {
            problems.push(format!("trace.events_per_second_max must be at most {EVENTS_PER_SECOND_MAX}"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Trace)) -> Vec<String> {
        let mut trace = Trace::default();
        change(&mut trace);
        trace.problems()
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        assert_eq!(with(|_| {}), Vec::<String>::new());
        for endpoint in ["http://collector:4318", "https://[::1]:4318/otlp/", "http://10.0.0.1"] {
            assert_eq!(with(|t| t.endpoint = endpoint.to_owned()), Vec::<String>::new(), "{endpoint}");
        }
        for endpoint in [
            "collector:4318",
            "grpc://collector",
            "http://",
            "http://a:b@c",
            "http://c?x=1",
            "/x",
            "http://a b",
        ] {
            let problems = with(|t| t.endpoint = endpoint.to_owned());
            assert!(
                problems.len() == 1 && problems[0].contains("trace.endpoint"),
                "{endpoint}: {problems:?}"
            );
        }
        for sample in [-0.1, 1.1, f64::NAN] {
            assert_eq!(with(|t| t.sample = sample).len(), 1, "{sample}");
        }
        assert_eq!(with(|t| t.events_per_second_max = 10_001).len(), 1);
        assert!(with(|t| t.roots = "/nowhere/at/all.pem".to_owned())[0].contains("trace.roots"));
        let problems = with(|t| t.headers = Secret::new("authorization=Bearer x,nonsense"));
        assert!(problems.len() == 1 && !problems[0].contains("nonsense"), "{problems:?}");
    }

    #[test]
    fn headers_are_read_in_their_order() {
        let trace =
            Trace { headers: Secret::new(" Authorization = Bearer a=b , x-team=one,"), ..Trace::default() };
        let headers = trace.headers().unwrap();
        let text: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(text, [("authorization", "Bearer a=b"), ("x-team", "one")]);
        assert!(headers.iter().all(|(_, value)| value.is_sensitive()));
    }
}
