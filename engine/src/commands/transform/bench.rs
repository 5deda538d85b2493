//! `eventpulse transform bench`: what calls of a module cost, by one thread and by two at once.

use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;

use super::{Error, Subject, event, hosted};
use crate::{
    config::Config,
    model::{Event, WebhookId},
    transform::{Host, Input, Module, Returns},
};

/// In flight for each thread, so that it does not wait for its next call.
const DEPTH: i64 = 2;

/// The first calls find caches cold.
const WARM_UP: u32 = 500;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    subject: Subject,
    /// Calls to measure, for each number of threads.
    #[arg(long, value_name = "N", default_value = "20000")]
    calls: NonZeroU32,
}

pub(super) async fn run(config: &Config, options: &Options) -> Result<(), Error> {
    let subject = &options.subject;
    let event = event::of_file(&subject.event)?;
    // Two threads and no more, of which the host gives a webhook one.
    let mut config = config.clone();
    config.transform.threads = 2;
    let (host, module) = hosted(&config, &subject.module).await?;
    let settings = subject.config()?;
    println!("threads  p50 us  p99 us  calls/s");
    for threads in 1..=2 {
        let load = Load {
            host: &host,
            module: &module,
            event: &event,
            settings: &settings,
            threads,
            returns: Returns::start(),
        };
        load.measure(WARM_UP.min(options.calls.get())).await?;
        let figures = load.measure(options.calls.get()).await?;
        println!("{threads:>7}  {:>6.1}  {:>6.1}  {:>7.0}", figures.p50, figures.p99, figures.per_second);
    }
    println!(
        "p50 and p99 are CPU time of a call; calls/s is measured through the host's queue, as deliveries use it"
    );
    Ok(())
}

struct Load<'a> {
    host: &'a Host,
    module: &'a Arc<Module>,
    event: &'a Arc<Event>,
    settings: &'a Arc<Vec<(String, String)>>,
    threads: i64,
    returns: Returns,
}

struct Figures {
    /// In microseconds.
    p50: f64,
    p99: f64,
    per_second: f64,
}

impl Load<'_> {
    async fn measure(&self, calls: u32) -> Result<Figures, Error> {
        let left = Cell::new(calls);
        let began = Instant::now();
        let workers =
            (0..self.threads * DEPTH).map(|number| self.work(WebhookId(1 + number % self.threads), &left));
        let mut times: Vec<Duration> = try_join_all(workers).await?.into_iter().flatten().collect();
        let seconds = began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        times.sort_unstable();
        Ok(Figures { p50: at(&times, 50), p99: at(&times, 99), per_second: f64::from(calls) / seconds })
    }

    /// Calls as long as there are any left, and gives back the CPU time of each.
    async fn work(&self, webhook: WebhookId, left: &Cell<u32>) -> Result<Vec<Duration>, Error> {
        let mut times = Vec::new();
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            let input =
                Input { event: self.event.clone(), webhook, version: 1, config: self.settings.clone() };
            let called = self.host.call_by(self.module, input, &self.returns).await;
            if let Err(failure) = called.result {
                return Err(Error::Failed { code: failure.kind.reason_code(), message: failure.message });
            }
            times.push(called.cpu);
        }
        Ok(times)
    }
}

/// Of sorted times, in microseconds.
fn at(times: &[Duration], percent: usize) -> f64 {
    let last = times.len().saturating_sub(1);
    times.get(last * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (0..=100).map(Duration::from_micros).collect();
        assert!((at(&times, 50) - 50.0).abs() < 1e-9 && (at(&times, 99) - 99.0).abs() < 1e-9);
        assert!((at(&times[7..8], 99) - 7.0).abs() < 1e-9 && at(&[], 50) == 0.0);
    }
}
