//! Load on EventPulse, and what came of it.
