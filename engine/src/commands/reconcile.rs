//! `eventpulse reconcile`: has Redis's index made again from Postgres by the processes that run, and says what is owed.

use std::{fmt::Write as _, time::Duration};

use clap::Args;

use crate::{
    config::Config,
    store::{self, Store, summary::Summary},
    stream::{
        self, Keys, Redis,
        epoch::{Epochs, Found},
    },
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What may be asked for.
#[derive(Args)]
pub struct Options {
    /// Say what is owed and change nothing.
    #[arg(long)]
    check: bool,
    /// How long to wait until the index is in order.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "2m")]
    wait: Duration,
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Stream(#[from] stream::Error),
    #[error("the index is not in order after {0:?}: is a process running? It is made at the next start")]
    Waited(Duration),
}

/// # Errors
/// When Postgres or Redis cannot be reached, or nobody makes the index in time.
pub async fn run(config: &Config, options: Options) -> Result<(), Error> {
    let store = Store::new(config.database_url.reveal(), 1)?;
    let identity = store.identity().await?;
    let redis = Redis::new(config.redis_url.reveal(), &config.stream.roots, config.stream.reply_timeout)?;
    let keys = Keys::new(&identity.engine, 0);
    let mut epochs = Epochs::new(redis.commands()?, keys, identity.history);
    if !options.check {
        epochs.forget().await?;
        in_order(&mut epochs, options.wait).await?;
        println!("Redis's index was made again from Postgres");
    }
    let standing = matches!(epochs.look().await?, Found::InOrder(_));
    print!("{}", report(&store.summary().await?, standing));
    Ok(())
}

async fn in_order(epochs: &mut Epochs, wait: Duration) -> Result<(), Error> {
    let made = async {
        loop {
            if let Found::InOrder(_) = epochs.look().await? {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(wait, made).await.unwrap_or(Err(Error::Waited(wait)))
}

fn report(summary: &Summary, in_order: bool) -> String {
    let Summary { batches, unstreamed, oldest_batch, scheduled, dead_letters } = summary;
    let mut text = String::new();
    let oldest = oldest_batch.map_or_else(String::new, |age| format!(", the oldest {age:.0} s old"));
    let index = if in_order { "in order" } else { "not in order" };
    // Writing to a string does not fail.
    let _ = writeln!(text, "index in Redis        {index}");
    let _ = writeln!(text, "batches not settled   {batches} ({unstreamed} not streamed{oldest})");
    let total: i64 = scheduled.iter().map(|(_, n)| n).sum();
    let _ = writeln!(text, "deliveries scheduled  {total}");
    for (reason, n) in scheduled {
        let _ = writeln!(text, "  {reason:<20}{n}");
    }
    let _ = writeln!(text, "dead letters          {dead_letters}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_owed_and_why() {
        let summary = Summary {
            batches: 3,
            unstreamed: 1,
            oldest_batch: Some(12.4),
            scheduled: vec![("retry".to_owned(), 5), ("breaker".to_owned(), 2)],
            dead_letters: 0,
        };
        let text = report(&summary, true);
        assert!(text.contains("3 (1 not streamed, the oldest 12 s old)"), "{text}");
        assert!(text.contains("deliveries scheduled  7\n  retry               5\n"), "{text}");
    }
}
