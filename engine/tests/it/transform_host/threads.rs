//! Threads, shares and instances that are used again.
