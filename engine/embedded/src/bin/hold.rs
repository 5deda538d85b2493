//! Holds a private Postgres and Redis in the directory it is given until it is killed. The test that nothing
//! outlives its owner kills it.

use std::{env, path::PathBuf, thread, time::Duration};

use eventpulse_embedded::{Error, Postgres, Redis};

fn main() -> Result<(), Error> {
    let dir = PathBuf::from(env::args_os().nth(1).unwrap_or_else(|| ".".into()));
    let postgres = Postgres::start(&dir)?;
    let redis = Redis::start(&dir)?;
    println!("holding {} {}", postgres.pid(), redis.pid());
    thread::sleep(Duration::from_secs(600));
    Ok(())
}
