//! `eventpulse transform push`: a module's way to a webhook.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::{Response, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;

use super::{Error, read};

#[derive(clap::Args)]
pub struct Options {
    /// The module's file: a component, or a core module as cargo writes it.
    module: PathBuf,
    /// The webhook's id.
    #[arg(long, value_name = "ID")]
    webhook: i64,
    /// Where the gateway is.
    #[arg(long, default_value = "http://127.0.0.1:3000", value_parser = base)]
    url: String,
    /// The account's API key.
    #[arg(long, env = "EP_API_KEY", hide_env_values = true)]
    key: String,
    /// How long to wait until the module is compiled, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    wait: u64,
}

fn base(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("begin it with http:// or https://".to_owned())
    }
}

const REQUEST_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
struct Answer {
    transform: Version,
}

#[derive(Deserialize)]
struct Shown {
    transform: Versions,
}

#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: i64,
    state: String,
    reason: Option<String>,
}

pub(super) async fn run(options: &Options) -> Result<(), Error> {
    let wasm = read(&options.module)?;
    let client = reqwest::Client::builder().timeout(REQUEST_MAX).build()?;
    let path = format!("{}/webhooks/{}/transform", options.url, options.webhook);
    let request =
        client.put(&path).header("x-api-key", &options.key).header(CONTENT_TYPE, "application/wasm");
    let answer = request.body(wasm).send().await?;
    let is_new = answer.status() != StatusCode::OK;
    let Answer { transform: mut version } = accepted(answer).await?;
    let began = Instant::now();
    while version.state == "compiling" {
        if began.elapsed().as_secs() >= options.wait {
            let what =
                format!("version {} is still being compiled after {} s", version.version, options.wait);
            return Err(Error::Unfinished(what));
        }
        tokio::time::sleep(PAUSE).await;
        let answer = client.get(&path).header("x-api-key", &options.key).send().await?;
        let Shown { transform } = accepted(answer).await?;
        let number = version.version;
        version = transform
            .versions
            .into_iter()
            .find(|version| version.version == number)
            .ok_or_else(|| Error::Unfinished(format!("version {number} has been removed meanwhile")))?;
    }
    if version.state == "rejected" {
        let reason = version.reason.as_deref().unwrap_or("no reason given");
        return Err(Error::Unfinished(format!("version {} was rejected: {reason}", version.version)));
    }
    let Version { version, state, .. } = version;
    if is_new {
        println!("version {version} of webhook {} is {state}", options.webhook);
    } else {
        println!("nothing changed: version {version} of webhook {} has this module already", options.webhook);
    }
    Ok(())
}

/// What the gateway said, or its words for why not.
async fn accepted<T: for<'de> Deserialize<'de>>(answer: Response) -> Result<T, Error> {
    if answer.status().is_success() {
        return Ok(answer.json().await?);
    }
    let status = answer.status().as_u16();
    Err(Error::Refused { status, text: answer.text().await?.trim().to_owned() })
}
