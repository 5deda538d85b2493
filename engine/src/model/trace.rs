//! Where an event stands in a distributed trace: W3C Trace Context, the header `traceparent`.
//!
//! `tracestate` is neither kept nor passed on. It holds what the producer's own tracing systems tell each other, and receivers
//! are other companies.

/// The flag by which a caller says that it records the trace.
pub const SAMPLED: u8 = 0x01;

/// The flag of level 2: the id's last seven bytes are random.
pub const RANDOM: u8 = 0x02;

/// In the stored form only, where the header's flags leave room: spans of this event are exported.
const RECORDED: u8 = 0x80;

/// Bytes of the stored form.
const STORED: usize = 25;

/// Bytes of the header as we write it.
const HEADER: usize = 55;

/// What an event carries of its trace from the producer to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: [u8; 16],
    /// The span that what follows belongs to: the producer's, or our own of the request.
    pub parent: [u8; 8],
    /// [`SAMPLED`] and [`RANDOM`]; others are not passed on, as the standard wants it.
    pub flags: u8,
    /// Whether spans are exported for it. Decided once, by the gateway that takes the event in.
    pub recorded: bool,
}

impl Trace {
    /// Reads a `traceparent`; none when it is not well formed. A version that is not known yet is read as far as the known one
    /// goes.
    pub fn parse(header: &[u8]) -> Option<Trace> {
        let (known, rest) = header.split_at_checked(HEADER)?;
        let [version] = hex(&known[..2])?;
        let extended = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !extended || [2, 35, 52].iter().any(|at| known[*at] != b'-') {
            return None;
        }
        let (id, parent) = (hex(&known[3..35])?, hex(&known[36..52])?);
        let [flags] = hex(&known[53..])?;
        let is_some = id != [0; 16] && parent != [0; 8];
        is_some.then_some(Trace { id, parent, flags: flags & (SAMPLED | RANDOM), recorded: false })
    }

    /// Writes it as a `traceparent` with `parent` in the place of its own: the span that calls.
    pub fn header(&self, parent: [u8; 8]) -> [u8; HEADER] {
        let mut out = *b"00-................................-................-..";
        write_hex(&mut out[3..35], &self.id);
        write_hex(&mut out[36..52], &parent);
        write_hex(&mut out[53..], &[self.flags]);
        out
    }

    /// As it stands beside its event.
    pub fn stored(&self) -> [u8; STORED] {
        let mut out = [0; STORED];
        out[..16].copy_from_slice(&self.id);
        out[16..24].copy_from_slice(&self.parent);
        out[24] = self.flags | if self.recorded { RECORDED } else { 0 };
        out
    }

    /// Reads the stored form; none for what another hand put there.
    pub fn from_stored(bytes: &[u8]) -> Option<Trace> {
        let bytes: &[u8; STORED] = bytes.try_into().ok()?;
        Some(Trace {
            id: bytes[..16].try_into().ok()?,
            parent: bytes[16..24].try_into().ok()?,
            flags: bytes[24] & (SAMPLED | RANDOM),
            recorded: bytes[24] & RECORDED != 0,
        })
    }

    /// Whether the caller records it.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The trace of a request with one or more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    pub trace: Trace,
    /// Of how many of its events spans are exported: the first ones.
    pub recorded: usize,
}

impl Traced {
    /// What an event carries, by its place in the request.
    pub fn of(&self, event: usize) -> Trace {
        Trace { recorded: event < self.recorded, ..self.trace }
    }
}

/// Lower case only: the standard forbids others.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

fn write_hex(out: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn a_header_is_read_as_the_standard_has_it() {
        let cases: &[(&str, Option<u8>)] = &[
            (&format!("00-{ID}-{PARENT}-00"), Some(0)),
            (&format!("00-{ID}-{PARENT}-01"), Some(SAMPLED)),
            (&format!("00-{ID}-{PARENT}-03"), Some(SAMPLED | RANDOM)),
            // Flags that are not known are not passed on, and ours are not to be had from outside.
            (&format!("00-{ID}-{PARENT}-fd"), Some(SAMPLED)),
            // Versions to come.
            (&format!("01-{ID}-{PARENT}-01"), Some(SAMPLED)),
            (&format!("cc-{ID}-{PARENT}-01-what-follows"), Some(SAMPLED)),
            (&format!("cc-{ID}-{PARENT}-01-"), Some(SAMPLED)),
            (&format!("cc-{ID}-{PARENT}-01.what-follows"), None),
            (&format!("ff-{ID}-{PARENT}-01"), None),
            (&format!("00-{ID}-{PARENT}-01-"), None),
            (&format!("00-{ID}-{PARENT}-01-more"), None),
            (&format!("00-{ID}-{PARENT}-1"), None),
            (&format!("00-{ID}-{PARENT}"), None),
            (&format!("00-{ID}-{PARENT}-0g"), None),
            (&format!("0-{ID}-{PARENT}-001"), None),
            (&format!("00_{ID}-{PARENT}-01"), None),
            (&format!("00-{ID}_{PARENT}-01"), None),
            (&format!("00-{ID}-{PARENT}_01"), None),
            (&format!("00-{}-{PARENT}-01", ID.to_uppercase()), None),
            (&format!("00-{ID}-{}-01", PARENT.to_uppercase()), None),
            (&format!("00-{}-{PARENT}-01", "0".repeat(32)), None),
            (&format!("00-{ID}-{}-01", "0".repeat(16)), None),
            (&format!(" 00-{ID}-{PARENT}-01"), None),
            (&format!("00-{ID}-{PARENT}-01 "), None),
            ("", None),
            ("00", None),
        ];
        for (header, flags) in cases {
            let found = Trace::parse(header.as_bytes());
            assert_eq!(found.map(|trace| trace.flags), *flags, "{header}");
            assert!(found.is_none_or(|trace| !trace.recorded), "{header}");
        }
    }

    #[test]
    fn it_is_passed_on_with_another_parent() {
        let trace = Trace::parse(format!("00-{ID}-{PARENT}-01").as_bytes()).unwrap();
        assert_eq!(&trace.header(trace.parent)[..], format!("00-{ID}-{PARENT}-01").as_bytes());
        let ours = [0, 0x1f, 0xa0, 3, 4, 5, 6, 0xff];
        assert_eq!(&trace.header(ours)[..], format!("00-{ID}-001fa003040506ff-01").as_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(id in 1u128.., parent in 1u64.., flags in 0u8..4, recorded: bool) {
            let trace = Trace { id: id.to_be_bytes(), parent: parent.to_be_bytes(), flags, recorded };
            prop_assert_eq!(Trace::from_stored(&trace.stored()), Some(trace));
            let header = Trace::parse(&trace.header(trace.parent));
            prop_assert_eq!(header, Some(Trace { recorded: false, ..trace }));
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (Trace::parse(&bytes), Trace::from_stored(&bytes));
        }
    }
}
