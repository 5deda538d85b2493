//! What the benches share: seeded fixtures and servers of their own.
