//! The parts alone: COPY, a single INSERT, rows of attempts, and the stream, each by the library that the engine uses.

use std::{
    hint::black_box,
    pin::pin,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio_postgres::{Client, NoTls};

use super::spread;
use crate::{stack::Error, wire};

/// What a part did in its time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub done: u64,
    pub seconds: f64,
    /// Median milliseconds of one round trip.
    pub each_ms: f64,
}

/// A table like that of the events, with the same indexes.
const TABLE: &str =
    "DROP TABLE IF EXISTS bench_events; CREATE TABLE bench_events (LIKE events INCLUDING ALL)";

/// A connection whose task ends with it.
///
/// # Errors
/// When Postgres does not answer.
pub async fn postgres(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("SET synchronous_commit = on").await?;
    Ok(client)
}

/// Rows in the binary form of COPY, numbered from `first`.
fn rows(first: i64, n: usize, payload: &str) -> Bytes {
    let kind = "order.created";
    let mut out = BytesMut::with_capacity(32 + n * (60 + kind.len() + payload.len()));
    out.put_slice(b"PGCOPY\n\xff\r\n\0");
    out.put_i32(0);
    out.put_i32(0);
    for id in first..first + n as i64 {
        out.put_i16(5);
        for number in [id, 1] {
            out.put_i32(8);
            out.put_i64(number);
        }
        for text in [kind, payload] {
            out.put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX));
            out.put_slice(text.as_bytes());
        }
        // Microseconds since 2000: any moment will do.
        out.put_i32(8);
        out.put_i64(800_000_000_000_000);
    }
    out.put_i16(-1);
    out.freeze()
}

/// COPY of `batch` rows a commit, one commit after the other.
///
/// # Errors
/// When Postgres refuses.
pub async fn copy(client: &Client, batch: usize, size: usize, length: Duration) -> Result<Work, Error> {
    client.batch_execute(TABLE).await?;
    let statement = client
        .prepare("COPY bench_events (id, account_id, type, payload, created_at) FROM STDIN BINARY")
        .await?;
    let payload = wire::payload(size);
    repeat(length, batch as u64, async |n| {
        let piece = rows(n as i64 * batch as i64, batch, &payload);
        let mut sink = pin!(client.copy_in::<_, Bytes>(&statement).await?);
        sink.send(piece).await?;
        sink.finish().await?;
        Ok(())
    })
    .await
}

/// One row a commit.
///
/// # Errors
/// When Postgres refuses.
pub async fn insert(client: &Client, size: usize, length: Duration) -> Result<Work, Error> {
    client.batch_execute(TABLE).await?;
    let statement = client
        .prepare("INSERT INTO bench_events (id, account_id, type, payload, created_at) VALUES ($1, 1, $2, $3, now())")
        .await?;
    let payload = wire::payload(size);
    repeat(length, 1, async |n| {
        client.execute(&statement, &[&(n as i64), &"order.created", &payload]).await?;
        Ok(())
    })
    .await
}

/// One entry for each batch, as the engine writes it.
///
/// # Errors
/// When Redis refuses.
pub async fn xadd(url: &str, length: Duration) -> Result<Work, Error> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let work = repeat(length, 1, async |n| {
        let mut pipe = redis::pipe();
        let command = pipe.cmd("XADD").arg("bench").arg("*");
        for (field, value) in [("v", 1), ("first", n * 1024), ("n", 128), ("config", 7), ("check", 0)] {
            command.arg(field).arg(value);
        }
        command.ignore();
        Ok(pipe.query_async::<()>(&mut connection.clone()).await?)
    })
    .await;
    redis::cmd("DEL").arg("bench").query_async::<()>(&mut connection).await?;
    work
}

/// One entry for each batch through the stream: added, read by a group, acked and deleted.
///
/// # Errors
/// When Redis refuses.
pub async fn stream(url: &str, length: Duration) -> Result<Work, Error> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let made = redis::cmd("XGROUP").arg(&["CREATE", "bench", "g", "$", "MKSTREAM"]).to_owned();
    made.query_async::<()>(&mut connection).await?;
    let work = repeat(length, 1, async |n| {
        let mut pipe = redis::pipe();
        let added = pipe.cmd("XADD").arg("bench").arg(n + 1);
        for (field, value) in [("v", 1), ("first", n * 1024), ("n", 128), ("config", 7), ("check", 0)] {
            added.arg(field).arg(value);
        }
        pipe.query_async::<()>(&mut connection.clone()).await?;
        let read = redis::cmd("XREADGROUP")
            .arg(&["GROUP", "g", "c", "COUNT", "16", "STREAMS", "bench", ">"])
            .to_owned();
        read.query_async::<redis::Value>(&mut connection.clone()).await?;
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("XACK").arg("bench").arg("g").arg(n + 1);
        pipe.cmd("XDEL").arg("bench").arg(n + 1);
        Ok(pipe.query_async::<()>(&mut connection.clone()).await?)
    })
    .await;
    redis::cmd("DEL").arg("bench").query_async::<()>(&mut connection).await?;
    work
}

/// One signature of an event's body: HMAC-SHA256 with a key that is ready.
pub fn sign(size: usize, length: Duration) -> Work {
    let key = Hmac::<Sha256>::new_from_slice(b"whsec_bench").expect("HMAC takes a key of any length");
    let body = wire::event(wire::KIND, size);
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < length {
        for _ in 0..1000 {
            let mut mac = key.clone();
            mac.update(black_box(body.as_bytes()));
            black_box(mac.finalize());
        }
        done += 1000;
    }
    Work { done, seconds: start.elapsed().as_secs_f64(), each_ms: 0.0 }
}

/// Most entries that one read asks for, as the floor of it was measured.
const READ_MAX: usize = 256;

/// An entry with its payload for each event: `batch` of them added by one pipeline, read by a group, acked and deleted together.
///
/// # Errors
/// When Redis refuses.
pub async fn stream_each(url: &str, size: usize, batch: usize, length: Duration) -> Result<Work, Error> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let made = redis::cmd("XGROUP").arg(&["CREATE", "bench", "g", "$", "MKSTREAM"]).to_owned();
    made.query_async::<()>(&mut connection).await?;
    let payload = wire::event(wire::KIND, size);
    let work = repeat(length, batch as u64, async |n| {
        let ids: Vec<String> = (1..=batch).map(|at| format!("{}-{at}", n + 1)).collect();
        let mut pipe = redis::pipe();
        for id in &ids {
            pipe.cmd("XADD").arg("bench").arg(id).arg("id").arg(n).arg("event").arg(payload.as_str());
            pipe.ignore();
        }
        pipe.query_async::<()>(&mut connection.clone()).await?;
        for _ in 0..batch.div_ceil(READ_MAX) {
            let mut read = redis::cmd("XREADGROUP");
            read.arg(&["GROUP", "g", "c", "COUNT"]).arg(READ_MAX).arg(&["STREAMS", "bench", ">"]);
            read.query_async::<redis::Value>(&mut connection.clone()).await?;
        }
        let mut pipe = redis::pipe();
        pipe.cmd("XACK").arg("bench").arg("g").arg(&ids).cmd("XDEL").arg("bench").arg(&ids);
        Ok(pipe.query_async::<()>(&mut connection.clone()).await?)
    })
    .await;
    redis::cmd("DEL").arg("bench").query_async::<()>(&mut connection).await?;
    work
}

/// Rows of attempts, `batch` a commit, in a table with the index that attempts have.
///
/// # Errors
/// When Postgres refuses.
pub async fn attempts(client: &Client, batch: usize, length: Duration) -> Result<Work, Error> {
    client
        .batch_execute(
            "DROP TABLE IF EXISTS bench_attempts;
             CREATE TABLE bench_attempts (LIKE delivery_attempts INCLUDING ALL)",
        )
        .await?;
    let statement = client
        .prepare(
            "INSERT INTO bench_attempts (event_id, webhook_id, round, attempt, status, response_code, reason_code,
                duration_ms, created_at)
             SELECT id, 1, 0, 1, status, 200, reason, 1, now()
             FROM unnest($1::bigint[], $2::text[], $3::text[]) AS a (id, status, reason)",
        )
        .await?;
    let (status, reason) = (vec!["success"; batch], vec!["delivered"; batch]);
    repeat(length, batch as u64, async |n| {
        let first = n as i64 * batch as i64;
        let ids: Vec<i64> = (first..first + batch as i64).collect();
        client.execute(&statement, &[&ids, &status, &reason]).await?;
        Ok(())
    })
    .await
}

async fn repeat(
    length: Duration,
    each: u64,
    mut once: impl AsyncFnMut(u64) -> Result<(), Error>,
) -> Result<Work, Error> {
    let (start, mut n, mut times) = (Instant::now(), 0, Vec::new());
    while start.elapsed() < length {
        let began = Instant::now();
        once(n).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        n += 1;
    }
    Ok(Work { done: n * each, seconds: start.elapsed().as_secs_f64(), each_ms: spread(times).0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_holds_what_copy_expects() {
        let buffer = rows(7, 2, "{}");
        assert!(buffer.starts_with(b"PGCOPY\n\xff\r\n\0") && buffer.ends_with(&[0xff, 0xff]));
        assert_eq!(buffer.len(), 19 + 2 * (2 + 2 * 12 + 4 + 13 + 4 + 2 + 12) + 2);
    }
}
