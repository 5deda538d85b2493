-- Which history this database is of. It changes when a process finds that Postgres went back in time: a backup was restored, or a
-- standby took over that was behind. What processes and Redis know of another history is worth nothing.
ALTER TABLE engine_state ADD COLUMN history bigint NOT NULL DEFAULT 0;
