-- When a webhook that was paused was made active again: what waited for it is given a whole schedule from then on,
-- whatever its expiry said before.
ALTER TABLE webhooks ADD COLUMN resumed_at timestamptz;

-- Dead letters that can still be requeued, in the order in which many of them are: of a million letters most were requeued.
CREATE INDEX dlq_entries_open ON dlq_entries (account_id, id) WHERE requeued_at IS NULL;
