//! The pool over connections whose peers are in the test's hand.

use super::*;

fn origin(uri: &str) -> Origin {
    Origin::of(&uri.parse().unwrap()).unwrap()
}

fn pool(idle_max: usize) -> Arc<Pool> {
    let long = Duration::from_secs(60);
    Pool::new(Limits { idle: long, age_max: long, idle_max }, Arc::new(Metrics::new()))
}

/// A connection whose peer is held by the test.
fn connection(pool: &Arc<Pool>) -> (H1, tokio::io::DuplexStream) {
    let (ours, peers) = tokio::io::duplex(1024);
    (H1::new(ours, pool.next_id()), peers)
}

fn slots(pool: &Pool) -> usize {
    pool.lock().slots.len()
}

#[tokio::test]
async fn the_last_one_returned_is_the_first_one_taken_and_an_empty_origin_is_forgotten() {
    let (pool, at) = (pool(10), origin("http://a.example"));
    let (one, peer_one) = connection(&pool);
    let (two, peer_two) = connection(&pool);
    let (first, last) = (one.id, two.id);
    pool.put(&at, one, None);
    pool.put(&at, two, None);
    let Checkout::H1(taken) = pool.checkout(&at, false, true) else { panic!("none") };
    assert_eq!(taken.id, last);
    assert!(matches!(pool.checkout(&at, true, true), Checkout::Open(None)), "a fresh one was asked for");
    let Checkout::H1(other) = pool.checkout(&at, false, true) else { panic!("none") };
    assert_eq!(other.id, first);
    assert_eq!(slots(&pool), 1, "kept for a while");
    assert!(matches!(pool.checkout(&at, false, true), Checkout::Open(None)));
    assert_eq!(slots(&pool), 0);
    pool.put(&at, other, None);
    drop((peer_one, peer_two));
    while slots(&pool) > 0 {
        tokio::time::sleep(TICK_MIN).await;
    }
    assert_eq!(pool.lock().resting.len(), 0);
    // One that was taken and does not come back.
    let (three, _peer) = connection(&pool);
    pool.put(&at, three, None);
    let Checkout::H1(taken) = pool.checkout(&at, false, true) else { panic!("none") };
    drop(taken);
    assert_eq!(slots(&pool), 1);
    tokio::time::pause();
    while pool.lock().sweeping {
        tokio::time::sleep(TICK_MAX).await;
    }
    assert_eq!(slots(&pool), 0);
}

#[tokio::test]
async fn one_origin_has_its_limit_and_all_together_have_theirs() {
    let (all, at) = (pool(2 * IDLE_PER_ORIGIN), origin("http://a.example"));
    let mut peers = Vec::new();
    for _ in 0..IDLE_PER_ORIGIN + 5 {
        let (h1, peer) = connection(&all);
        all.put(&at, h1, None);
        peers.push(peer);
    }
    assert_eq!(all.lock().resting.len(), IDLE_PER_ORIGIN);
    let all = pool(3);
    for n in 0..20 {
        let at = origin(&format!("http://{n}.example"));
        let (h1, peer) = connection(&all);
        all.put(&at, h1, None);
        peers.push(peer);
    }
    assert_eq!(all.lock().resting.len(), 3);
    assert_eq!(slots(&all), 3);
    assert!(matches!(all.checkout(&origin("http://19.example"), false, true), Checkout::H1(_)));
    assert!(matches!(all.checkout(&origin("http://16.example"), false, true), Checkout::Open(_)));
}

#[tokio::test]
async fn callers_wait_for_the_first_tls_connection_and_for_no_plain_one() {
    let pool = pool(10);
    let plain = origin("http://a.example");
    assert!(matches!(pool.checkout(&plain, false, true), Checkout::Open(None)));
    let at = origin("https://a.example");
    let Checkout::Open(Some(opening)) = pool.checkout(&at, false, true) else { panic!("no opening") };
    let Checkout::Wait(waiter) = pool.checkout(&at, false, true) else { panic!("no wait") };
    assert!(matches!(pool.checkout(&at, false, false), Checkout::Open(None)));
    // As when it failed, or its call was dropped.
    drop(opening);
    assert!(!waiter.wait().await);
    assert_eq!(slots(&pool), 0);
}
