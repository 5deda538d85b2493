-- A webhook from which nothing but failures comes is disabled after a while. Dispatchers write these when a webhook
-- begins to fail, when it still fails that much later, and when it succeeds again: never for a delivery as such.
ALTER TABLE webhooks
    -- The first failure after the last success; null while the last word was a success.
    ADD COLUMN failing_since timestamptz,
    -- The first failure that came `webhooks.disable_after` later, with no success between.
    ADD COLUMN still_failing_at timestamptz,
    -- When its account was last told by an event that it is disabled.
    ADD COLUMN disabled_event_at timestamptz;

CREATE INDEX webhooks_failing ON webhooks (id) WHERE failing_since IS NOT NULL;
CREATE INDEX webhooks_still_failing ON webhooks (still_failing_at) WHERE still_failing_at IS NOT NULL;
