-- Modules by the SHA-256 of their bytes: versions and webhooks with the same one hold it once.
CREATE TABLE transform_modules (
    sha256 bytea PRIMARY KEY,
    wasm bytea NOT NULL,
    -- The last upload. A module without versions goes some time after it, so that an upload finds its module in place.
    uploaded_at timestamptz NOT NULL DEFAULT now()
);
-- Machine code does not shrink by much, and trying takes a second for a large module.
ALTER TABLE transform_modules ALTER COLUMN wasm SET STORAGE EXTERNAL;

-- A version is a module with its settings, and never changes but for its state: what a delivery was made with can be made again.
CREATE TABLE transforms (
    webhook_id bigint NOT NULL,
    version integer NOT NULL,
    sha256 bytea NOT NULL REFERENCES transform_modules,
    size integer NOT NULL,
    -- Names and values in turn.
    config text[] NOT NULL DEFAULT '{}',
    on_error text NOT NULL DEFAULT 'retry' CHECK (on_error IN ('retry', 'original', 'drop')),
    state text NOT NULL CHECK (state IN ('compiling', 'ready', 'rejected', 'suspended')),
    -- Why it was rejected or suspended.
    reason text,
    -- Whoever compiles it says so again and again; another process takes over when that is too long ago.
    compiling_at timestamptz,
    calls bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    dropped bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cpu_us bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp()),
    -- Shown to nobody from then on. The row goes once no delivery can need it any more.
    removed_at timestamptz,
    PRIMARY KEY (webhook_id, version)
) WITH (fillfactor = 70);
CREATE INDEX transforms_compiling ON transforms (compiling_at) WHERE state = 'compiling';
CREATE INDEX transforms_by_module ON transforms (sha256);
CREATE INDEX transforms_removed ON transforms (removed_at) WHERE removed_at IS NOT NULL;

ALTER TABLE webhooks
    -- The version in force. The first one is it from its upload on, also while it is compiled: its deliveries wait.
    ADD COLUMN transform_version integer,
    -- The last version that was given out: a number never comes back.
    ADD COLUMN transform_last integer NOT NULL DEFAULT 0,
    -- Uploads up to this one do not come into force any more once they are compiled: something later did.
    ADD COLUMN transform_settled integer NOT NULL DEFAULT 0,
    -- Paused by the engine, because this version kept failing.
    ADD COLUMN transform_suspended integer;
-- Deleted webhooks whose versions are still to be removed.
CREATE INDEX webhooks_left_transforms ON webhooks (id) WHERE state = 'deleted' AND transform_last > 0;

-- `scheduled.transform_version`: null as long as nothing was sent, then the version that made the body, 0 for the original. Retries
-- keep to it. `body_hash` are 8 bytes of that body's SHA-256: the same bytes come out at every attempt.
ALTER TABLE scheduled ADD COLUMN body_hash bigint;
CREATE INDEX scheduled_transformed ON scheduled (webhook_id, transform_version) WHERE transform_version > 0;

-- Likewise of what was sent at this attempt; null where nothing was.
ALTER TABLE delivery_attempts ADD COLUMN transform_version integer;

-- Which version made the last body that was sent for a delivery, for what `scheduled` pins in a new round. Of a first try that
-- succeeded without a transform nothing is written.
CREATE FUNCTION sent_version(event bigint, webhook bigint) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT coalesce(transform_version, 0) FROM delivery_attempts
    WHERE event_id = event AND webhook_id = webhook AND (transform_version IS NOT NULL OR status = 'success')
    ORDER BY round DESC, attempt DESC LIMIT 1
$$;
