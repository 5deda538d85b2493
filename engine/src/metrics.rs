//! Every metric: its name, kind, help and label values. Handles are made once, at start, and held in one
//! struct a stage; nothing looks a metric up by name while events pass.
//!
//! The recorder belongs to one engine, not to the process, so that two engines in one test do not mix.

mod process;
pub mod worst;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use self::worst::Worst;

/// Latency buckets in seconds: from a loopback commit to a time-out.
const SECONDS: [f64; 16] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// The same from an event's commit to its outcome: from a millisecond to what retries take, at least of those within an hour.
const SECONDS_LONG: [f64; 20] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0, 1800.0, 3600.0,
];

/// Sizes of batches, up to one block of ids and beyond.
const SIZES: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

/// Header of `/metrics` that says whose they are: a process shows the same on each of its ports.
pub const PROCESS_HEADER: &str = "eventpulse-process";

/// Turns the fields below into the structs, their construction and the catalogue's help texts.
macro_rules! catalogue {
    ($($stage:ident $stage_doc:literal {
        $($field:ident : $kind:ident $name:literal $([$($label:literal = $value:literal),+])? $help:literal;)*
    })*) => {
        $(
            #[doc = $stage_doc]
            pub struct $stage { $(#[doc = $help] pub $field: $kind,)* }

            impl $stage {
                fn new() -> $stage {
                    $stage { $($field: catalogue!(@make $kind $name $([$($label = $value),+])?),)* }
                }
            }
        )*

        fn describe() {
            $($(catalogue!(@describe $kind $name $help);)*)*
        }

        /// The name of every metric, for the test that renders them all.
        #[cfg(test)]
        const NAMES: &[&str] = &[$($($name,)*)*];
    };
    (@make Counter $name:literal $([$($label:literal = $value:literal),+])?) => { metrics::counter!($name $(, $($label => $value),+)?) };
    (@make Gauge $name:literal $([$($label:literal = $value:literal),+])?) => { metrics::gauge!($name $(, $($label => $value),+)?) };
    (@make Histogram $name:literal $([$($label:literal = $value:literal),+])?) => { metrics::histogram!($name $(, $($label => $value),+)?) };
    (@describe Counter $name:literal $help:literal) => { metrics::describe_counter!($name, $help) };
    (@describe Gauge $name:literal $help:literal) => { metrics::describe_gauge!($name, $help) };
    (@describe Histogram $name:literal $help:literal) => { metrics::describe_histogram!($name, $help) };
}

catalogue! {
    Http "The gateway's server." {
        connections: Gauge "eventpulse_http_connections" "Open connections to the gateway.";
        tls_done: Counter "eventpulse_gateway_tls_handshakes_total" ["outcome" = "done"] "TLS handshakes of the gateway, by outcome.";
        tls_failed: Counter "eventpulse_gateway_tls_handshakes_total" ["outcome" = "failed"] "TLS handshakes of the gateway, by outcome.";
        tls_late: Counter "eventpulse_gateway_tls_handshakes_total" ["outcome" = "timed_out"] "TLS handshakes of the gateway, by outcome.";
        tls_full: Counter "eventpulse_gateway_tls_handshakes_total" ["outcome" = "full"] "TLS handshakes of the gateway, by outcome.";
        certificate_expires: Gauge "eventpulse_gateway_certificate_expires_seconds" "Time until the gateway's certificate is over, below zero after it; NaN without TLS.";
        certificate_loaded: Counter "eventpulse_gateway_certificate_changes_total" ["outcome" = "used"] "Changes of the certificate's files that were seen, by what became of them.";
        certificate_refused: Counter "eventpulse_gateway_certificate_changes_total" ["outcome" = "refused"] "Changes of the certificate's files that were seen, by what became of them.";
        ok: Counter "eventpulse_http_responses_total" ["class" = "2xx"] "Responses of the gateway by class of status.";
        refused: Counter "eventpulse_http_responses_total" ["class" = "4xx"] "Responses of the gateway by class of status.";
        failed: Counter "eventpulse_http_responses_total" ["class" = "5xx"] "Responses of the gateway by class of status.";
        held: Gauge "eventpulse_http_held_bytes" "Bytes that large requests and their unread answers hold.";
        held_full: Counter "eventpulse_http_held_refused_total" ["reason" = "full"] "Large requests refused because enough is held, by reason.";
        held_share: Counter "eventpulse_http_held_refused_total" ["reason" = "share"] "Large requests refused because enough is held, by reason.";
    }
    Ingest "From request to commit." {
        accepted: Counter "eventpulse_ingest_events_total" "Events committed and answered with 201.";
        queue_full: Counter "eventpulse_ingest_refused_total" ["reason" = "queue_full"] "Events refused before a commit, by reason.";
        share_full: Counter "eventpulse_ingest_refused_total" ["reason" = "share_full"] "Events refused before a commit, by reason.";
        unavailable: Counter "eventpulse_ingest_refused_total" ["reason" = "unavailable"] "Events refused before a commit, by reason.";
        rejected: Counter "eventpulse_ingest_refused_total" ["reason" = "rejected"] "Events refused before a commit, by reason.";
        queued: Gauge "eventpulse_ingest_queue_events" "Events waiting for a group commit.";
        commits: Gauge "eventpulse_ingest_commits_in_flight" "Group commits in flight when the last one started.";
        batch_events: Histogram "eventpulse_ingest_batch_events" "Events of one group commit.";
        commit_seconds: Histogram "eventpulse_ingest_commit_seconds" "Time of one group commit in Postgres.";
        unknown: Counter "eventpulse_ingest_unknown_outcomes_total" "Commits whose outcome had to be looked up.";
        splits: Counter "eventpulse_ingest_batch_splits_total" "Batches split because Postgres refused a row.";
        small_parcels: Counter "eventpulse_ingest_parcels_total" ["way" = "small"] "Requests committed whole: of few events under a key, or all others.";
        bulk_parcels: Counter "eventpulse_ingest_parcels_total" ["way" = "bulk"] "Requests committed whole: of few events under a key, or all others.";
        parcel_seconds: Histogram "eventpulse_ingest_parcel_commit_seconds" "Time of one transaction of requests committed whole.";
        replayed: Counter "eventpulse_ingest_replayed_total" "Requests given the first answer to their idempotency key again.";
        key_conflicts: Counter "eventpulse_ingest_idempotency_conflicts_total" "Requests refused because their idempotency key has other events.";
        key_hits: Counter "eventpulse_ingest_key_lookups_total" ["from" = "memory"] "API key look-ups by where they were answered.";
        key_misses: Counter "eventpulse_ingest_key_lookups_total" ["from" = "postgres"] "API key look-ups by where they were answered.";
    }
    Stream "Between commit and dispatch." {
        sent: Counter "eventpulse_stream_entries_total" "Stream entries added, one for each batch.";
        send_seconds: Histogram "eventpulse_stream_send_seconds" "Time of one XADD pipeline.";
        send_failures: Counter "eventpulse_stream_send_failures_total" "XADD pipelines that failed or got no reply.";
        unsent: Gauge "eventpulse_stream_unsent_batches" "Committed batches that wait in memory for Redis.";
        spilled: Counter "eventpulse_stream_spilled_total" "Batches left to Postgres because too many waited in memory.";
        length: Gauge "eventpulse_stream_length_entries" "Entries in the stream; NaN while Redis cannot be asked, as with the next four.";
        pending: Gauge "eventpulse_stream_pending_entries" "Entries that a dispatcher read and none has acked.";
        lag: Gauge "eventpulse_stream_lag_entries" "Entries that no dispatcher has read.";
        memory_used: Gauge "eventpulse_redis_memory_used_bytes" "Memory that Redis uses.";
        memory_max: Gauge "eventpulse_redis_memory_max_bytes" "Memory that Redis may use; 0 for no bound.";
    }
    Store "The pools of connections to Postgres." {
        used: Gauge "eventpulse_store_pool_connections" ["state" = "used"] "Pooled connections to Postgres, by state.";
        idle: Gauge "eventpulse_store_pool_connections" ["state" = "idle"] "Pooled connections to Postgres, by state.";
        waiting: Gauge "eventpulse_store_pool_waiting" "Tasks that wait for a pooled connection to Postgres.";
    }
    Dispatch "From entry to lane." {
        entries: Counter "eventpulse_dispatch_entries_total" "Stream entries read.";
        from_ring: Counter "eventpulse_dispatch_batches_total" ["from" = "ring"] "Batches by where their events were read.";
        from_postgres: Counter "eventpulse_dispatch_batches_total" ["from" = "postgres"] "Batches by where their events were read.";
        deliveries: Counter "eventpulse_dispatch_deliveries_total" "Deliveries that came by entries, each owed to a webhook; those from the schedule do not count again.";
        unmatched: Counter "eventpulse_dispatch_unmatched_total" "Events that no webhook was owed.";
        orphans: Counter "eventpulse_dispatch_orphans_total" "References to events that do not exist.";
        poisoned: Counter "eventpulse_dispatch_poisoned_total" "Deliveries ended as dead letters because processes died with their event in hand.";
        checked: Counter "eventpulse_dispatch_checked_total" "Entries whose deliveries were compared with Postgres first.";
        claimed: Counter "eventpulse_dispatch_claimed_total" "Entries claimed from dead consumers.";
        resumed: Counter "eventpulse_dispatch_resumed_total" "Own entries that were pending but not held.";
        fenced: Counter "eventpulse_dispatch_fenced_total" "Deliveries dropped unsent because this consumer's beat was too old.";
        held: Gauge "eventpulse_dispatch_held" "Deliveries held, from read to record.";
        peers: Gauge "eventpulse_dispatch_peers" "Dispatchers alive, this one included: each has its part of a webhook's limits.";
        held_slow: Gauge "eventpulse_dispatch_held_slow" "Of these, deliveries held in the slow pool.";
        held_full: Counter "eventpulse_dispatch_held_full_total" "Times reading waited because as much as allowed was held.";
    }
    Lane "Per-webhook queues." {
        open: Gauge "eventpulse_lane_open" "Lanes with work or recently so.";
        queued: Gauge "eventpulse_lane_queued" "Deliveries waiting in lanes.";
        deferred: Counter "eventpulse_lane_deferred_total" "Deliveries that wait for their lane beside their open stream entry.";
        deferred_read: Counter "eventpulse_lane_deferred_read_total" "Of those, whose payload was read from Postgres again.";
        waiting: Gauge "eventpulse_lane_deferred" "Deliveries waiting so now.";
        parked_full: Counter "eventpulse_lane_parked_total" ["reason" = "parked"] "Deliveries moved from memory to the schedule, by reason.";
        parked_held: Counter "eventpulse_lane_parked_total" ["reason" = "held"] "Deliveries moved from memory to the schedule, by reason.";
        shelved_breaker: Counter "eventpulse_lane_shelved_total" ["reason" = "breaker"] "Deliveries moved to the schedule until their lane pulls them, by reason.";
        shelved_backlog: Counter "eventpulse_lane_shelved_total" ["reason" = "backlog"] "Deliveries moved to the schedule until their lane pulls them, by reason.";
        shelved_paused: Counter "eventpulse_lane_shelved_total" ["reason" = "paused"] "Deliveries moved to the schedule until their lane pulls them, by reason.";
        backlog_limited: Counter "eventpulse_lane_backlog_limited_total" "Deliveries dead-lettered because more waited for their webhook than lane.backlog_max.";
        pulled: Counter "eventpulse_lane_pulled_total" "Shelved deliveries that lanes pulled back.";
        slow: Gauge "eventpulse_lane_slow" "Lanes that draw from the slow pool.";
        rate_waits: Counter "eventpulse_lane_rate_waits_total" "Requests that waited for their webhook's rate limit.";
        opened: Counter "eventpulse_lane_breaker_changes_total" ["to" = "open"] "Circuit breakers that changed.";
        closed: Counter "eventpulse_lane_breaker_changes_total" ["to" = "closed"] "Circuit breakers that changed.";
        breakers_open: Gauge "eventpulse_lane_breakers_open" "Lanes whose circuit breaker is open.";
        probes: Counter "eventpulse_lane_probes_total" "Deliveries sent although the breaker was open, one at a time.";
    }
    Transform "Webhooks' own modules." {
        unchanged: Counter "eventpulse_transform_calls_total" ["outcome" = "unchanged"] "Calls of modules by outcome.";
        payload: Counter "eventpulse_transform_calls_total" ["outcome" = "payload"] "Calls of modules by outcome.";
        body: Counter "eventpulse_transform_calls_total" ["outcome" = "body"] "Calls of modules by outcome.";
        dropped: Counter "eventpulse_transform_calls_total" ["outcome" = "drop"] "Calls of modules by outcome.";
        trap: Counter "eventpulse_transform_failures_total" ["kind" = "trap"] "Calls of modules that failed, by kind.";
        deadline: Counter "eventpulse_transform_failures_total" ["kind" = "deadline"] "Calls of modules that failed, by kind.";
        memory: Counter "eventpulse_transform_failures_total" ["kind" = "memory"] "Calls of modules that failed, by kind.";
        error: Counter "eventpulse_transform_failures_total" ["kind" = "error"] "Calls of modules that failed, by kind.";
        too_large: Counter "eventpulse_transform_failures_total" ["kind" = "too_large"] "Calls of modules that failed, by kind.";
        bad_output: Counter "eventpulse_transform_failures_total" ["kind" = "bad_output"] "Calls of modules that failed, by kind.";
        seconds: Histogram "eventpulse_transform_seconds" "CPU time of one call of a module.";
        waiting: Gauge "eventpulse_transform_waiting" "Calls that wait for a thread.";
        queue_full: Counter "eventpulse_transform_queue_full_total" "Deliveries that waited because as many calls as allowed waited for a thread.";
        log_cut: Counter "eventpulse_transform_log_cut_total" "Calls whose log was cut.";
        compiled: Counter "eventpulse_transform_compiles_total" ["outcome" = "compiled"] "Modules compiled, by outcome.";
        rejected: Counter "eventpulse_transform_compiles_total" ["outcome" = "rejected"] "Modules compiled, by outcome.";
        compile_failed: Counter "eventpulse_transform_compiles_total" ["outcome" = "failed"] "Modules compiled, by outcome.";
        loaded: Counter "eventpulse_transform_loads_total" "Compiled modules brought into memory.";
        modules: Gauge "eventpulse_transform_modules" "Compiled modules in memory.";
        waited: Counter "eventpulse_transform_waited_total" "Deliveries parked because their module was not ready here.";
        suspended: Counter "eventpulse_transform_suspended_total" "Webhooks paused because their module kept failing.";
        uploads_refused: Counter "eventpulse_transform_refused_total" ["call" = "upload"] "Calls refused because as many as allowed were running.";
        dry_runs_refused: Counter "eventpulse_transform_refused_total" ["call" = "dry_run"] "Calls refused because as many as allowed were running.";
        changed_body: Counter "eventpulse_transform_body_mismatches_total" "Retries whose body was not the one sent before; 0 as long as modules are deterministic.";
    }
    Deliver "The HTTP client." {
        delivered: Counter "eventpulse_deliver_attempts_total" ["outcome" = "delivered"] "Attempts by outcome.";
        retried: Counter "eventpulse_deliver_attempts_total" ["outcome" = "retry"] "Attempts by outcome.";
        dead: Counter "eventpulse_deliver_attempts_total" ["outcome" = "dead"] "Attempts by outcome.";
        filtered: Counter "eventpulse_deliver_attempts_total" ["outcome" = "filtered"] "Attempts by outcome.";
        unsigned: Counter "eventpulse_deliver_unsigned_total" "Attempts that failed because the secret could not be read: a key is missing.";
        in_flight: Gauge "eventpulse_deliver_in_flight" "Requests in flight.";
        seconds: Histogram "eventpulse_deliver_seconds" "Time of one attempt.";
        first_attempt: Histogram "eventpulse_deliver_publish_to_first_attempt_seconds" "Time from an event's commit to the end of its first attempt, of each delivery.";
        published_to_delivered: Histogram "eventpulse_deliver_publish_to_delivered_seconds" "Time from an event's commit to its delivery, with all attempts of the first round.";
        opened: Counter "eventpulse_deliver_connections_opened_total" "Connections opened to endpoints.";
        reused: Counter "eventpulse_deliver_connections_reused_total" "Requests on a connection that was open already.";
        idle: Gauge "eventpulse_deliver_connections_idle" "Connections to endpoints without a request.";
        closed_idle: Counter "eventpulse_deliver_connections_closed_total" ["reason" = "idle"] "Connections without a request that were closed, by reason.";
        closed_age: Counter "eventpulse_deliver_connections_closed_total" ["reason" = "age"] "Connections without a request that were closed, by reason.";
        closed_evicted: Counter "eventpulse_deliver_connections_closed_total" ["reason" = "evicted"] "Connections without a request that were closed, by reason.";
        closed_peer: Counter "eventpulse_deliver_connections_closed_total" ["reason" = "peer"] "Connections without a request that were closed, by reason.";
        dns_seconds: Histogram "eventpulse_deliver_dns_seconds" "Time of one look-up of a name.";
        dns_failures: Counter "eventpulse_deliver_dns_failures_total" "Look-ups of a name that failed.";
        out_of_files: Counter "eventpulse_deliver_out_of_files_total" "Deliveries put off because this process had no file descriptors left.";
        blocked: Counter "eventpulse_deliver_targets_blocked_total" "Connections refused because the address may not be called.";
    }
    Settle "The recorder." {
        records: Counter "eventpulse_settle_records_total" "Outcomes recorded in Postgres.";
        batch_records: Histogram "eventpulse_settle_batch_records" "Outcomes of one recorder batch.";
        commit_seconds: Histogram "eventpulse_settle_commit_seconds" "Time of one recorder batch in Postgres.";
        failures: Counter "eventpulse_settle_failures_total" "Recorder batches that had to be tried again.";
        rewritten: Counter "eventpulse_settle_rewritten_total" "Attempts whose texts Postgres refused and that were recorded without them.";
        repeats_entry: Counter "eventpulse_deliver_repeats_total" ["came_by" = "entry"] "Attempts that had been recorded before: deliveries made twice, by how the second came into hand.";
        repeats_check: Counter "eventpulse_deliver_repeats_total" ["came_by" = "check"] "Attempts that had been recorded before: deliveries made twice, by how the second came into hand.";
        repeats_schedule: Counter "eventpulse_deliver_repeats_total" ["came_by" = "schedule"] "Attempts that had been recorded before: deliveries made twice, by how the second came into hand.";
        acked: Counter "eventpulse_settle_acked_total" "Stream entries acked and deleted.";
        redis_failures: Counter "eventpulse_settle_redis_failures_total" "Acks and due updates that Redis did not take.";
    }
    Retry "The schedule and its near window." {
        scheduled: Counter "eventpulse_retry_scheduled_total" "Retries written to the schedule.";
        leased: Counter "eventpulse_retry_leased_total" "Members leased from due.";
        fed: Counter "eventpulse_retry_fed_total" "Members brought from the schedule into due.";
        stale: Counter "eventpulse_retry_stale_total" "Members of due that nothing was owed for any more.";
        expired: Counter "eventpulse_retry_expired_total" "Deliveries dead-lettered because their time was up.";
        due: Gauge "eventpulse_retry_due" "Members of due.";
        overdue: Gauge "eventpulse_retry_overdue_seconds" "For how long the first delivery of the schedule has been due; NaN while Postgres cannot be asked.";
    }
    Dlq "Dead letters." {
        depth: Gauge "eventpulse_dlq_depth" "Dead letters that were not requeued, counted up to 100,000; NaN while Postgres cannot be asked.";
        added: Counter "eventpulse_dlq_entries_total" "Deliveries that ended as dead letters.";
        requeued: Counter "eventpulse_dlq_requeued_total" "Dead letters requeued.";
        removed: Counter "eventpulse_dlq_removed_total" "Dead letters removed because they are older than dlq.retention.";
    }
    Replay "What accounts ask for of the past." {
        scheduled: Counter "eventpulse_replay_scheduled_total" "Missed deliveries put into the schedule by replays.";
    }
    Webhooks "What the engine does to webhooks by itself." {
        disabled_failing: Counter "eventpulse_webhooks_disabled_total" ["reason" = "failing"] "Webhooks disabled by the engine, by reason.";
        disabled_gone: Counter "eventpulse_webhooks_disabled_total" ["reason" = "gone"] "Webhooks disabled by the engine, by reason.";
    }
    Recover "Takeover and sweep." {
        beats_missed: Counter "eventpulse_recover_beats_missed_total" "Beats that Postgres did not take.";
        taken_over: Counter "eventpulse_recover_taken_over_total" "Batches taken over from dead instances.";
        leftovers: Counter "eventpulse_recover_leftovers_total" "Own batches found unsent in Postgres.";
        in_order: Gauge "eventpulse_recover_redis_in_order" "1 while Redis's index is known to be as it was left; at 0 nothing is taken from it.";
        rebuilds: Counter "eventpulse_recover_rebuilds_total" "Times that Redis's index was lost and made again.";
        restreamed: Counter "eventpulse_recover_restreamed_total" "Batches streamed again after Redis had lost them.";
        rebuild_seconds: Histogram "eventpulse_recover_rebuild_seconds" "Time from noticing a loss until the index was in order again.";
        old_keys: Counter "eventpulse_recover_idempotency_keys_removed_total" "Idempotency keys removed because they are older than 24 hours.";
        partitions_dropped: Counter "eventpulse_retention_partitions_dropped_total" "Partitions dropped because all events in them are older than retention.events.";
        swept: Counter "eventpulse_sweep_batches_total" "Batches found accounted for and removed.";
        missing: Counter "eventpulse_sweep_missing_total" "Deliveries the sweep found missing and scheduled; 0 without faults.";
        oldest_undelivered: Gauge "eventpulse_recover_oldest_undelivered_seconds" "Age of the oldest event that is owed or not yet swept; NaN while Postgres cannot be asked.";
        owed: Gauge "eventpulse_sweep_batches_owed" "Batches not yet accounted for, at the last sweep.";
    }
    Trace "Spans for a collector." {
        exported: Counter "eventpulse_trace_spans_exported_total" "Spans that the collector took.";
        dropped: Counter "eventpulse_trace_spans_dropped_total" "Spans that were not exported: the queue was full, or the collector away for too long.";
        failures: Counter "eventpulse_trace_export_failures_total" "Exports that failed, each try for itself.";
        refused: Counter "eventpulse_trace_events_refused_total" "Sampled events without spans because of trace.events_per_second_max.";
    }
}

/// One worker's part of a gauge that shows what all of them have together.
pub struct Part {
    gauge: Gauge,
    value: f64,
}

impl Part {
    pub fn of(gauge: &Gauge) -> Part {
        Part { gauge: gauge.clone(), value: 0.0 }
    }

    pub fn set(&mut self, value: usize) {
        let value = value as f64;
        self.gauge.increment(value - self.value);
        self.value = value;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// All handles of one engine and the way to render them.
pub struct Metrics {
    pub http: Http,
    pub ingest: Ingest,
    pub stream: Stream,
    pub store: Store,
    pub dispatch: Dispatch,
    pub lane: Lane,
    pub transform: Transform,
    pub deliver: Deliver,
    pub settle: Settle,
    pub retry: Retry,
    pub dlq: Dlq,
    pub replay: Replay,
    pub webhooks: Webhooks,
    pub recover: Recover,
    pub trace: Trace,
    /// Which webhooks are the worst, if that is asked for.
    pub worst: Worst,
    /// Random: no two engines have the same.
    pub process: u64,
    handle: PrometheusHandle,
}

impl Metrics {
    pub fn new() -> Metrics {
        let recorder = recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            // Without TLS there is nothing to expire, which zero would not say.
            let http = Http::new();
            http.certificate_expires.set(f64::NAN);
            metrics::gauge!("eventpulse_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            Metrics {
                http,
                ingest: Ingest::new(),
                stream: Stream::new(),
                store: Store::new(),
                dispatch: Dispatch::new(),
                lane: Lane::new(),
                transform: Transform::new(),
                deliver: Deliver::new(),
                settle: Settle::new(),
                retry: Retry::new(),
                dlq: Dlq::new(),
                replay: Replay::new(),
                webhooks: Webhooks::new(),
                recover: Recover::new(),
                trace: Trace::new(),
                worst: Worst::default(),
                // Without randomness an engine does not get as far as to serve.
                process: getrandom::u64().unwrap_or_default(),
                handle,
            }
        })
    }

    /// The Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        self.worst.render(&mut text);
        process::render(&mut text);
        text
    }

    /// Moves histogram samples into their buckets. Called every few seconds, or memory grows with the samples.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|b| {
            b.set_buckets_for_metric(Matcher::Prefix("eventpulse_deliver_publish_".to_owned()), &SECONDS_LONG)
        })
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), &SIZES))
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), &SIZES))
        .expect("the bucket lists are not empty")
        .build_recorder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_renders_with_its_help() {
        let metrics = Metrics::new();
        metrics.ingest.commit_seconds.record(0.1);
        metrics.upkeep();
        let text = metrics.render();
        for name in NAMES {
            assert!(name.starts_with("eventpulse_"), "{name}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help in\n{text}");
        }
        assert!(text.contains("eventpulse_ingest_commit_seconds_bucket"), "{text}");
    }

    #[test]
    fn long_waits_have_buckets_of_their_own() {
        let metrics = Metrics::new();
        metrics.deliver.published_to_delivered.record(1200.0);
        metrics.deliver.seconds.record(0.1);
        metrics.upkeep();
        let text = metrics.render();
        assert!(
            text.contains("eventpulse_deliver_publish_to_delivered_seconds_bucket{le=\"600\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("eventpulse_deliver_publish_to_delivered_seconds_bucket{le=\"1800\"} 1"),
            "{text}"
        );
        assert!(!text.contains("eventpulse_deliver_seconds_bucket{le=\"1800\"}"), "{text}");
    }

    #[test]
    fn two_engines_do_not_share_their_counts() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.ingest.accepted.increment(3);
        assert!(one.render().contains("eventpulse_ingest_events_total 3"));
        assert!(two.render().contains("eventpulse_ingest_events_total 0"));
    }
}
