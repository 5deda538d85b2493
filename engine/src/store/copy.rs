//! Rows of `events` in the binary form of COPY (PostgreSQL manual, "COPY", section "Binary Format").

use bytes::{BufMut, Bytes, BytesMut};

use crate::model::{Timestamp, Trace};

/// Bytes after which a piece is sent: large enough that its system calls cost nothing, small enough that what is
/// copied of a request at one moment is little.
const PIECE: usize = 64 << 10;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Microseconds from the Unix epoch to that of Postgres, which is the beginning of 2000.
const EPOCH: i64 = 946_684_800_000_000;

/// What Postgres stores of a moment.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.0.saturating_mul(1000).saturating_sub(EPOCH)
}

/// Encodes rows piece by piece.
pub(super) struct Rows {
    out: BytesMut,
    /// Whether rows have the column of traces.
    traced: bool,
}

/// What a row holds.
#[derive(Clone, Copy)]
pub(super) struct Event<'a> {
    pub(super) id: i64,
    pub(super) account: i64,
    pub(super) kind: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) trace: Option<Trace>,
}

impl Rows {
    pub(super) fn new(traced: bool) -> Rows {
        let mut out = BytesMut::with_capacity(PIECE * 2);
        out.put_slice(SIGNATURE);
        // No flags, and nothing more in the header.
        out.put_i32(0);
        out.put_i32(0);
        Rows { out, traced }
    }

    /// Adds a row; returns a piece when there is enough for one.
    pub(super) fn add(&mut self, event: Event<'_>, at: Timestamp) -> Option<Bytes> {
        self.out.put_i16(if self.traced { 6 } else { 5 });
        self.number(event.id);
        self.number(event.account);
        self.text(event.kind.as_bytes());
        self.text(event.payload);
        self.number(micros(at));
        if self.traced {
            match event.trace {
                Some(trace) => self.text(&trace.stored()),
                // Null.
                None => self.out.put_i32(-1),
            }
        }
        (self.out.len() >= PIECE).then(|| {
            let piece = self.out.split().freeze();
            self.out.reserve(PIECE * 2);
            piece
        })
    }

    /// The last piece.
    pub(super) fn end(mut self) -> Bytes {
        self.out.put_i16(-1);
        self.out.freeze()
    }

    fn number(&mut self, n: i64) {
        self.out.put_i32(8);
        self.out.put_i64(n);
    }

    fn text(&mut self, text: &[u8]) {
        self.out.put_i32(i32::try_from(text.len()).expect("a body is at most 64 MiB"));
        self.out.put_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use proptest::prelude::*;

    use super::*;

    type Row = (i64, i64, String, Vec<u8>, Option<Trace>);

    /// Reads what was encoded, strictly.
    fn decode(mut bytes: Bytes, at: Timestamp, traced: bool) -> Vec<Row> {
        assert_eq!(bytes.split_to(SIGNATURE.len()), SIGNATURE);
        assert_eq!((bytes.get_i32(), bytes.get_i32()), (0, 0));
        let mut rows = Vec::new();
        loop {
            match bytes.get_i16() {
                -1 => break,
                fields => assert_eq!(fields, if traced { 6 } else { 5 }),
            }
            let number = |bytes: &mut Bytes| (bytes.get_i32() == 8).then(|| bytes.get_i64()).unwrap();
            let text = |bytes: &mut Bytes| {
                let len = bytes.get_i32();
                bytes.split_to(len as usize).to_vec()
            };
            let (id, account) = (number(&mut bytes), number(&mut bytes));
            let (kind, payload) = (text(&mut bytes), text(&mut bytes));
            assert_eq!(number(&mut bytes), micros(at));
            let trace = match traced.then(|| bytes.get_i32()) {
                None | Some(-1) => None,
                Some(len) => Some(Trace::from_stored(&bytes.split_to(len as usize)).unwrap()),
            };
            rows.push((id, account, String::from_utf8(kind).unwrap(), payload, trace));
        }
        assert!(bytes.is_empty());
        rows
    }

    fn trace() -> impl Strategy<Value = Trace> {
        (any::<u128>(), any::<u64>(), 0u8..4, any::<bool>()).prop_map(|(id, parent, flags, recorded)| Trace {
            id: id.to_be_bytes(),
            parent: parent.to_be_bytes(),
            flags,
            recorded,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_encoded_reads_back_in_pieces_of_bounded_size(
            rows in prop::collection::vec((any::<i64>(), any::<i64>(), ".{0,20}", prop::collection::vec(any::<u8>(), 0..20_000), prop::option::of(trace())), 0..40),
            traced: bool,
            ms in 0i64..4_000_000_000_000,
        ) {
            let (mut encoder, mut sent) = (Rows::new(traced), Vec::new());
            let mut rows = rows;
            rows.iter_mut().filter(|_| !traced).for_each(|row| row.4 = None);
            for (id, account, kind, payload, trace) in &rows {
                let event = Event { id: *id, account: *account, kind, payload, trace: *trace };
                if let Some(piece) = encoder.add(event, Timestamp(ms)) {
                    prop_assert!(piece.len() >= PIECE && piece.len() < PIECE + 20_200);
                    sent.extend_from_slice(&piece);
                }
            }
            sent.extend_from_slice(&encoder.end());
            prop_assert_eq!(decode(sent.into(), Timestamp(ms), traced), rows);
        }
    }

    #[test]
    fn postgres_counts_from_the_year_2000() {
        assert_eq!(micros(Timestamp(946_684_800_000)), 0);
        assert_eq!(micros(Timestamp(946_684_800_001)), 1000);
        assert_eq!(micros(Timestamp(0)), -EPOCH);
    }
}
