//! How events are cut into batches.

use proptest::prelude::*;

use super::*;

/// A request whose payloads have these sizes.
struct Sizes<'a>(Vec<usize>, Vec<i64>, &'a [u8]);

impl Cargo for Sizes<'_> {
    fn account(&self) -> AccountId {
        AccountId(1)
    }
    fn key(&self) -> Option<&Key> {
        None
    }
    fn count(&self) -> usize {
        self.0.len()
    }
    fn firsts(&self) -> &[i64] {
        &self.1
    }
    fn kind(&self, _: usize) -> &str {
        "t"
    }
    fn payload(&self, event: usize) -> &[u8] {
        &self.2[..self.0[event]]
    }
    fn trace(&self, _: usize) -> Option<Trace> {
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn batches_hold_every_event_once_and_stay_within_blocks_and_bytes(
        sizes in prop::collection::vec(prop_oneof![20 => 1usize..1000, 1 => 1usize..6 << 20], 1..4000),
        gaps in prop::collection::vec(0i64..3, 4),
    ) {
        let buffer = vec![0; 6 << 20];
        let mut block = 7;
        let runs = sizes.len().div_ceil(1024);
        let firsts: Vec<i64> = gaps[..runs].iter().map(|gap| { block += 1 + gap; block * BLOCK }).collect();
        let by_runs: Vec<i64> =
            firsts.iter().flat_map(|first| *first..*first + BLOCK).take(sizes.len()).collect();
        let cargo = Sizes(sizes, firsts, &buffer);
        let ids: Vec<i64> = (0..cargo.count()).map(|event| id(cargo.firsts(), event)).collect();
        prop_assert_eq!(&ids, &by_runs);
        let (mut found, mut event) = (Vec::new(), 0);
        for (first, n) in batches(&cargo) {
            let last = first + i64::from(n) - 1;
            prop_assert_eq!(first / BLOCK, last / BLOCK);
            let bytes: usize = cargo.0[event..event + n as usize].iter().sum();
            prop_assert!(n == 1 || bytes <= BATCH_BYTES);
            event += n as usize;
            found.extend(first..=last);
        }
        prop_assert_eq!(found, ids);
    }
}
