//! Lanes at every bound they have.

use super::*;
use crate::model::WebhookId;

const PROBE_MAX: Duration = Duration::from_secs(30);

const ALLOWED: Allowed = Allowed { in_flight_max: 2, rate: None, calls: None, probe_max: PROBE_MAX };

fn limits() -> Limits {
    Limits {
        queue_max: 3,
        retries_max: 1,
        hold: Duration::from_secs(2),
        idle: Duration::from_secs(60),
        breaker: BreakerSettings {
            failures: 4,
            probe_first: Duration::from_secs(1),
            probe_max: Duration::from_secs(30),
        },
    }
}

const QUICK: Duration = Duration::from_millis(5);

#[tokio::test(start_paused = true)]
async fn in_flight_then_queued_then_parked() {
    let lane = Lane::new(limits());
    for n in 0..2 {
        assert!(matches!(lane.admit(n, Kind::First, ALLOWED), Admission::Start(_)));
    }
    for n in 2..5 {
        assert!(matches!(lane.admit(n, Kind::First, ALLOWED), Admission::Queued));
    }
    assert!(matches!(lane.admit(5, Kind::First, ALLOWED), Admission::Full(5)));
    assert_eq!(lane.done(Outcome::Delivered, QUICK).next, Some(2));
    assert!(matches!(lane.admit(6, Kind::Retry, ALLOWED), Admission::Queued));
    assert_eq!(lane.done(Outcome::Delivered, QUICK).next, Some(3));
    assert!(matches!(lane.admit(7, Kind::Retry, ALLOWED), Admission::Full(7)), "retries have a share");
    for n in [4, 6] {
        assert_eq!(lane.done(Outcome::Delivered, QUICK).next, Some(n));
    }
    assert_eq!(lane.done(Outcome::Delivered, QUICK).next, None);
    assert_eq!(lane.done(Outcome::Delivered, QUICK).next, None);
    assert!(matches!(lane.admit(8, Kind::First, ALLOWED), Admission::Start(8)));
}

#[tokio::test(start_paused = true)]
async fn the_window_grows_with_successes_and_shrinks_with_time_outs() {
    let allowed = Allowed { in_flight_max: 64, ..ALLOWED };
    let breaker = BreakerSettings { failures: 16, ..limits().breaker };
    let lane = Lane::new(Limits { queue_max: 100, breaker, ..limits() });
    let mut started = 0;
    for n in 0..50 {
        started += usize::from(matches!(lane.admit(n, Kind::First, allowed), Admission::Start(_)));
    }
    assert_eq!(started, 4, "little is sent to an endpoint that is not known");
    let next = lane.done(Outcome::Delivered, QUICK);
    assert!(next.next.is_some() && next.more.is_some(), "one more than before");
    assert_eq!(lane.standing().in_flight, 5);
    let next = lane.done(Outcome::TimedOut, Duration::from_secs(15));
    assert!(next.next.is_none() && lane.standing().in_flight_limit == 2);
    assert!(lane.load().slow, "slow after a time-out");
    assert!(lane.standing().queued > 4, "what was queued before may stay for the hold");
    assert!(
        matches!(lane.admit(99, Kind::First, allowed), Admission::Full(99)),
        "a slow lane's queue is short"
    );
}

#[tokio::test(start_paused = true)]
async fn no_outcome_for_a_second_makes_a_lane_slow() {
    let lane = Lane::new(limits());
    lane.admit(1, Kind::First, ALLOWED);
    assert!(lane.load().busy && !lane.load().slow);
    tokio::time::advance(Duration::from_millis(1100)).await;
    assert!(lane.load().busy && lane.load().slow);
    lane.done(Outcome::Delivered, Duration::from_millis(1100));
    assert!(!lane.load().busy && !lane.load().slow);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_shelves_everything_and_lets_one_probe_out() {
    let lane = Lane::new(limits());
    for n in 0..4 {
        lane.admit(n, Kind::First, ALLOWED);
    }
    lane.done(Outcome::Failed, QUICK);
    for _ in 0..2 {
        assert_eq!(lane.done(Outcome::Failed, QUICK).change, None);
    }
    lane.admit(8, Kind::First, ALLOWED);
    lane.admit(9, Kind::First, ALLOWED);
    lane.admit(10, Kind::First, ALLOWED);
    let next = lane.done(Outcome::Failed, QUICK);
    assert_eq!((next.change, next.next, next.more), (Some(Change::Opened), None, None));
    assert_eq!(next.shelve, [9, 10]);
    assert!(matches!(lane.admit(11, Kind::First, ALLOWED), Admission::Shelve(11)));
    assert_eq!((lane.errand(), lane.room()), (None, 0));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(lane.errand(), Some(Errand::Probe));
    assert_eq!(lane.errand(), None, "one at a time");
    lane.begin_probe();
    assert_eq!(lane.done(Outcome::Delivered, QUICK).change, Some(Change::Closed));
    assert_eq!(lane.errand(), Some(Errand::Pull), "what is shelved is wanted back");
    assert_eq!(lane.errand(), None);
    lane.pulled(false);
    assert_eq!(lane.errand(), None);
}

#[tokio::test(start_paused = true)]
async fn what_may_wait_for_seconds_only_is_probed_for_within_them() {
    let lane = Lane::new(limits());
    let hasty = Allowed { probe_max: Duration::from_secs(2), ..ALLOWED };
    lane.admit(0, Kind::First, ALLOWED);
    lane.done(Outcome::TimedOut, QUICK);
    for seconds in [1, 2, 4, 8] {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        assert_eq!(lane.errand(), Some(Errand::Probe));
        lane.begin_probe();
        lane.done(Outcome::Failed, QUICK);
    }
    assert!(matches!(lane.admit(1, Kind::First, hasty), Admission::Shelve(1)));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(lane.errand(), Some(Errand::Probe), "not after 16 seconds");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_bounds_what_waits_in_memory() {
    let allowed = Allowed { in_flight_max: 64, rate: Some(2.0), ..ALLOWED };
    let lane = Lane::new(Limits { queue_max: 100, ..limits() });
    assert!(matches!(lane.admit(0, Kind::First, allowed), Admission::Start(_)));
    assert!(matches!(lane.admit(1, Kind::First, allowed), Admission::Queued));
    assert!(matches!(lane.admit(2, Kind::First, allowed), Admission::Queued));
    assert!(matches!(lane.admit(3, Kind::First, allowed), Admission::Full(3)));
    let waits: Vec<Duration> = (3..8)
        .map(|_| match lane.overflow() {
            Overflow::Park(wait) => wait,
            Overflow::Shelve(why) => panic!("{why:?}"),
        })
        .collect();
    assert!(waits.windows(2).all(|w| (w[1] - w[0]).as_millis().abs_diff(500) < 5), "{waits:?}");
    assert_eq!((8..100).map(|_| lane.overflow()).last(), Some(Overflow::Shelve(Why::Backlog)));
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_comes_out_to_be_parked() {
    let lane = Lane::new(limits());
    for n in 0..4 {
        lane.admit(n, Kind::First, ALLOWED);
    }
    tokio::time::advance(Duration::from_millis(900)).await;
    lane.admit(4, Kind::First, ALLOWED);
    assert!(lane.overdue().is_empty());
    tokio::time::advance(Duration::from_millis(1500)).await;
    assert_eq!(lane.overdue().len(), 2);
    assert_eq!(lane.clear(), [4]);
}

#[tokio::test(start_paused = true)]
async fn idle_lanes_are_forgotten() {
    let lanes: Lanes<i32> = Lanes::new(limits());
    lanes.of(WebhookId(1));
    let busy = lanes.of(WebhookId(2));
    busy.admit(1, Kind::First, ALLOWED);
    tokio::time::advance(Duration::from_secs(61)).await;
    drop(busy);
    assert_eq!(lanes.tidy().lanes, 1);
}
