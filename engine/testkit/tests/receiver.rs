//! The receiver does to a real client what its script says.

use std::time::{Duration, Instant};

use eventpulse_testkit::{Receiver, Reply, eventually};

fn client() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().expect("client")
}

#[tokio::test]
async fn requests_are_recorded_in_order_and_counted() {
    let receiver = Receiver::start().await;
    let client = client();
    for n in 0..3 {
        let reply = client
            .post(receiver.url(&format!("/hook/{n}?q=1")))
            .header("x-test", "yes")
            .body(format!("body {n}"))
            .send()
            .await
            .expect("reply");
        assert_eq!(reply.status(), 200);
    }
    assert_eq!(receiver.count(), 3);
    assert_eq!(receiver.concurrency_max(), 1);
    let requests = receiver.requests();
    for (n, request) in requests.iter().enumerate() {
        assert_eq!(request.n, n);
        assert_eq!(request.path, format!("/hook/{n}?q=1"));
        assert_eq!(request.headers["x-test"], "yes");
        assert_eq!(request.body, format!("body {n}"));
    }
    assert!(requests[0].at <= requests[2].at);

    receiver.clear();
    assert_eq!((receiver.count(), receiver.requests().len()), (0, 0));
    receiver.keep_bodies(false);
    receiver.script(|request| Reply::status(201).with_body(request.body.clone()));
    let reply = client.post(receiver.url("/")).body("echo").send().await;
    let reply = reply.expect("reply");
    assert_eq!(reply.status(), 201);
    assert_eq!(reply.text().await.expect("body"), "echo");
    assert!(receiver.requests()[0].body.is_empty());
    assert_eq!(receiver.requests()[0].n, 0);
}

#[tokio::test]
async fn a_script_answers_by_the_request() {
    let receiver = Receiver::start().await;
    receiver.script(|request| match request.n {
        0 => Reply::status(503).with_header("retry-after", "7"),
        1 => Reply::redirect("http://127.0.0.1:1/elsewhere"),
        _ => Reply::ok().with_delay(Duration::from_millis(100)),
    });
    let client = client();
    let get = || client.get(receiver.url("/")).send();
    let busy = get().await.expect("reply");
    assert_eq!(busy.status(), 503);
    assert_eq!(busy.headers()["retry-after"], "7");
    let moved = get().await.expect("reply");
    assert_eq!(moved.status(), 302);
    assert_eq!(moved.headers()["location"], "http://127.0.0.1:1/elsewhere");
    let start = Instant::now();
    assert_eq!(get().await.expect("reply").status(), 200);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::reset());
    // Raw, as a client library may hide the difference between a reset and an orderly end.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(receiver.addr()).await.expect("connect");
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi").await.expect("write");
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).await.expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(bytes.is_empty());
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn a_hang_lasts_until_the_client_gives_up() {
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::hang());
    let sent = client().get(receiver.url("/")).timeout(Duration::from_millis(150)).send().await;
    assert!(sent.expect_err("no answer").is_timeout());
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn a_slow_body_comes_in_pieces() {
    let receiver = Receiver::start().await;
    let text = "0123456789";
    receiver.script(move |_| Reply::slow_body(text, 4, Duration::from_millis(50)));
    let start = Instant::now();
    let mut reply = client().get(receiver.url("/")).send().await.expect("headers come at once");
    assert_eq!(reply.content_length(), Some(10));
    let mut body = Vec::new();
    let mut pieces = 0;
    while let Some(piece) = reply.chunk().await.expect("piece") {
        body.extend_from_slice(&piece);
        pieces += 1;
    }
    assert_eq!(body, text.as_bytes());
    assert!(pieces >= 2, "{pieces}");
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn open_requests_are_counted_together() {
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(300)));
    let client = client();
    let sent: Vec<_> = (0..5).map(|_| tokio::spawn(client.get(receiver.url("/")).send())).collect();
    eventually("five at once", Duration::from_secs(5), async || match receiver.concurrency_max() {
        5 => Ok(()),
        n => Err(format!("{n}")),
    })
    .await;
    for reply in sent {
        assert_eq!(reply.await.expect("task").expect("reply").status(), 200);
    }
}

#[tokio::test]
async fn a_receiver_can_come_back_on_its_port() {
    let first = Receiver::start().await;
    let (url, port) = (first.url("/"), first.addr().port());
    let client = client();
    client.get(&url).send().await.expect("up");
    drop(first);
    client.get(&url).send().await.expect_err("down");
    let second = Receiver::start_on(port).await;
    client.get(&url).send().await.expect("up again");
    assert_eq!(second.count(), 1);
}

/// Not a figure to quote, only a floor: a receiver this slow would be what a bench measures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_requests_go_through_quickly() {
    let receiver = Receiver::start().await;
    receiver.keep_bodies(false);
    let (workers, each) = (32, 100);
    let start = Instant::now();
    let client = client();
    let tasks: Vec<_> = (0..workers)
        .map(|_| {
            let (client, url) = (client.clone(), receiver.url("/"));
            tokio::spawn(async move {
                for _ in 0..each {
                    let reply = client.post(&url).body("x").send().await.expect("reply");
                    assert_eq!(reply.status(), 200);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("worker");
    }
    assert_eq!(receiver.count(), workers * each);
    assert!(receiver.concurrency_max() <= workers);
    assert!(start.elapsed() < Duration::from_secs(20));
}
