//! `eventpulse secrets`: what is stored of webhooks' secrets.

use clap::Subcommand;

use crate::{
    config::{Config, keys},
    store::{self, Seal, Store},
};

#[derive(Clone, Copy, Subcommand)]
pub enum Command {
    /// Bring all secrets under the first key of EVENTPULSE_SECRETS_KEY, while everything runs.
    Encrypt,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(
        "{0} webhooks have secrets that these keys do not open; they stay as they are. Keys asked for: {1}"
    )]
    Unreadable(u64, String),
}

/// # Errors
/// Without a key or a Postgres, and when some secrets could not be read; the others are done all the same.
pub async fn run(config: &Config, command: Command) -> Result<(), Error> {
    let Command::Encrypt = command;
    let usage = |text: &str| Error::Usage(text.to_owned());
    let keys = keys::parse(&config.secrets_key)
        .map_err(|problem| Error::Usage(format!("EVENTPULSE_SECRETS_KEY {problem}")))?;
    if keys.is_empty() {
        return Err(usage("EVENTPULSE_SECRETS_KEY is not set"));
    }
    if config.database_url.is_empty() {
        return Err(usage("DATABASE_URL is not set"));
    }
    let store = Store::new(config.database_url.reveal(), 1)?.with_seal(Seal::new(&keys));
    let done = store.encrypt_secrets().await?;
    println!(
        "secrets of {} webhooks encrypted; all that could be read are under the key {}",
        done.changed, done.key
    );
    if done.unreadable > 0 {
        let missing: Vec<String> = done.missing.into_iter().collect();
        return Err(Error::Unreadable(done.unreadable, missing.join(", ")));
    }
    Ok(())
}
