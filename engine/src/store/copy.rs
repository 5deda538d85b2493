//! Rows of `events` in the binary form of COPY (PostgreSQL manual, "COPY", section "Binary Format").

use bytes::{BufMut, Bytes, BytesMut};

use crate::model::Timestamp;

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
}

impl Rows {
    pub(super) fn new() -> Rows {
        let mut out = BytesMut::with_capacity(PIECE * 2);
        out.put_slice(SIGNATURE);
        // No flags, and nothing more in the header.
        out.put_i32(0);
        out.put_i32(0);
        Rows { out }
    }

    /// Adds a row; returns a piece when there is enough for one.
    pub(super) fn add(
        &mut self,
        id: i64,
        account: i64,
        kind: &str,
        payload: &[u8],
        at: Timestamp,
    ) -> Option<Bytes> {
        self.out.put_i16(5);
        self.number(id);
        self.number(account);
        self.text(kind.as_bytes());
        self.text(payload);
        self.number(micros(at));
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

    type Row = (i64, i64, String, Vec<u8>);

    /// Reads what was encoded, strictly.
    fn decode(mut bytes: Bytes, at: Timestamp) -> Vec<Row> {
        assert_eq!(bytes.split_to(SIGNATURE.len()), SIGNATURE);
        assert_eq!((bytes.get_i32(), bytes.get_i32()), (0, 0));
        let mut rows = Vec::new();
        loop {
            match bytes.get_i16() {
                -1 => break,
                fields => assert_eq!(fields, 5),
            }
            let number = |bytes: &mut Bytes| (bytes.get_i32() == 8).then(|| bytes.get_i64()).unwrap();
            let text = |bytes: &mut Bytes| {
                let len = bytes.get_i32();
                bytes.split_to(len as usize).to_vec()
            };
            let (id, account) = (number(&mut bytes), number(&mut bytes));
            let (kind, payload) = (text(&mut bytes), text(&mut bytes));
            assert_eq!(number(&mut bytes), micros(at));
            rows.push((id, account, String::from_utf8(kind).unwrap(), payload));
        }
        assert!(bytes.is_empty());
        rows
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_encoded_reads_back_in_pieces_of_bounded_size(
            rows in prop::collection::vec((any::<i64>(), any::<i64>(), ".{0,20}", prop::collection::vec(any::<u8>(), 0..20_000)), 0..40),
            ms in 0i64..4_000_000_000_000,
        ) {
            let (mut encoder, mut sent) = (Rows::new(), Vec::new());
            for (id, account, kind, payload) in &rows {
                if let Some(piece) = encoder.add(*id, *account, kind, payload, Timestamp(ms)) {
                    prop_assert!(piece.len() >= PIECE && piece.len() < PIECE + 20_200);
                    sent.extend_from_slice(&piece);
                }
            }
            sent.extend_from_slice(&encoder.end());
            prop_assert_eq!(decode(sent.into(), Timestamp(ms)), rows);
        }
    }

    #[test]
    fn postgres_counts_from_the_year_2000() {
        assert_eq!(micros(Timestamp(946_684_800_000)), 0);
        assert_eq!(micros(Timestamp(946_684_800_001)), 1000);
        assert_eq!(micros(Timestamp(0)), -EPOCH);
    }
}
