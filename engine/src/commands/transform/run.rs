//! `eventpulse transform run`: one call, shown whole.

use super::{Error, Subject, event, hosted};
use crate::{
    config::Config,
    model::WebhookId,
    transform::{Called, Input, Outcome},
};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    subject: Subject,
}

pub(super) async fn run(config: &Config, options: &Options) -> Result<(), Error> {
    let subject = &options.subject;
    let event = event::of_file(&subject.event)?;
    let (host, module) = hosted(config, &subject.module).await?;
    let input = Input { event, webhook: WebhookId(1), version: 1, config: subject.config()? };
    let called = host.call(&module, input).await;
    print!("{}", report(&called));
    match called.result {
        Ok(_) => Ok(()),
        Err(failure) => Err(Error::Failed { code: failure.kind.reason_code(), message: failure.message }),
    }
}

fn report(called: &Called) -> String {
    let mut text = match &called.result {
        Ok(Outcome::Unchanged) => "outcome  unchanged\n".to_owned(),
        Ok(Outcome::Drop(reason)) => format!("outcome  drop: {reason}\n"),
        Ok(Outcome::Payload(json)) => format!("outcome  payload\n{}\n", String::from_utf8_lossy(json)),
        Ok(Outcome::Body(body)) => {
            let shown =
                |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let mut text = format!("outcome  body\ncontent-type: {}\n", shown(&body.content_type));
            for (name, value) in &body.headers {
                text.push_str(&format!("{name}: {}\n", shown(value)));
            }
            text.push_str(&format!("\n{}\n", String::from_utf8_lossy(&body.bytes)));
            text
        }
        Err(_) => "outcome  none\n".to_owned(),
    };
    for line in &called.log {
        text.push_str(&format!("log      {}: {}\n", line.level, line.text));
    }
    text.push_str(&format!("cpu      {} us\n", called.cpu.as_micros()));
    text.push_str(&format!("memory   {} KiB\n", called.memory / 1024));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::transform::{HttpBody, Line};

    #[test]
    fn a_call_is_shown_whole() {
        let called = Called {
            result: Ok(Outcome::Body(HttpBody {
                content_type: HeaderValue::from_static("text/plain"),
                bytes: Bytes::from("hello"),
                headers: vec![(HeaderName::from_static("x-a"), HeaderValue::from_static("b"))],
            })),
            log: vec![Line { level: "info", text: "seen".to_owned() }],
            cpu: Duration::from_micros(31),
            memory: 192 << 10,
        };
        let expected = "outcome  body\ncontent-type: text/plain\nx-a: b\n\nhello\nlog      info: seen\ncpu      31 us\n\
                        memory   192 KiB\n";
        assert_eq!(report(&called), expected);
        for (outcome, expected) in [
            (Outcome::Unchanged, "outcome  unchanged\n"),
            (Outcome::Drop("why".to_owned()), "outcome  drop: why\n"),
            (Outcome::Payload(Bytes::from("[1]")), "outcome  payload\n[1]\n"),
        ] {
            assert!(report(&Called { result: Ok(outcome), ..called.clone() }).starts_with(expected));
        }
    }
}
