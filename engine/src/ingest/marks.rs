//! Writes the marks of streamed batches, a few times a second.
//!
//! Not with the next commit: a commit of one event took a fifth longer for it. And a batch that is delivered before its
//! mark is written is gone by then, and costs no mark at all.

use std::time::Duration;

use tokio::sync::watch;

use crate::store::Link;
use crate::stream::Handle;

/// Marks of one statement.
const MARKS_MAX: usize = 4096;

/// Runs until `stop` is set, and then writes once more what there is.
pub async fn run(
    handle: Handle,
    mut link: Link,
    owner: i64,
    every: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut last = false;
    while !last {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = crate::stopped(&mut stop) => last = true,
        }
        let marks = handle.take_marks(MARKS_MAX);
        if marks.is_empty() {
            continue;
        }
        match link.mark(&marks, owner).await {
            Ok(()) => handle.marked(&marks),
            Err(error) => {
                tracing::debug!(error = crate::chain(&error), "marks wait for Postgres");
                handle.unmarked(marks);
            }
        }
    }
}
