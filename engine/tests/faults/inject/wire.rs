//! Connections that end in the middle.

use std::time::Duration;

use crate::site::Site;

pub(super) async fn cut(site: &mut Site, times: u64) {
    for _ in 0..times {
        site.postgres_proxy.cut_all().await;
        site.redis_proxy.cut_all().await;
        site.rest(Duration::from_millis(600)).await;
    }
}
