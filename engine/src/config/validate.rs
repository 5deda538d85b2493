//! Relations between settings, checked before any socket opens.

use std::time::Duration;

use super::{Config, Roles, certificate::Pair, keys, load::Error, proxy::Proxy, redis, roots};

impl Config {
    /// # Errors
    /// Names every problem at once, each with what to do about it.
    pub fn validate(&self, roles: Roles) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut need = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        need(
            !self.database_url.is_empty(),
            "DATABASE_URL is not set: `eventpulse dev` brings its own Postgres, `serve` needs one",
        );
        need(
            !self.redis_url.is_empty(),
            "REDIS_URL is not set: `eventpulse dev` brings its own Redis, `serve` needs one",
        );
        if let Err(problem) = redis::Place::parse(self.redis_url.reveal())
            && !self.redis_url.is_empty()
        {
            need(false, &format!("REDIS_URL {problem}"));
        }
        need(
            !roles.api()
                || self.http.listen.is_loopback()
                || self.registration.open
                || !self.registration.token.is_empty(),
            "http.listen is not loopback, so anyone who reaches it could create accounts: set REGISTRATION_TOKEN, or OPEN_REGISTRATION=true if that is meant",
        );
        need(
            roles != Roles::Both || self.http.port == 0 || self.http.port != self.http.dispatcher_port,
            "http.port and http.dispatcher_port are the same",
        );
        need(
            (1..=1024).contains(&self.ingest.batch_events_max),
            "ingest.batch_events_max must be within 1..1024, one block of ids",
        );
        need(
            self.ingest.batch_bytes_max <= 256 << 20,
            "ingest.batch_bytes_max must be at most 256 MiB, what one statement carries safely",
        );
        need(
            self.ingest.queue_events_max >= self.ingest.batch_events_max,
            "ingest.queue_events_max must hold one batch",
        );
        need((1..=64).contains(&self.ingest.commits_max), "ingest.commits_max must be within 1..64");
        need(self.ingest.standing_events_max >= 2, "ingest.standing_events_max must be at least 2");
        need(
            self.ingest.queue_bytes_max > self.http.body_bytes_max,
            "ingest.queue_bytes_max must hold one request of http.body_bytes_max",
        );
        need(
            (1..=64 << 20).contains(&self.http.body_bytes_max),
            "http.body_bytes_max must be within 1 byte and 64 MiB",
        );
        need(
            (1..=100_000).contains(&self.ingest.bulk_events_max),
            "ingest.bulk_events_max must be within 1..100000, what one transaction carries safely",
        );
        need(
            (1..=64 << 20).contains(&self.ingest.bulk_bytes_max),
            "ingest.bulk_bytes_max must be within 1 byte and 64 MiB",
        );
        need(
            self.http.held_bytes_max / 2 >= self.ingest.bulk_bytes_max.max(self.http.body_bytes_max),
            "http.held_bytes_max must hold two requests of ingest.bulk_bytes_max and of http.body_bytes_max",
        );
        need(self.http.connections_max > 0, "http.connections_max must be at least 1");
        need(self.lane.in_flight_max > 0, "lane.in_flight_max must be at least 1");
        need(
            !self.lane.probe_first.is_zero() && self.lane.probe_first <= self.lane.probe_max,
            "lane.probe_first must be above zero and at most lane.probe_max",
        );
        need(
            self.lane.queue_max * 2 <= self.dispatch.held_max,
            "lane.queue_max must be at most half of dispatch.held_max, or one slow webhook stops all others",
        );
        need(
            self.dispatch.workers <= super::WORKERS_MAX,
            "dispatch.workers must be at most 16: start more processes, each is a dispatcher of its own",
        );
        need(self.dispatch.retries_held_max > 0, "dispatch.retries_held_max must be at least 1");
        need(
            self.dispatch.held_bytes_max >= 2 * self.http.body_bytes_max,
            "dispatch.held_bytes_max must hold two events of http.body_bytes_max",
        );
        need(
            self.dispatch.dead_after >= 3 * self.dispatch.beat,
            "dispatch.dead_after must be at least three times dispatch.beat, or healthy consumers are robbed",
        );
        need(self.dispatch.beat >= Duration::from_millis(10), "dispatch.beat must be at least 10ms");
        need(
            self.recover.sweep_after > self.dispatch.hold,
            "recover.sweep_after must be longer than dispatch.hold, or work in hand looks lost",
        );
        need(
            self.dispatch.margin >= Duration::from_secs(1),
            "dispatch.margin must be at least 1s, or what is being recorded is sent again",
        );
        need(self.recover.dead_after_beats >= 3, "recover.dead_after_beats must be at least 3");
        let transform = &self.transform;
        need(transform.threads <= 16, "transform.threads must be at most 16; 0 is one for every core");
        need(
            (Duration::from_millis(1)..=Duration::from_secs(10)).contains(&transform.deadline),
            "transform.deadline must be within 1ms..10s",
        );
        need(
            (64 << 10..=4 << 30).contains(&transform.memory_bytes_max)
                && (transform.memory_bytes_max..=4 << 30).contains(&transform.large_memory_bytes_max),
            "transform.memory_bytes_max must be at least 64 KiB, transform.large_memory_bytes_max no less than that, and both at most 4 GiB",
        );
        need(
            transform.module_bytes_max <= 256 << 20
                && transform.large_from_bytes <= transform.module_bytes_max,
            "transform.large_from_bytes must be at most transform.module_bytes_max, and that at most 256 MiB",
        );
        need(
            (1..=64 << 20).contains(&transform.output_bytes_max),
            "transform.output_bytes_max must be within 1 byte and 64 MiB",
        );
        need(
            transform.log_line_bytes_max <= transform.log_bytes_max && transform.log_bytes_max <= 1 << 20,
            "transform.log_line_bytes_max must be at most transform.log_bytes_max, and that at most 1 MiB",
        );
        need((1..=1 << 20).contains(&transform.queue_max), "transform.queue_max must be within 1..1048576");
        need(
            (1..=100).contains(&transform.cpu_share_percent),
            "transform.cpu_share_percent must be within 1..100",
        );
        need(
            transform.compile_timeout >= Duration::from_secs(1),
            "transform.compile_timeout must be at least 1s",
        );
        need(
            transform.compile_bytes_max >= 256 << 20,
            "transform.compile_bytes_max must be at least 256 MiB: a compiler needs as much for any module",
        );
        need(transform.versions_max > 1, "transform.versions_max must be at least 2");
        need(
            self.deliver.timeout >= self.deliver.connect_timeout,
            "deliver.timeout must not be shorter than deliver.connect_timeout",
        );
        need(!self.deliver.timeout.is_zero(), "deliver.timeout must not be zero");
        need(!self.deliver.age_max.is_zero(), "deliver.age_max must not be zero");
        let gateway = &self.gateway;
        need(
            gateway.tls_cert.is_empty() == gateway.tls_key.is_empty(),
            "gateway.tls_cert and gateway.tls_key must be set together",
        );
        need(
            gateway.tls_reload_every >= Duration::from_millis(10) && !gateway.tls_handshake_timeout.is_zero(),
            "gateway.tls_reload_every must be at least 10ms, and gateway.tls_handshake_timeout above zero",
        );
        if !gateway.tls_cert.is_empty()
            && !gateway.tls_key.is_empty()
            && let Err(problem) = Pair::read(&gateway.tls_cert, &gateway.tls_key)
                .and_then(|pair| pair.chain().and_then(|_| pair.key()))
        {
            need(false, &format!("gateway.tls_cert or tls_key: {problem}"));
        }
        if let Err(problem) = keys::parse(&self.secrets_key) {
            need(false, &format!("EVENTPULSE_SECRETS_KEY {problem}"));
        }
        if let Err(problem) = Proxy::parse(&self.deliver.proxy) {
            need(false, &format!("deliver.proxy {problem}"));
        }
        if let Err(problem) = roots::read(&self.deliver.extra_roots) {
            need(false, &format!("deliver.extra_roots {problem}"));
        }
        for problem in self.trace.problems() {
            need(false, &problem);
        }
        if let Err(problem) = roots::read(&self.stream.roots) {
            need(false, &format!("stream.roots {problem}"));
        }
        need(
            self.stream.roots.is_empty() || self.redis_url.reveal().starts_with("rediss://"),
            "stream.roots is set, but redis_url is not rediss://, so nothing would be encrypted",
        );
        need(self.retry.jitter_percent <= 100, "retry.jitter_percent must be within 0..100");
        need(
            self.dlq.retention <= Duration::from_secs(3650 * 86_400),
            "dlq.retention must be at most ten years; 0 stands for ever",
        );
        need(
            self.retention.events.is_zero()
                || (Duration::from_secs(86_400)..=Duration::from_secs(3650 * 86_400))
                    .contains(&self.retention.events),
            "retention.events must be at least a day, or work in hand would lose its events, and at most ten years; 0 stands for ever",
        );
        need(
            self.webhooks.disable_after <= Duration::from_secs(3650 * 86_400),
            "webhooks.disable_after must be at most ten years; 0 stands for never",
        );
        need(
            self.metrics.worst_webhooks <= 50,
            "metrics.worst_webhooks must be at most 50: each has series of its own in Prometheus",
        );
        need(
            self.shutdown.delay <= Duration::from_secs(300),
            "shutdown.delay must be at most 5m: supervisors kill what takes so long",
        );
        need(self.retry.due_max > 0, "retry.due_max must be at least 1");
        if problems.is_empty() { Ok(()) } else { Err(Error(problems)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::Secret;

    fn valid() -> Config {
        Config {
            database_url: Secret::new("postgres://h/d"),
            redis_url: Secret::new("redis://h"),
            ..Config::default()
        }
    }

    #[test]
    fn the_defaults_are_valid_once_the_urls_are_set() {
        valid().validate(Roles::Both).unwrap();
        let text = Config::default().validate(Roles::Both).unwrap_err().to_string();
        assert!(text.contains("DATABASE_URL") && text.contains("REDIS_URL"), "{text}");
    }

    #[test]
    fn limits_of_transforms_fit_together() {
        valid().validate(Roles::Both).unwrap();
        let changes: [fn(&mut super::super::Transform); 4] = [
            |t| t.deadline = Duration::ZERO,
            |t| t.large_from_bytes = t.module_bytes_max + 1,
            |t| t.large_memory_bytes_max = t.memory_bytes_max - 1,
            |t| t.queue_max = 0,
        ];
        for change in changes {
            let mut config = valid();
            change(&mut config.transform);
            let text = config.validate(Roles::Both).unwrap_err().to_string();
            assert!(text.contains("transform."), "{text}");
        }
    }

    #[test]
    fn metrics_name_few_webhooks() {
        let mut config = valid();
        config.metrics.worst_webhooks = 51;
        let text = config.validate(Roles::Both).unwrap_err().to_string();
        assert!(text.contains("metrics.worst_webhooks"), "{text}");
    }

    #[test]
    fn a_proxy_is_checked_at_start() {
        let mut config = valid();
        config.deliver.proxy = Secret::new("http://user:hidden@proxy");
        let text = config.validate(Roles::Both).unwrap_err().to_string();
        assert!(text.contains("deliver.proxy") && !text.contains("hidden"), "{text}");
        config.deliver.proxy = Secret::new("http://user:hidden@proxy:3128");
        config.validate(Roles::Both).unwrap();
    }

    #[test]
    fn a_file_of_authorities_is_read_at_start() {
        let mut config = valid();
        config.deliver.extra_roots = "/nowhere/at/all.pem".to_owned();
        let text = config.validate(Roles::Both).unwrap_err().to_string();
        assert!(text.contains("deliver.extra_roots") && text.contains("/nowhere/at/all.pem"), "{text}");
    }

    #[test]
    fn an_open_address_needs_a_word_on_registration() {
        let mut config = valid();
        config.http.listen = [0, 0, 0, 0].into();
        assert!(config.validate(Roles::Api).unwrap_err().to_string().contains("REGISTRATION_TOKEN"));
        config.validate(Roles::Dispatcher).unwrap();
        config.registration.open = true;
        config.validate(Roles::Api).unwrap();
        config.registration = Default::default();
        config.registration.token = Secret::new("t");
        config.validate(Roles::Api).unwrap();
    }
}
