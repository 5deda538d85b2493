-- When a webhook that was paused was made active again: what waited for it is given a whole schedule from then on,
-- whatever its expiry said before.
ALTER TABLE webhooks ADD COLUMN resumed_at timestamptz;
