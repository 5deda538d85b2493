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

CREATE INDEX dlq_entries_by_webhook ON dlq_entries (webhook_id, id DESC);

-- What waits for its lane's word and not for a time (the reasons are those of SHELVED in the engine).
CREATE INDEX scheduled_shelved ON scheduled (webhook_id, event_id) WHERE reason IN ('breaker', 'backlog', 'paused');
