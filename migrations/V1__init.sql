-- The whole model. Owed work is what stands in `batches` and `scheduled`, and nothing else; everything
-- in Redis can be made again from these two.

-- One row: who this deployment is and which version of the configuration is in force. Every change of an
-- account, a key or a webhook raises config_version in its own transaction (the row lock puts those
-- transactions in order), and every batch stores the version its insert saw. A webhook is owed an event
-- when it stood at that version: an order decided by Postgres alone, without any clock.
CREATE TABLE engine_state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id text NOT NULL,
    key_secret bytea NOT NULL,
    config_version bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0);

CREATE TABLE instances (
    id bigint PRIMARY KEY,
    beat bigint NOT NULL DEFAULT 0,
    roles text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

CREATE SEQUENCE instance_ids AS bigint;

CREATE TABLE accounts (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX accounts_by_version ON accounts (version);

CREATE TABLE api_keys (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    account_id bigint NOT NULL REFERENCES accounts,
    hash bytea NOT NULL UNIQUE,
    prefix text NOT NULL,
    scope text NOT NULL DEFAULT 'manage' CHECK (scope IN ('manage', 'send')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
CREATE INDEX api_keys_by_version ON api_keys (version);

CREATE TABLE webhooks (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    account_id bigint NOT NULL REFERENCES accounts,
    name text NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    -- Exact names or prefixes ending in `.*`; null stands for every type.
    event_types text[],
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled')),
    -- Owed what batches at or above since_version hold, up to and without until_version.
    since_version bigint NOT NULL,
    until_version bigint,
    disabled_reason text,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp())
);
CREATE INDEX webhooks_by_account ON webhooks (account_id);

-- Ids come in blocks of 1,024, so that a gateway knows a batch's ids before it sends the batch, and are
-- below 2^53, so that they are exact as JSON numbers.
CREATE SEQUENCE event_id_blocks AS bigint MINVALUE 1 MAXVALUE 8796093022207;

CREATE TABLE events (
    id bigint NOT NULL,
    account_id bigint NOT NULL,
    type text NOT NULL,
    -- The producer's bytes. Not json or jsonb: a payload nested 100,000 deep would abort the whole batch.
    payload text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX events_by_account ON events (account_id, id DESC);

CREATE SEQUENCE attempt_ids AS bigint;

CREATE TABLE delivery_attempts (
    id bigint NOT NULL DEFAULT nextval('attempt_ids'),
    event_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    round smallint NOT NULL,
    attempt smallint NOT NULL,
    status text NOT NULL,
    response_code smallint,
    response_body text,
    error text,
    reason_code text NOT NULL,
    duration_ms integer NOT NULL,
    created_at timestamptz NOT NULL
) PARTITION BY RANGE (event_id);
-- The only index; its prefix also serves the attempts of one event.
CREATE UNIQUE INDEX delivery_attempts_once ON delivery_attempts (event_id, webhook_id, round, attempt);

-- A net under the partitions below: a row lands here only if nobody made the next partition in time.
CREATE TABLE events_default PARTITION OF events DEFAULT;
CREATE TABLE delivery_attempts_default PARTITION OF delivery_attempts DEFAULT;

-- Makes the partition that covers `upto` and four after it, 2^26 ids (65,536 blocks) each, so that a lock held
-- for an hour by a backup delays nothing. Returns how many it made. A range of which the net below has rows
-- already is left to it: making it would scan the net under a lock that stops ingest. The caller holds the
-- advisory lock.
CREATE FUNCTION make_partitions(upto bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    width constant bigint := 67108864;
    part bigint;
    made integer := 0;
BEGIN
    FOR part IN SELECT generate_series(upto / width, upto / width + 4) LOOP
        IF to_regclass(format('events_p%s', part)) IS NULL
            AND NOT EXISTS (SELECT FROM events_default WHERE id >= part * width AND id < (part + 1) * width) THEN
            EXECUTE format('CREATE TABLE events_p%s PARTITION OF events FOR VALUES FROM (%s) TO (%s)',
                           part, part * width, (part + 1) * width);
            EXECUTE format('CREATE TABLE delivery_attempts_p%s PARTITION OF delivery_attempts FOR VALUES FROM (%s) TO (%s)',
                           part, part * width, (part + 1) * width);
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
SELECT make_partitions(0);

-- One row a group commit, in the same transaction as its events: state 0 is new, 1 is streamed. The sweep
-- removes it, when every event in it is accounted for.
CREATE TABLE batches (
    first_id bigint PRIMARY KEY,
    last_id bigint NOT NULL,
    n integer NOT NULL,
    owner bigint NOT NULL,
    state smallint NOT NULL DEFAULT 0,
    config_version bigint NOT NULL,
    created_at timestamptz NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0);
CREATE INDEX batches_new ON batches (owner, first_id) WHERE state = 0;

-- A delivery that is still owed after its first look: failed and to be tried again, parked, held in
-- flight, requeued, or found missing by the sweep. A first try that succeeds never touches it.
CREATE TABLE scheduled (
    event_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    round smallint NOT NULL,
    attempt smallint NOT NULL,
    next_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    reason text NOT NULL,
    transform_version integer,
    PRIMARY KEY (event_id, webhook_id)
) WITH (fillfactor = 60, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0);
CREATE INDEX scheduled_by_time ON scheduled (next_at);
CREATE INDEX scheduled_by_webhook ON scheduled (webhook_id, next_at);

CREATE TABLE dlq_entries (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    account_id bigint NOT NULL,
    event_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    round smallint NOT NULL,
    attempts smallint NOT NULL,
    reason text NOT NULL,
    reason_code text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp()),
    requeued_at timestamptz,
    UNIQUE (event_id, webhook_id, round)
);
CREATE INDEX dlq_entries_by_account ON dlq_entries (account_id, id DESC);
