//! What the queue promises.

use super::*;

/// Account, events, bytes, and who was refused with what.
struct Thing(i64, usize, usize, Arc<Mutex<Vec<(i64, Error)>>>);

impl Item for Thing {
    fn account(&self) -> AccountId {
        AccountId(self.0)
    }
    fn events(&self) -> usize {
        self.1
    }
    fn bytes(&self) -> usize {
        self.2
    }
    fn refuse(self, error: Error) {
        self.3.lock().unwrap().push((self.0, error));
    }
}

struct Fixture {
    queue: Queue<Thing>,
    refused: Arc<Mutex<Vec<(i64, Error)>>>,
}

impl Fixture {
    fn new(events_max: usize, bytes_max: usize, standing_events_max: usize) -> Fixture {
        let bounds = Bounds { events_max, bytes_max, standing_events_max };
        let queue = Queue::new(bounds, Arc::new(Metrics::new()));
        Fixture { queue, refused: Arc::default() }
    }

    fn push(&self, account: i64, bytes: usize) -> Result<(), Error> {
        self.queue.push(Thing(account, 1, bytes, self.refused.clone()))
    }

    fn fill(&self, account: i64, n: usize) -> usize {
        (0..n).filter(|_| self.push(account, 1).is_ok()).count()
    }

    fn drain(&self) -> Vec<i64> {
        std::iter::from_fn(|| self.queue.pop()).map(|thing| thing.0).collect()
    }
}

#[test]
fn a_lone_account_may_fill_the_queue_and_no_more() {
    let f = Fixture::new(10, 1000, 10);
    assert_eq!(f.fill(1, 20), 10);
    assert!(matches!(f.push(1, 1), Err(Error::Full)));
    assert_eq!(f.drain().len(), 10);
    assert_eq!(f.queue.len(), 0);
    assert!(f.push(1, 1).is_ok());
}

#[test]
fn bytes_are_bounded_too_but_one_item_always_fits() {
    let f = Fixture::new(10, 100, 10);
    assert!(f.push(1, 500).is_ok());
    assert!(matches!(f.push(1, 1), Err(Error::Full)));
    f.drain();
    assert!(f.push(1, 60).is_ok() && f.push(1, 40).is_ok());
    assert!(matches!(f.push(1, 1), Err(Error::Full)));
}

#[test]
fn the_newcomer_is_let_in_at_the_cost_of_the_account_that_holds_too_much() {
    let f = Fixture::new(10, 1000, 10);
    assert_eq!(f.fill(1, 10), 10);
    assert_eq!(f.fill(2, 20), 5, "half is for account 2");
    assert_eq!(f.refused.lock().unwrap().len(), 5);
    assert!(f.refused.lock().unwrap().iter().all(|(a, e)| *a == 1 && matches!(e, Error::Share)));
    assert!(matches!(f.push(1, 1), Err(Error::Share)) && matches!(f.push(2, 1), Err(Error::Share)));
    assert!(matches!(f.push(3, 1), Err(Error::Full)), "nobody holds more than half any more");
}

#[test]
fn accounts_take_turns() {
    let f = Fixture::new(1000, 100_000, 1000);
    f.fill(1, 100);
    f.fill(2, 3);
    f.fill(3, TURN + 1);
    let order = f.drain();
    assert_eq!(order[TURN..TURN + 3], [2, 2, 2], "two does not wait for all of one");
    assert_eq!(order[TURN + 3], 3);
    assert_eq!(order.len(), 103 + TURN + 1);
    let two_turns = &order[TURN + 3..];
    assert!(two_turns[..TURN].iter().all(|a| *a == 3) && two_turns[TURN] == 1, "a turn ends");
}

#[test]
fn a_standing_queue_shrinks_and_grows_again() {
    let f = Fixture::new(1000, 100_000, 20);
    let start = Instant::now();
    f.fill(1, 500);
    f.queue.taken(start);
    assert!(f.push(1, 1).is_ok(), "a burst is absorbed");
    f.queue.taken(start + STANDING_AFTER);
    assert!(matches!(f.push(1, 1), Err(Error::Full)), "what stays is not");
    assert_eq!(f.fill(2, 20), 10, "another account is not refused for it, up to its own half");
    assert!(f.refused.lock().unwrap().is_empty(), "nor is what was accepted taken back");
    f.drain();
    assert_eq!(f.fill(1, 30), 20);
    f.queue.taken(start + STANDING_AFTER + STANDING_FOR / 2);
    f.drain();
    f.queue.taken(start + STANDING_AFTER + STANDING_FOR);
    assert_eq!(f.fill(1, 30), 20, "as long as something is refused");
    f.drain();
    f.queue.taken(start + STANDING_AFTER + STANDING_FOR * 3);
    f.queue.taken(start + STANDING_AFTER + STANDING_FOR * 5);
    assert_eq!(f.fill(1, 30), 30);
}

#[test]
fn the_counts_agree_whatever_happens() {
    let f = Fixture::new(50, 5000, 20);
    let mut seed = 7u64;
    let start = Instant::now();
    for step in 0..20_000u32 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dice = (seed >> 33) as usize;
        match dice % 5 {
            0 | 1 => drop(f.queue.pop()),
            2 if dice.is_multiple_of(7) => f.queue.taken(start + Duration::from_millis(step.into())),
            _ => drop(f.push((dice / 5 % 4) as i64, dice / 20 % 300)),
        }
        let waiting = f.queue.waiting();
        let sum = waiting.lines.values().fold(Held::default(), |sum, line| sum.plus(line.held));
        assert_eq!(sum, waiting.total);
        assert!(waiting.total.events <= 50 && waiting.total.bytes <= 5000);
        assert_eq!(waiting.turns.len(), waiting.lines.len());
        assert!(waiting.lines.values().all(|line| line.held.events == line.items.len()));
    }
}

#[tokio::test]
async fn a_closed_queue_takes_nothing_more_and_keeps_what_it_has() {
    let f = Fixture::new(10, 100, 10);
    f.fill(1, 2);
    f.queue.close();
    assert!(matches!(f.push(1, 1), Err(Error::Stopping)));
    f.queue.filled().await;
    assert!(f.queue.is_closed());
    assert_eq!(f.drain().len(), 2);
}
