//! What a body of many events is read as, and which are refused for what.

use proptest::prelude::*;

use super::*;

const MOST: Most = Most { events: 1000, payload_bytes: 1 << 20 };

fn many(body: &[u8], format: Format) -> Result<Load, Invalid> {
    Load::many(Bytes::copy_from_slice(body), None, format, MOST)
}

fn events(load: &Load) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (0..load.len()).map(|i| (load.kind(i).to_owned(), text(load.payload(i)))).collect()
}

#[test]
fn events_keep_their_bytes_and_their_order_in_both_formats() {
    let one = "{\"type\":\"a.b\",\"payload\": {\"b\":1.0,\"a\":[ ]} }";
    let two = "{ \"payload\":null, \"x\":{\"type\":1}, \"type\":\"\\u00e9\\\"\"}";
    let three = "{\"payload\":1e400,\"type\":\"é\"}";
    let expected = [("a.b", "{\"b\":1.0,\"a\":[ ]}"), ("é\"", "null"), ("é", "1e400")];
    let expected = expected.map(|(kind, payload)| (kind.to_owned(), payload.to_owned()));
    let array = format!(" [{one} ,\n{two},{three}]\n");
    let lines = format!("{one}\r\n\n  \r\n{two}\n {three}");
    for (body, format) in [(array, Format::Array), (lines, Format::Lines)] {
        assert_eq!(events(&many(body.as_bytes(), format).unwrap()), expected, "{body}");
    }
}

#[test]
fn the_first_wrong_event_is_named() {
    let good = "{\"type\":\"a\",\"payload\":1}";
    let wrong = [
        ("{", "invalid_json"),
        ("{\"type\":\"a\",\"payload\":}", "invalid_json"),
        ("nonsense", "invalid_json"),
        ("[\"a\",1]", "not_an_object"),
        ("1", "not_an_object"),
        ("null", "not_an_object"),
        ("\"{}\"", "not_an_object"),
        ("{\"payload\":1}", "missing_type"),
        ("{\"type\":null,\"payload\":1}", "missing_type"),
        ("{\"type\":7,\"payload\":1}", "invalid_type"),
        ("{\"type\":\"\",\"payload\":1}", "invalid_type"),
        ("{\"type\":\"\\u0000\",\"payload\":1}", "invalid_type"),
        ("{\"type\":\"\\ud800\",\"payload\":1}", "invalid_type"),
        ("{\"type\":\"a\"}", "missing_payload"),
        ("{\"type\":\"a\",\"payload\":1,\"payload\":2}", "duplicate_field"),
    ];
    for (event, code) in wrong {
        for (body, format) in [
            (format!("[{good},{good},{event},{{}}]"), Format::Array),
            (format!("{good}\n\n{good}\n{event}\n{{}}"), Format::Lines),
        ] {
            let error = many(body.as_bytes(), format).unwrap_err();
            assert_eq!((error.code, error.index), (code, Some(2)), "{body}: {}", error.message);
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_are_found_in_their_event() {
    let good = b"{\"type\":\"a\",\"payload\":\"x\"}";
    let torn = b"{\"type\":\"a\",\"payload\":\"\xff\"}";
    let array = [b"[".as_slice(), good, b",", torn, b",", good, b"]"].concat();
    let lines = [good.as_slice(), b"\n", torn, b"\n", good].concat();
    for (body, format) in [(array, Format::Array), (lines, Format::Lines)] {
        let error = many(&body, format).unwrap_err();
        assert_eq!((error.code, error.index), ("invalid_utf8", Some(1)), "{}", error.message);
    }
    let error = many(b"[{},{\"\xff\":1}]", Format::Array).unwrap_err();
    assert_eq!((error.code, error.index), ("missing_type", Some(0)), "the first counts");
    let error = many(b"[{\"type\":\"a\",\"payload\":1}] \xff", Format::Array).unwrap_err();
    assert_eq!((error.code, error.index), ("invalid_utf8", None));
}

#[test]
fn what_is_no_list_of_events_is_told_apart() {
    let cases: [(&str, Format, &str); 9] = [
        ("", Format::Array, "empty_body"),
        (" \n", Format::Lines, "empty_body"),
        ("[ ]", Format::Array, "empty_batch"),
        ("{\"type\":\"a\",\"payload\":1}", Format::Array, "not_an_array"),
        ("null", Format::Array, "not_an_array"),
        ("\"[]\"", Format::Array, "not_an_array"),
        ("nonsense", Format::Array, "invalid_json"),
        ("[{\"type\":\"a\",\"payload\":1}] x", Format::Array, "invalid_json"),
        ("[", Format::Array, "invalid_json"),
    ];
    for (body, format, code) in cases {
        assert_eq!(many(body.as_bytes(), format).unwrap_err().code, code, "{body}");
    }
}

#[test]
fn both_limits_name_where_they_are_passed() {
    let most = Most { events: 2, payload_bytes: 5 };
    let event = |payload: &str| format!("{{\"type\":\"a\",\"payload\":{payload}}}");
    let read = |payloads: &[&str]| {
        let body = payloads.iter().map(|p| event(p)).collect::<Vec<_>>().join("\n");
        Load::many(body.into(), None, Format::Lines, most).map(|load| load.len())
    };
    assert_eq!(read(&["12345", "1"]), Ok(2));
    let error = read(&["1", "123456"]).unwrap_err();
    assert_eq!((error.code, error.index), (TOO_LARGE, Some(1)));
    let error = read(&["1", "1", "1"]).unwrap_err();
    assert_eq!((error.code, error.index), (TOO_MANY, Some(2)));
}

#[test]
fn a_syntax_error_names_its_place_in_the_whole_body() {
    let error = many(b"{\"type\":\"a\",\"payload\":1}\n\n{\"type\":\"a\",\"payload\":}", Format::Lines);
    assert!(error.unwrap_err().message.ends_with("at line 3 column 23"));
    let error = many(b"[{\"type\":\"a\",\"payload\":1},\n{\"type\":}]", Format::Array);
    assert!(error.unwrap_err().message.ends_with("at line 2 column 9"));
}

#[test]
fn a_deep_payload_costs_no_stack() {
    let payload = "[".repeat(100_000) + &"]".repeat(100_000);
    let body = format!("[{{\"type\":\"deep\",\"payload\":{payload},\"x\":{payload}}}]");
    assert_eq!(many(body.as_bytes(), Format::Array).unwrap().payload(0), payload.as_bytes());
}

fn load(events: &[(String, String)]) -> Load {
    let event = |(kind, payload): &(String, String)| serde_json::json!({ "type": kind, "payload": payload });
    let body = serde_json::Value::Array(events.iter().map(event).collect()).to_string();
    many(body.as_bytes(), Format::Array).unwrap()
}

proptest! {
    /// Two loads have one hash exactly when they have the same events.
    #[test]
    fn the_hash_tells_events_apart(
        one in prop::collection::vec(("[a-c]{1,3}", "[a-c\"]{0,3}"), 1..4),
        two in prop::collection::vec(("[a-c]{1,3}", "[a-c\"]{0,3}"), 1..4),
    ) {
        prop_assert_eq!(load(&one).hash() == load(&two).hash(), one == two);
        prop_assert_eq!(load(&one).hash(), load(&one.clone()).hash());
    }

    #[test]
    fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..60)) {
        for format in [Format::Array, Format::Lines] {
            let _ = many(&body, format);
        }
    }
}

/// One behind the other these have the same bytes.
#[test]
fn the_hash_tells_where_a_part_ends() {
    let hash = |body: &[u8]| many(body, Format::Array).unwrap().hash();
    let one = hash(b"[{\"type\":\"a\",\"payload\":12}]");
    assert_ne!(one, hash(b"[{\"type\":\"a1\",\"payload\":2}]"));
    let two = hash(b"[{\"type\":\"a\",\"payload\":1},{\"type\":\"b\",\"payload\":2}]");
    assert_ne!(two, hash(b"[{\"type\":\"a1b\",\"payload\":2}]"));
}

#[test]
fn the_hash_is_of_the_events_alone() {
    let plain = many(b"[{\"type\":\"a\",\"payload\":{\"x\":1}}]", Format::Array).unwrap();
    let spaced = many(b" {\"payload\" : {\"x\":1}, \"y\":2, \"type\":\"\\u0061\"}", Format::Lines).unwrap();
    assert_eq!(plain.hash(), spaced.hash());
    let other = many(b"[{\"type\":\"a\",\"payload\":{\"x\": 1}}]", Format::Array).unwrap();
    assert_ne!(plain.hash(), other.hash(), "a payload's own bytes count");
}
