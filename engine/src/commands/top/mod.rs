//! `eventpulse top`: a live view of running processes for a terminal of 80 by 24, from what their `/metrics` say and, with
//! `DATABASE_URL`, the worst webhooks by what Postgres has.

mod fetch;
mod frame;
mod prometheus;
mod screen;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::future::join_all;

pub use self::fetch::Place;
use self::{
    fetch::Said,
    frame::{Process, View, Webhooks},
    screen::Screen,
};
use crate::{
    config::Config,
    model::Timestamp,
    store::{self, Store, worst::By},
};

/// Between two questions for the worst webhooks: one costs Postgres some tens of milliseconds.
const ASK: Duration = Duration::from_secs(5);

/// What may be asked for.
#[derive(Args)]
pub struct Options {
    /// A process to watch, such as http://127.0.0.1:3000; may be given several times. Without it both roles of the settings.
    #[arg(long, value_name = "URL")]
    url: Vec<Place>,
    /// Time between two looks, from 100 ms to an hour.
    #[arg(long, value_parser = interval, default_value = "1s")]
    interval: Duration,
    /// Show one interval and end.
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) {
        true => Ok(interval),
        false => Err("not within 100ms and 1h".to_owned()),
    }
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("none of these processes answers: {0}")]
    Silent(String),
    #[error("the terminal cannot be written to")]
    Screen(#[from] io::Error),
}

/// Shows a frame after each interval, until `stopped` resolves or nobody reads any more.
///
/// # Errors
/// When `DATABASE_URL` cannot be read, or, with `--once`, when no process answers.
pub async fn run(config: &Config, options: Options, stopped: impl Future<Output = ()>) -> Result<(), Error> {
    let places = if options.url.is_empty() { places(config) } else { options.url };
    let store = match config.database_url.is_empty() {
        true => None,
        false => Some(Store::new(config.database_url.reveal(), 1)?),
    };
    let mut watch = Watch::new(places, store);
    let mut stopped = pin!(stopped);
    tokio::select! {
        biased;
        () = &mut stopped => return Ok(()),
        () = watch.look() => {}
    }
    let mut screen = Screen::begin(options.once)?;
    loop {
        let next = async {
            tokio::time::sleep(options.interval).await;
            watch.look().await;
        };
        tokio::select! {
            biased;
            () = &mut stopped => return Ok(()),
            () = next => {}
        }
        if options.once && watch.is_alone() {
            return Err(Error::Silent(watch.names()));
        }
        match screen.show(&frame::lines(&watch.view(options.interval))) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            shown => shown?,
        }
        if options.once {
            return Ok(());
        }
    }
}

/// Where both roles of these settings say how they do. One that does not run is shown as such.
fn places(config: &Config) -> Vec<Place> {
    let here = |ip: IpAddr| if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip };
    let host = here(config.http.listen).to_string();
    let gateway = match config.admin.address.0 {
        Some(admin) => Place::new(here(admin.ip()).to_string(), admin.port(), false),
        None => Place::new(host.clone(), config.http.port, !config.gateway.tls_cert.is_empty()),
    };
    vec![gateway, Place::new(host, config.http.dispatcher_port, false)]
}

/// A place with its last two answers.
struct Watched {
    place: Place,
    before: Option<Said>,
    now: Result<Said, String>,
}

/// What is watched, as it was seen last.
struct Watch {
    watched: Vec<Watched>,
    store: Option<Store>,
    webhooks: Webhooks,
    asked: Option<Instant>,
    looked: Instant,
    /// Seconds between the last two looks.
    seconds: f64,
}

impl Watch {
    fn new(places: Vec<Place>, store: Option<Store>) -> Watch {
        let watched = |place| Watched { place, before: None, now: Err("not asked yet".to_owned()) };
        Watch {
            watched: places.into_iter().map(watched).collect(),
            webhooks: if store.is_some() { Webhooks::Known(Vec::new()) } else { Webhooks::Unasked },
            store,
            asked: None,
            looked: Instant::now(),
            seconds: 0.0,
        }
    }

    /// Asks all of them at once.
    async fn look(&mut self) {
        let is_time = self.asked.is_none_or(|asked| asked.elapsed() >= ASK);
        let store = self.store.as_ref().filter(|_| is_time);
        let worst = async {
            match store {
                Some(store) => Some(store.worst_webhooks(By::Trouble, frame::WEBHOOKS as i64).await),
                None => None,
            }
        };
        let answers = join_all(self.watched.iter().map(|watched| fetch::fetch(&watched.place)));
        let (answers, worst) = tokio::join!(answers, worst);
        let now = Instant::now();
        self.seconds = now.duration_since(self.looked).as_secs_f64();
        self.looked = now;
        for (watched, answer) in self.watched.iter_mut().zip(answers) {
            let answer = answer.map_err(|error| error.to_string());
            watched.before = std::mem::replace(&mut watched.now, answer).ok();
        }
        if let Some(worst) = worst {
            self.asked = Some(now);
            self.webhooks = match worst {
                Ok(worst) => Webhooks::Known(worst),
                Err(error) => Webhooks::Failed(crate::chain(&error)),
            };
        }
    }

    fn is_alone(&self) -> bool {
        self.watched.iter().all(|watched| watched.now.is_err())
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.watched.iter().map(|watched| watched.place.to_string()).collect();
        names.join(", ")
    }

    fn view(&self, interval: Duration) -> View<'_> {
        let mut processes: Vec<Process<'_>> = Vec::new();
        for watched in &self.watched {
            let name = watched.place.to_string();
            let said = match &watched.now {
                Ok(said) => said,
                Err(error) => {
                    processes.push(Process { id: None, name, state: Err(error) });
                    continue;
                }
            };
            let id = said.process.as_deref();
            // The same process by another port: its numbers count once.
            if let Some(known) = processes.iter_mut().find(|p| id.is_some() && p.id == id) {
                known.name.push(' ');
                known.name.push_str(&name);
                continue;
            }
            // Between two processes there is no growth.
            let before = watched.before.as_ref().filter(|before| before.process == said.process);
            let state = Ok((before.map_or(&said.sample, |before| &before.sample), &said.sample));
            processes.push(Process { id, name, state });
        }
        View { now: Timestamp::now(), interval, seconds: self.seconds, processes, webhooks: &self.webhooks }
    }
}
