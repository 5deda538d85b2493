-- What was answered to a request that came with an Idempotency-Key, written in the transaction of its events. A row
-- older than 24 hours by this database's clock counts as absent: it is used again by the next request with that
-- key, or deleted in small steps. Not partitioned by day: a key sent at midnight would be new twice.
CREATE TABLE idempotency_keys (
    account_id bigint NOT NULL,
    -- 16 bytes of the SHA-256 of the key: keys are as long as their senders like.
    key_hash bytea NOT NULL,
    -- Tells whether a later request has the same events, so that none of them has to be read again.
    body_hash bytea NOT NULL,
    -- The first id of each run of ids, in the order of the events. All runs but the last have 1,024.
    firsts bigint[] NOT NULL,
    n integer NOT NULL,
    event_created_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, key_hash)
) WITH (fillfactor = 90, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0.1);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
