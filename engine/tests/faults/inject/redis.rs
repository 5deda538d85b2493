//! Redis that forgets, stalls, refuses, or is not there.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{index, site::Site};

pub(super) async fn restarted(site: &mut Site, with_its_file: bool) {
    site.redis.kill().expect("killed");
    site.rest(Duration::from_secs(2)).await;
    if !with_its_file {
        std::fs::remove_dir_all(site.place.dir.join("redis/appendonlydir")).expect("its file");
    }
    site.redis.restart().expect("restarted");
}

pub(super) async fn wiped(site: &mut Site, times: u32) {
    for n in 0..times {
        if n > 0 {
            site.rest(Duration::from_millis(700)).await;
        }
        index::command(&site.redis.url(), &["FLUSHALL"]).await;
    }
}

pub(super) async fn stalled(site: &mut Site, ms: u64) {
    let signal = |signal| {
        let pid = Pid::from_raw(site.redis.pid().cast_signed()).expect("a process");
        kill_process(pid, signal).expect("it runs");
    };
    signal(Signal::STOP);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    signal(Signal::CONT);
}

pub(super) async fn full(site: &mut Site) {
    let url = site.redis.url();
    index::command(&url, &["CONFIG", "SET", "maxmemory", "1"]).await;
    site.rest(Duration::from_secs(3)).await;
    index::command(&url, &["CONFIG", "SET", "maxmemory", "0"]).await;
}
