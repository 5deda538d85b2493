//! Which events go into the next group commit, and under which ids. Pure.

use std::time::Duration;

use crate::store::events::BLOCK;

/// A block older than this is given up, so that ids are ordered by time to about a second over all
/// gateways: a quiet one must not answer with ids far below a busy one's.
const BLOCK_AGE_MAX: Duration = Duration::from_secs(1);

/// Bounds of one group commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Limits {
    /// Whether a batch of `events` takes one more, which would make it `bytes` large. The first is always taken:
    /// a single event may be larger than the bound on bytes.
    pub(super) fn takes(self, events: usize, bytes: usize) -> bool {
        events == 0 || (events < self.events && bytes <= self.bytes)
    }
}

/// Ids at hand: what is left of one block, and the block fetched ahead.
#[derive(Debug)]
pub(super) struct Ids<T> {
    /// Next id, end, and when the block was fetched.
    current: Option<(i64, i64, T)>,
    ahead: Option<(i64, T)>,
}

/// A moment, so that tests need no clock.
pub(super) trait Moment: Copy {
    fn since(self, earlier: Self) -> Duration;
}

impl Moment for tokio::time::Instant {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl<T> Default for Ids<T> {
    fn default() -> Ids<T> {
        Ids { current: None, ahead: None }
    }
}

impl<T: Moment> Ids<T> {
    /// The first of `n` consecutive ids of one block, or none when a block has to be fetched first.
    pub(super) fn take(&mut self, n: usize, now: T) -> Option<i64> {
        let n = i64::try_from(n).ok().filter(|n| *n <= BLOCK)?;
        let fresh = |fetched: T| now.since(fetched) < BLOCK_AGE_MAX;
        if let Some((next, end, fetched)) = &mut self.current
            && fresh(*fetched)
            && *end - *next >= n
        {
            let first = *next;
            *next += n;
            return Some(first);
        }
        // The rest of the block is given up: ids are not scarce, and a batch never spans two blocks.
        self.current = None;
        let (block, fetched) = self.ahead.take()?;
        if !fresh(fetched) {
            return None;
        }
        let first = block * BLOCK;
        self.current = Some((first + n, first + BLOCK, fetched));
        Some(first)
    }

    /// Whether the next commit should bring a block.
    pub(super) fn wants_block(&self, now: T) -> bool {
        self.ahead.is_none_or(|(_, fetched)| now.since(fetched) >= BLOCK_AGE_MAX / 2)
    }

    pub(super) fn bring(&mut self, block: i64, now: T) {
        self.ahead = Some((block, now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Moment for u64 {
        fn since(self, earlier: u64) -> Duration {
            Duration::from_millis(self - earlier)
        }
    }

    #[test]
    fn a_batch_is_bounded_by_events_and_bytes_but_never_empty() {
        let limits = Limits { events: 3, bytes: 10 };
        assert!(limits.takes(0, 100), "the first, whatever its size");
        assert!(limits.takes(1, 10) && !limits.takes(1, 11), "bytes");
        assert!(limits.takes(2, 3) && !limits.takes(3, 4), "events");
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_nor_span_blocks(steps in prop::collection::vec((1usize..=1024, 0u64..700), 1..200)) {
            let (mut ids, mut block, mut now, mut last) = (Ids::default(), 0, 0u64, -1);
            for (n, pause) in steps {
                now += pause;
                let first = match ids.take(n, now) {
                    Some(first) => first,
                    None => {
                        block += 1;
                        ids.bring(block, now);
                        ids.take(n, now).expect("a fresh block holds any batch")
                    }
                };
                prop_assert!(first > last);
                last = first + n as i64 - 1;
                prop_assert_eq!(first / BLOCK, last / BLOCK);
            }
        }
    }

    #[test]
    fn an_old_block_is_given_up() {
        let mut ids = Ids::default();
        ids.bring(5, 0u64);
        assert_eq!(ids.take(10, 10), Some(5 * BLOCK));
        assert_eq!(ids.take(10, 20), Some(5 * BLOCK + 10));
        assert_eq!(ids.take(10, 1000), None);
        assert!(ids.wants_block(1000));
    }
}
