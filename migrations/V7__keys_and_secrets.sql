-- What an account calls a key, and when it was last used, to within a minute or so.
ALTER TABLE api_keys
    ADD COLUMN name text NOT NULL DEFAULT '',
    ADD COLUMN last_used_at timestamptz;
CREATE INDEX api_keys_by_account ON api_keys (account_id, id DESC) WHERE revoked_at IS NULL;

-- After a rotation both secrets sign until the old one's time is up.
ALTER TABLE webhooks
    ADD COLUMN secret_before text,
    ADD COLUMN secret_until timestamptz;
