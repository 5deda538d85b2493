//! What must hold for whatever bytes come from outside: one function for each thing that reads them. They are run over a
//! checked-in corpus and what proptest makes of it here, and for as long as one likes by `cargo fuzz` (engine/fuzz). Neither
//! is in a release.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::{
    config::Targets,
    deliver::{address as ranges, outcome, reply as read, target},
    ingest::{Draft, Format, Load, Most},
    stream,
    transform::fuzzed as transform,
};

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok() && std::str::from_utf8(bytes).is_ok()
}

/// The body of `POST /send-event`.
pub fn event(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let (draft, load) = (Draft::parse(&body), Load::one(body.clone(), None));
    let Ok(draft) = draft else {
        // Both ways in refuse the same, for the same reason.
        assert_eq!(draft.err(), load.err());
        return;
    };
    let load = load.expect("both take the same");
    assert_eq!((load.len(), load.kind(0), load.payload(0)), (1, &*draft.kind, &draft.payload[..]));
    assert!(is_json(&draft.payload));
    assert!((1..=256).contains(&draft.kind.len()));
    // What is taken alone is taken among others.
    let most = Most { events: 1, payload_bytes: data.len() };
    let array = [b"[", data, b"]"].concat();
    let load = Load::many(array.into(), None, Format::Array, most).expect("an array of it");
    assert_eq!((load.len(), load.kind(0), load.payload(0)), (1, &*draft.kind, &draft.payload[..]));
}

/// The body of `POST /send-events`, after a byte that chooses how it is written.
pub fn bulk(data: &[u8]) {
    const MOST: Most = Most { events: 8, payload_bytes: 64 };
    let Some((choice, body)) = data.split_first() else { return };
    let format = if choice % 2 == 0 { Format::Array } else { Format::Lines };
    match Load::many(Bytes::copy_from_slice(body), None, format, MOST) {
        Ok(load) => {
            assert!((1..=MOST.events).contains(&load.len()));
            for n in 0..load.len() {
                assert!(load.payload(n).len() <= MOST.payload_bytes && is_json(load.payload(n)));
                assert!((1..=256).contains(&load.kind(n).len()));
            }
        }
        // Of the first that is wrong, so it is no further than one beyond what may be there.
        Err(invalid) => assert!(invalid.index.is_none_or(|index| index <= MOST.events), "{invalid:?}"),
    }
}

/// A reply of Redis that should hold entries of the stream.
pub fn entry(data: &[u8]) {
    stream::entry::fuzzed(data);
}

/// `Retry-After`, a line for the reply's `Date`, and the reply's body.
pub fn retry_after(data: &[u8]) {
    const MAX: Duration = Duration::from_secs(3600);
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(2, '\n');
    let (value, date) = (lines.next().unwrap_or_default(), lines.next());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for date in [None, date] {
        assert!(outcome::retry_after(value, date, now, MAX).is_none_or(|wait| wait <= MAX));
    }
    for max in [0, 1, 10, data.len()] {
        let kept = outcome::clean(data, max);
        assert!(kept.len() <= max && !kept.contains('\0'));
    }
}

/// The URL of a webhook, and any address.
pub fn address(data: &[u8]) {
    let url = String::from_utf8_lossy(data);
    let any = Targets { allow_private: true, ..Targets::default() };
    if let Ok(uri) = target::check_url(&url, &Targets::default()) {
        assert!(matches!(uri.scheme_str(), Some("http" | "https")));
        let host = uri.host().expect("a host");
        assert!(!host.is_empty() && !uri.authority().expect("an authority").as_str().contains('@'));
        // With the dot that ends an absolute name it is the same address.
        let bare = host.trim_matches(['[', ']']);
        let bare = bare.strip_suffix('.').unwrap_or(bare);
        match bare.parse::<IpAddr>() {
            Ok(ip) => assert!(ranges::is_public(ip), "{host}"),
            // The system's resolver takes numbers in other notations for addresses, and looks nothing up for them.
            Err(_) => {
                let last = bare.trim_end_matches('.').rsplit('.').next().expect("a label");
                assert!(last.parse::<u128>().is_err(), "{host}");
                let hex = last.to_ascii_lowercase().strip_prefix("0x").map(str::to_owned);
                let number = hex.is_some_and(|hex| hex.is_empty() || u128::from_str_radix(&hex, 16).is_ok());
                assert!(!number, "{host}");
            }
        }
        assert!(target::check_url(&url, &any).is_ok(), "who allows more takes it too");
    }
    if let Some(octets) = data.first_chunk::<4>() {
        let v4 = Ipv4Addr::from(*octets);
        let public = ranges::is_public(v4.into());
        assert_eq!(ranges::is_public(v4.to_ipv6_mapped().into()), public, "{v4}");
        let [a, b] = [u16::from_be_bytes([octets[0], octets[1]]), u16::from_be_bytes([octets[2], octets[3]])];
        let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b);
        assert_eq!(ranges::is_public(nat64.into()), public, "{nat64}");
        assert!(!public || !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()));
    }
    if let Some(octets) = data.first_chunk::<16>() {
        let v6 = Ipv6Addr::from(*octets);
        let local = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local();
        assert!(!(local || v6.is_unicast_link_local()) || !ranges::is_public(v6.into()), "{v6}");
    }
}

/// What a module gives back: as a payload, and as a body whose content type, header names and values are divided by NUL.
pub fn output(data: &[u8]) {
    const MAX: usize = 256;
    if let Some(payload) = transform::payload(data, MAX) {
        assert!(payload.len() <= MAX && payload == data && is_json(&payload));
    }
    let mut parts = data.split(|b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let content_type = parts.next().unwrap_or_default();
    let texts: Vec<String> = parts.collect();
    let headers = texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    if let Some((content_type, headers)) = transform::body(content_type, headers, MAX) {
        assert!(headers.len() <= MAX && content_type.to_str().is_ok_and(|text| text.contains('/')));
        for (name, value) in headers {
            let name = name.as_str();
            assert!(
                !["host", "connection", "content-length", "transfer-encoding", "content-type"]
                    .contains(&name)
            );
            assert!(!name.starts_with("webhook-") && !name.starts_with("x-eventpulse-"), "{name}");
            assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
        }
    }
}

/// What is called with the bytes. It panics where a law does not hold.
pub type Target = fn(&[u8]);

/// The reply of an endpoint, after a byte that says in what pieces it comes.
pub fn reply(data: &[u8]) {
    const MOST: usize = 64;
    let Some((piece, reply)) = data.split_first() else { return };
    let whole = read(reply, reply.len().max(1), MOST);
    assert!(whole.as_ref().is_none_or(|(_, body, ..)| body.len() <= MOST + 1));
    assert_eq!(read(reply, usize::from(*piece).max(1), MOST), whole, "it is the same however it comes");
}

/// By the names of the fuzz targets.
pub const TARGETS: [(&str, Target); 7] = [
    ("event", event),
    ("bulk", bulk),
    ("entry", entry),
    ("retry_after", retry_after),
    ("address", address),
    ("output", output),
    ("reply", reply),
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{
        prelude::*,
        test_runner::{RngAlgorithm, TestRng, TestRunner},
    };

    use super::*;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).expect("readable")).collect()
    }

    /// Bytes out of nowhere, and seeds with a few bytes changed, cut and put in.
    fn inputs(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..8);
        let changed = (proptest::sample::select(seeds), any::<[proptest::sample::Index; 2]>(), bytes());
        let changed = changed.prop_map(|(mut seed, [one, other], bytes)| {
            let (one, other) = (one.index(seed.len() + 1), other.index(seed.len() + 1));
            seed.splice(one.min(other)..one.max(other), bytes);
            seed
        });
        prop_oneof![1 => proptest::collection::vec(any::<u8>(), 0..200), 3 => changed]
    }

    /// The same inputs at each run, so that a change is judged by what it changed; others, and as many as one likes, with
    /// `FUZZ_CASES=200000`.
    #[test]
    fn every_target_holds_for_its_corpus_and_what_is_made_of_it() {
        let cases = std::env::var("FUZZ_CASES").ok().map(|n| n.parse().expect("FUZZ_CASES is a number"));
        for (name, target) in TARGETS {
            let seeds = corpus(name);
            assert!(seeds.len() >= 5, "{name} has {} seeds", seeds.len());
            for seed in &seeds {
                target(seed);
            }
            // What fails goes into the corpus by hand.
            let config =
                ProptestConfig { cases: cases.unwrap_or(2000), failure_persistence: None, ..<_>::default() };
            let mut runner = match cases {
                None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
                Some(_) => TestRunner::new(config),
            };
            runner
                .run(&inputs(seeds), |data| {
                    target(&data);
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn every_target_is_one_of_cargo_fuzz_too() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("readable");
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let source = fs::read_to_string(folder.join(format!("targets/{name}.rs"))).expect("readable");
            assert!(source.contains(&format!("eventpulse::fuzz::{name}(data)")), "{name}");
        }
    }
}
