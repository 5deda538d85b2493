//! Which traces are exported, and new ids. Pure but for the seed.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::SpanId;

/// Whether a trace is among the `ratio` of all that are exported, by its id alone: the last seven bytes, which level 2 of the
/// standard wants to be random, against a threshold. So everybody with the same ratio says the same of a trace.
pub(super) fn is_chosen(id: &[u8; 16], ratio: f64) -> bool {
    const ALL: u64 = 1 << 56;
    let mut low = [0; 8];
    low[1..].copy_from_slice(&id[9..]);
    // As a whole number: rounded to a float, the highest ids would be chosen at any ratio.
    u64::from_be_bytes(low) >= ((1.0 - ratio) * ALL as f64) as u64
}

/// Events a second whose spans are exported, whoever asked for it.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    /// A second, and what was taken in it.
    taken: Mutex<(u64, usize)>,
}

impl Budget {
    pub(super) fn new(most: usize) -> Budget {
        Budget { most, taken: Mutex::new((0, 0)) }
    }

    /// Takes up to `n` in this second; returns how many there were.
    pub(super) fn take(&self, n: usize, second: u64) -> usize {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.0 != second {
            *taken = (second, 0);
        }
        let granted = n.min(self.most - taken.1);
        taken.1 += granted;
        granted
    }
}

/// Ids that no other process makes, as far as 64 random bits go: Steele, Lea and Flood's SplitMix64, a counter whose numbers are
/// mixed. They need to be different and evenly spread, not secret.
pub(super) struct Ids {
    state: AtomicU64,
    process: u64,
}

impl Ids {
    pub(super) fn new() -> Ids {
        // Without randomness an engine does not get as far as to serve.
        let seed = || getrandom::u64().unwrap_or_default();
        Ids { state: AtomicU64::new(seed()), process: seed() }
    }

    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn span(&self) -> SpanId {
        // Zero is no id.
        self.next().max(1).to_be_bytes()
    }

    pub(super) fn trace(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.next() ^ self.process).to_be_bytes());
        id[8..].copy_from_slice(&self.next().max(1).to_be_bytes());
        id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_ratio_is_kept_and_the_choice_is_the_ids_alone() {
        let ids = Ids::new();
        let traces: Vec<_> = (0..20_000).map(|_| ids.trace()).collect();
        for ratio in [0.0, 0.01, 0.5, 1.0] {
            let chosen = traces.iter().filter(|id| is_chosen(id, ratio)).count();
            let (low, high) = (20_000.0 * (ratio - 0.02), 20_000.0 * (ratio + 0.02));
            assert!((low..=high).contains(&(chosen as f64)), "{chosen} at {ratio}");
            // Whoever exports a part exports what a smaller part would hold.
            assert!(traces.iter().all(|id| !is_chosen(id, ratio / 2.0) || is_chosen(id, ratio)));
        }
        assert!(traces.iter().all(|id| is_chosen(id, 1.0) && !is_chosen(id, 0.0)));
        assert!(is_chosen(&[0; 16], 1.0) && !is_chosen(&[0xff; 16], 0.0));
        assert_eq!(traces.iter().collect::<HashSet<_>>().len(), traces.len());
    }

    #[test]
    fn a_second_has_so_many_and_no_more() {
        let budget = Budget::new(10);
        assert_eq!([6, 6, 1].map(|n| budget.take(n, 7)), [6, 4, 0]);
        assert_eq!(budget.take(100, 8), 10);
        assert_eq!(Budget::new(0).take(1, 7), 0);
    }
}
