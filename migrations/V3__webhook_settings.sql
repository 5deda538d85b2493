-- What an account may set for each of its webhooks. Null stands for the deployment's default.
ALTER TABLE webhooks
    -- Static headers, name and value in turn. Values are written and never shown.
    ADD COLUMN headers text[] NOT NULL DEFAULT '{}',
    -- Requests a second.
    ADD COLUMN rate_limit double precision,
    -- Milliseconds between attempts; one more attempt than there are.
    ADD COLUMN retry_waits_ms bigint[],
    ADD COLUMN timeout_ms integer,
    ADD COLUMN in_flight_max integer,
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp()),
    -- A deleted webhook's row stays, because batches from before are still compared with it; nobody is shown it.
    DROP CONSTRAINT webhooks_state_check,
    ADD CONSTRAINT webhooks_state_check CHECK (state IN ('active', 'paused', 'disabled', 'deleted'));

-- How a webhook is doing, as its dispatchers last said. Written on changes and every few seconds at most; losing it
-- costs nothing but what the API shows, and the clock of the automatic disabling.
CREATE TABLE webhook_health (
    webhook_id bigint PRIMARY KEY,
    breaker text NOT NULL DEFAULT 'closed',
    -- Since when nothing but failures; null after a success.
    failing_since timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    -- The reason code of the last failure.
    last_failure text,
    in_flight integer NOT NULL DEFAULT 0,
    in_flight_limit integer NOT NULL DEFAULT 0,
    queued integer NOT NULL DEFAULT 0,
    slow boolean NOT NULL DEFAULT false,
    updated_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp())
) WITH (fillfactor = 60, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

CREATE INDEX dlq_entries_by_webhook ON dlq_entries (webhook_id, id DESC);

-- What waits for its lane's word and not for a time (the reasons are those of SHELVED in the engine).
CREATE INDEX scheduled_shelved ON scheduled (webhook_id, event_id) WHERE reason IN ('breaker', 'backlog', 'paused');
