//! HTTP/1.1 by hand, because a client library would cost as much as the server that is measured: requests formatted
//! once, and of an answer no more than its status and where it ends.

/// Letters that do not compress, from SplitMix64 (Steele, Lea and Flood, 2014), so that every run sends the same.
fn letters(n: usize) -> String {
    const ALPHABET: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut state = 0x00C0_FFEEu64;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        char::from(ALPHABET[((z ^ (z >> 31)) % 64) as usize])
    };
    (0..n).map(|_| next()).collect()
}

/// Where a payload says when it was due: microseconds since 1970, in as many digits.
const AT: &str = "\"payload\":{\"at\":";
const DIGITS: usize = 16;

/// The type of events that need none of their own.
pub const KIND: &str = "order.created";

/// One event with no time in it yet: exactly `size` bytes, at least 96, with a type as long as the usual one.
pub fn event(kind: &str, size: usize) -> String {
    format!("{{\"type\":\"{kind}\",\"payload\":{}}}", payload(size))
}

/// The payload of such an event.
pub fn payload(size: usize) -> String {
    let frame =
        "{\"type\":\"order.created\",\"payload\":{\"at\":,\"amount\":100,\"pad\":\"\"}}".len() + DIGITS;
    format!("{{\"at\":{},\"amount\":100,\"pad\":\"{}\"}}", "1".repeat(DIGITS), letters(size.max(96) - frame))
}

/// Writes into a request of one event when it was due.
pub fn stamp(request: &mut [u8], micros: u64) {
    let Some(at) = find(request, AT.as_bytes()) else { return };
    let from = at + AT.len();
    if let Some(digits) = request.get_mut(from..from + DIGITS) {
        digits.copy_from_slice(format!("{micros:0DIGITS$}").as_bytes());
    }
}

/// When an event that was delivered was due, by its payload.
pub fn stamped(body: &[u8]) -> Option<u64> {
    // Type and id stand before it.
    let from = find(&body[..body.len().min(160)], AT.as_bytes())? + AT.len();
    std::str::from_utf8(body.get(from..from + DIGITS)?).ok()?.parse().ok()
}

/// What one request sends.
pub fn request(key: &str, kind: &str, size: usize, bulk: Option<usize>) -> Vec<u8> {
    let (path, body) = match bulk {
        None => ("/send-event", event(kind, size)),
        Some(n) => ("/send-events", format!("[{}]", vec![event(kind, size); n].join(","))),
    };
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nx-api-key: {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// The beginning of `buffer`, if it is a whole answer: its status and length.
pub fn answer(buffer: &[u8]) -> Option<Answer> {
    let head = find(buffer, b"\r\n\r\n")?;
    let status = std::str::from_utf8(buffer.get(9..12)?).ok()?.parse().ok()?;
    let body = head + 4;
    if let Some(length) = header(&buffer[..head + 2], b"content-length:") {
        let length = body + length.parse::<usize>().ok()?;
        return (buffer.len() >= length).then_some(Answer { status, length });
    }
    // Chunked: nothing is asked for before it has come, so it ends where the buffer does.
    buffer.ends_with(b"\r\n0\r\n\r\n").then_some(Answer { status, length: buffer.len() })
}

/// A whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Bytes of head and body.
    pub length: usize,
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The value of a header, by its name in small letters with the colon, from lines that each end in CRLF.
fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let lines = head.split(|byte| *byte == b'\n');
    let line = lines
        .filter(|line| line.len() > name.len())
        .find(|line| line[..name.len()].eq_ignore_ascii_case(name))?;
    Some(std::str::from_utf8(&line[name.len()..]).ok()?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_size() {
        for size in [96, 300, 4096] {
            assert_eq!(event(KIND, size).len(), size);
        }
        assert!(event(KIND, 300).contains(&payload(300)));
        let many = request("k", KIND, 300, Some(3));
        assert!(many.ends_with(b"]") && many.len() > 900);
    }

    #[test]
    fn a_stamp_is_read_back() {
        let mut request = request("k", KIND, 300, None);
        let length = request.len();
        stamp(&mut request, 1_764_000_000_123_456);
        assert_eq!(request.len(), length);
        let body = request.split(|byte| *byte == b'\n').next_back().unwrap();
        assert_eq!(stamped(body), Some(1_764_000_000_123_456));
        assert_eq!(stamped(b"{}"), None);
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        let whole = b"HTTP/1.1 201 Created\r\nContent-Type: x\r\nContent-Length: 5\r\n\r\nhello";
        for n in 0..whole.len() {
            assert_eq!(answer(&whole[..n]), None, "{n}");
        }
        assert_eq!(answer(whole), Some(Answer { status: 201, length: whole.len() }));
        let chunked = b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(answer(&chunked[..chunked.len() - 1]), None);
        assert_eq!(answer(chunked), Some(Answer { status: 503, length: chunked.len() }));
    }
}
