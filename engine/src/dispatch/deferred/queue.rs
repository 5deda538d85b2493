//! What waits beside its open stream entry, by webhook.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::WAIT_MAX;
use crate::{
    lane::Load,
    model::{AccountId, Event, EventId, WebhookId},
    settle::Open,
};

/// What an event takes beside its payload and type: itself, and what allocations round up.
const EVENT_BYTES: usize = 192;

/// One delivery that waits. The webhook is its queue's.
pub(super) struct Waiting {
    pub(super) event: EventId,
    pub(super) account: AccountId,
    /// Of its payload, in bytes.
    pub(super) size: u32,
    pub(super) entry: Arc<Open>,
    /// As long as there is room; the others' are read again.
    pub(super) kept: Option<Arc<Event>>,
}

/// Events kept with their payloads. One that many webhooks wait for is there once.
#[derive(Default)]
struct Kept {
    bytes: usize,
    /// How many deliveries each is kept for.
    events: HashMap<EventId, u32>,
}

impl Kept {
    fn size(event: &Event) -> usize {
        event.payload.len() + event.kind.len() + EVENT_BYTES
    }

    /// Whether it is kept already, or there is room for it.
    fn takes(&self, event: &Event, bytes_max: usize) -> bool {
        self.events.contains_key(&event.id) || self.bytes + Kept::size(event) <= bytes_max
    }

    fn add(&mut self, waiting: &Waiting) {
        let Some(event) = &waiting.kept else { return };
        let deliveries = self.events.entry(event.id).or_default();
        *deliveries += 1;
        if *deliveries == 1 {
            self.bytes += Kept::size(event);
        }
    }

    fn remove(&mut self, waiting: &Waiting) {
        let Some(event) = &waiting.kept else { return };
        let Entry::Occupied(mut deliveries) = self.events.entry(event.id) else { return };
        *deliveries.get_mut() -= 1;
        if *deliveries.get() == 0 {
            deliveries.remove();
            self.bytes -= Kept::size(event);
        }
    }
}

/// All that waits, by webhook, within a bound for all of them.
pub(in crate::dispatch) struct Deferred {
    max: usize,
    /// Of events kept with their payloads.
    kept_bytes_max: usize,
    inner: Mutex<Inner>,
    pub(super) came: Notify,
}

#[derive(Default)]
pub(super) struct Inner {
    total: usize,
    kept: Kept,
    pub(super) queues: HashMap<WebhookId, VecDeque<Waiting>>,
    /// Whose turn it is; each webhook with a queue is in it once.
    pub(super) turns: VecDeque<WebhookId>,
}

impl Deferred {
    pub(in crate::dispatch) fn new(max: usize, kept_bytes_max: usize) -> Deferred {
        Deferred { max, kept_bytes_max, inner: Mutex::default(), came: Notify::new() }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deliveries that wait.
    pub(in crate::dispatch) fn len(&self) -> usize {
        self.inner().total
    }

    /// Whether some of this webhook wait already. What comes after them goes behind them.
    pub(in crate::dispatch) fn waits_for(&self, webhook: WebhookId) -> bool {
        let inner = self.inner();
        inner.total > 0 && inner.queues.contains_key(&webhook)
    }

    /// Takes one in, if its lane is likely to come to it in time. A webhook may have what the others leave free, and so
    /// never more than half.
    pub(super) fn push(&self, webhook: WebhookId, load: Load, mut waiting: Waiting) -> bool {
        let mut inner = self.inner();
        let queue = inner.queues.get(&webhook).map_or(0, VecDeque::len);
        let wait = load.gap * (load.queued + queue) as f64;
        if load.slow || load.open || wait > WAIT_MAX.as_secs_f64() || queue >= self.max - inner.total {
            return false;
        }
        if queue == 0 {
            inner.turns.push_back(webhook);
        }
        waiting.kept = waiting.kept.filter(|event| inner.kept.takes(event, self.kept_bytes_max));
        inner.kept.add(&waiting);
        inner.queues.entry(webhook).or_default().push_back(waiting);
        inner.total += 1;
        if inner.total == 1 {
            self.came.notify_one();
        }
        true
    }
}

impl Inner {
    /// Takes up to `max` out of the front of a queue, as long as `wanted` says so. A queue that is empty then is gone; its
    /// turn is the caller's to end.
    pub(super) fn take(
        &mut self,
        webhook: WebhookId,
        max: usize,
        mut wanted: impl FnMut(&Waiting) -> bool,
    ) -> Vec<Waiting> {
        let Some(queue) = self.queues.get_mut(&webhook) else { return Vec::new() };
        let n = queue.iter().take(max).take_while(|waiting| wanted(waiting)).count();
        let taken: Vec<Waiting> = queue.drain(..n).collect();
        self.total -= taken.len();
        taken.iter().for_each(|waiting| self.kept.remove(waiting));
        if queue.is_empty() {
            self.queues.remove(&webhook);
        }
        taken
    }

    pub(super) fn put_back(&mut self, webhook: WebhookId, waiting: Waiting) {
        if !self.queues.contains_key(&webhook) {
            self.turns.push_back(webhook);
        }
        self.kept.add(&waiting);
        self.queues.entry(webhook).or_default().push_front(waiting);
        self.total += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Load = Load { busy: true, slow: false, open: false, queued: 10, gap: 0.001 };

    fn waiting(event: i64) -> Waiting {
        let entry = Arc::new(Open::new("1-0".into(), 1, 1, false));
        Waiting { event: EventId(event), account: AccountId(1), size: 100, entry, kept: None }
    }

    fn with_event(id: i64) -> Waiting {
        let event = Event {
            id: EventId(id),
            account: AccountId(1),
            kind: "paid".into(),
            payload: bytes::Bytes::from(vec![b'1'; 100]),
            created_at: crate::model::Timestamp(0),
            trace: None,
        };
        Waiting { kept: Some(Arc::new(event)), ..waiting(id) }
    }

    fn events(taken: &[Waiting]) -> Vec<i64> {
        taken.iter().map(|waiting| waiting.event.0).collect()
    }

    #[tokio::test]
    async fn only_what_a_fast_lane_soon_comes_to_is_taken_in() {
        let deferred = Deferred::new(100, 1000);
        let push = |load| deferred.push(WebhookId(1), load, waiting(1));
        assert!(!push(Load { slow: true, ..FAST }) && !push(Load { open: true, ..FAST }));
        assert!(!push(Load { gap: 4.0, ..FAST }), "forty seconds of work are before it");
        assert!(push(Load { gap: 3.0, ..FAST }));
        assert!(!push(Load { gap: 3.0, ..FAST }), "the one before it counts");
        assert_eq!(deferred.len(), 1);
    }

    #[tokio::test]
    async fn one_webhook_leaves_half_to_the_others() {
        let deferred = Deferred::new(100, 1000);
        let fill =
            |webhook| (0..).take_while(|n| deferred.push(WebhookId(webhook), FAST, waiting(*n))).count();
        assert_eq!((fill(1), fill(2), fill(1)), (50, 25, 0));
    }

    #[tokio::test]
    async fn payloads_are_kept_as_long_as_there_is_room() {
        let deferred = Deferred::new(100, 3 * (100 + 4 + EVENT_BYTES));
        let push = |id| assert!(deferred.push(WebhookId(1), FAST, with_event(id)));
        (0..5).for_each(push);
        let mut inner = deferred.inner();
        let kept = |taken: &[Waiting]| taken.iter().map(|waiting| waiting.kept.is_some()).collect::<Vec<_>>();
        let mut taken = inner.take(WebhookId(1), 2, |_| true);
        assert_eq!(kept(&taken), [true, true]);
        inner.put_back(WebhookId(1), taken.pop().unwrap());
        drop(inner);
        // One has gone, so there is room for one.
        (5..7).for_each(push);
        let mut inner = deferred.inner();
        let rest = inner.take(WebhookId(1), usize::MAX, |_| true);
        assert_eq!(events(&rest), [1, 2, 3, 4, 5, 6]);
        assert_eq!(kept(&rest), [true, true, false, false, true, false]);
        assert_eq!(inner.kept.bytes, 0);
    }

    #[tokio::test]
    async fn a_payload_that_many_wait_for_is_counted_once() {
        let deferred = Deferred::new(1000, 2 * (100 + 4 + EVENT_BYTES));
        let push = |webhook, id| assert!(deferred.push(WebhookId(webhook), FAST, with_event(id)));
        for webhook in 0..50 {
            (0..3).for_each(|id| push(webhook, id));
        }
        let mut inner = deferred.inner();
        for webhook in 0..50 {
            assert_eq!(inner.kept.bytes, 2 * (100 + 4 + EVENT_BYTES), "as long as one waits for it");
            let taken = inner.take(WebhookId(webhook), usize::MAX, |_| true);
            let kept: Vec<bool> = taken.iter().map(|waiting| waiting.kept.is_some()).collect();
            assert_eq!(kept, [true, true, false]);
        }
        assert_eq!((inner.kept.bytes, inner.kept.events.len()), (0, 0));
    }

    #[tokio::test]
    async fn they_come_out_in_order_and_go_back_in_order() {
        let deferred = Deferred::new(100, 1000);
        for n in 0..5 {
            deferred.push(WebhookId(1), FAST, waiting(n));
        }
        let mut inner = deferred.inner();
        let taken = inner.take(WebhookId(1), 3, |_| true);
        assert_eq!((events(&taken), inner.total), (vec![0, 1, 2], 2));
        for waiting in taken.into_iter().rev() {
            inner.put_back(WebhookId(1), waiting);
        }
        let all = inner.take(WebhookId(1), usize::MAX, |waiting| waiting.event.0 < 4);
        assert_eq!(events(&all), [0, 1, 2, 3]);
        assert_eq!(events(&inner.take(WebhookId(1), 1, |_| true)), [4]);
        assert_eq!((inner.total, inner.queues.len()), (0, 0));
    }
}
