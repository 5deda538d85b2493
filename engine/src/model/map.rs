//! Maps by ids.

use std::collections::HashMap;

/// A map by ids that Postgres or we gave out. Nobody chooses those so that they collide, and a hash that is safe from it (SipHash, the
/// standard library's) costs more than the rest of the look-up: 18 against 2 ns for one id.
pub type IdMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
