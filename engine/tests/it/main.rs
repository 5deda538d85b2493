//! The engine against a real Postgres and a real Redis, through its HTTP port.
