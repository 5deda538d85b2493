//! Endpoints that all fail at once.

use std::time::Duration;

use crate::{site::Site, world::Mood};

pub(super) async fn in_mood(site: &mut Site, mood: Mood) {
    site.world().log.set(mood);
    site.rest(Duration::from_secs(3)).await;
    site.world().log.set(Mood::Usual);
}
