-- Where an event stands in the producer's trace: 16 bytes of trace id, 8 of the span that it belongs to, 1 of flags. Null for most,
-- which takes no room in the row.
ALTER TABLE events ADD COLUMN trace bytea;
