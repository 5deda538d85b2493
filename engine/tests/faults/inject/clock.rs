//! Wall clocks that are wrong. Nothing may depend on them but what receivers are told.

use std::time::Duration;

use super::process::leave;
use crate::{node::Role, site::Site};

/// A gateway and a dispatcher join whose clocks are so many seconds off, and leave again.
pub(super) async fn wrong(site: &mut Site, seconds: i64) {
    let failpoint = format!("clock={seconds}");
    let mut gateway = site.node(Role::Gateway, &failpoint).await;
    let mut dispatcher = site.node(Role::Dispatcher, &failpoint).await;
    site.tell_producers(Some(&gateway));
    site.rest(Duration::from_secs(4)).await;
    site.tell_producers(None);
    leave(&mut gateway).await;
    leave(&mut dispatcher).await;
}
