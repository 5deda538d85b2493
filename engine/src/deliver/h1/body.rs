//! Where the body of a reply ends.

use bytes::{Buf, BytesMut};
use httparse::Status;

use super::Error;

/// Bytes of all extensions of a body's chunks, which nobody needs.
const EXTENSIONS_MAX: usize = 16 << 10;

/// Bytes of a chunk's first line that is not whole yet: it is looked at again with each read.
const LINE_MAX: usize = 4 << 10;

/// Bytes of a chunk's first line that are no extension: digits, spaces, the end.
const LINE: usize = 32;

/// Bytes of all trailers together.
const TRAILERS_MAX: usize = 8 << 10;

/// What is still to come of a body.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::deliver) enum Body {
    /// So many bytes.
    Sized(u64),
    /// Whatever comes until the peer closes the connection.
    UntilClosed,
    Chunked(Chunk, Extensions),
}

/// Bytes of extensions so far.
type Extensions = usize;

/// The part of a chunked body that comes next.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::deliver) enum Chunk {
    Size,
    Data(u64),
    /// The end of line after the data.
    End,
    /// With so many bytes of trailers before.
    Trailers(usize),
}

impl Body {
    pub(super) fn chunked() -> Body {
        Body::Chunked(Chunk::Size, 0)
    }

    /// Moves what `input` has of the body to `into`, until that has more than `max` bytes. Returns whether the body has ended.
    pub(super) fn take(
        &mut self,
        input: &mut BytesMut,
        max: usize,
        into: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        match self {
            Body::Sized(left) => {
                part(left, input, max, into);
                Ok(*left == 0)
            }
            Body::UntilClosed => {
                part(&mut { u64::MAX }, input, max, into);
                Ok(false)
            }
            Body::Chunked(chunk, extensions) => loop {
                if into.len() > max {
                    return Ok(false);
                }
                match chunk.step(input, extensions, max, into)? {
                    Step::Next => {}
                    Step::More => return Ok(false),
                    Step::Over => return Ok(true),
                }
            },
        }
    }

    /// Whether a body may end where the connection does.
    pub(super) fn end_of_input(&self) -> Result<(), Error> {
        if *self == Body::UntilClosed { Ok(()) } else { Err(Error::Closed) }
    }
}

enum Step {
    Next,
    /// Of the input.
    More,
    Over,
}

impl Chunk {
    fn step(
        &mut self,
        input: &mut BytesMut,
        extensions: &mut Extensions,
        max: usize,
        into: &mut Vec<u8>,
    ) -> Result<Step, Error> {
        match self {
            // No digit at all would pass for a zero.
            Chunk::Size if input.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) => Err(Error::Chunk),
            Chunk::Size => match httparse::parse_chunk_size(input) {
                Ok(Status::Complete((end, size))) => {
                    *extensions += end.saturating_sub(LINE);
                    // An end of line within an extension is where others see the end of it.
                    if *extensions > EXTENSIONS_MAX || input[..end - 1].contains(&b'\n') {
                        return Err(Error::Chunk);
                    }
                    input.advance(end);
                    *self = if size == 0 { Chunk::Trailers(0) } else { Chunk::Data(size) };
                    Ok(Step::Next)
                }
                Ok(Status::Partial) if input.len() < LINE_MAX => Ok(Step::More),
                _ => Err(Error::Chunk),
            },
            Chunk::Data(left) => {
                part(left, input, max, into);
                if *left > 0 {
                    return Ok(Step::More);
                }
                *self = Chunk::End;
                Ok(Step::Next)
            }
            Chunk::End => match &input[..] {
                [b'\r', b'\n', ..] => {
                    input.advance(2);
                    *self = Chunk::Size;
                    Ok(Step::Next)
                }
                [] | [b'\r'] => Ok(Step::More),
                _ => Err(Error::Chunk),
            },
            Chunk::Trailers(before) => {
                let end = input.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                let Some(end) = end.filter(|end| *before + end <= TRAILERS_MAX) else {
                    return if *before + input.len() < TRAILERS_MAX {
                        Ok(Step::More)
                    } else {
                        Err(Error::Chunk)
                    };
                };
                let is_last = matches!(&input[..end], b"\r\n" | b"\n");
                *before += end;
                input.advance(end);
                Ok(if is_last { Step::Over } else { Step::Next })
            }
        }
    }
}

/// Moves up to `left` bytes, but no more than bring `into` one above `max`.
fn part(left: &mut u64, input: &mut BytesMut, max: usize, into: &mut Vec<u8>) {
    let room = (max + 1).saturating_sub(into.len());
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len()).min(room);
    into.extend_from_slice(&input[..n]);
    input.advance(n);
    *left -= n as u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a body that comes in pieces of so many bytes, and whether it has ended.
    fn read(mut body: Body, text: &[u8], piece: usize, max: usize) -> Result<(Vec<u8>, bool, usize), Error> {
        let (mut input, mut into, mut ended) = (BytesMut::new(), Vec::new(), false);
        let mut pieces = text.chunks(piece);
        while !ended && into.len() <= max {
            let Some(next) = pieces.next() else { break };
            input.extend_from_slice(next);
            ended = body.take(&mut input, max, &mut into)?;
        }
        let left = pieces.map(<[u8]>::len).sum::<usize>() + input.len();
        Ok((into, ended, left))
    }

    #[test]
    fn a_body_ends_where_it_says_however_it_is_cut() {
        let chunks = b"4;ext=\"x\"\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: x\r\n\r\nnext";
        for piece in 1..chunks.len() {
            let (found, ended, left) = read(Body::chunked(), chunks, piece, 100).unwrap();
            assert_eq!((&found[..], ended, left), (&b"Wikipedia"[..], true, 4), "{piece}");
            let (found, ended, left) = read(Body::Sized(3), b"abcdef", piece, 100).unwrap();
            assert_eq!((&found[..], ended, left), (&b"abc"[..], true, 3), "{piece}");
            let (found, ended, _) = read(Body::UntilClosed, b"abcdef", piece, 100).unwrap();
            assert_eq!((&found[..], ended), (&b"abcdef"[..], false), "{piece}");
        }
        assert!(Body::UntilClosed.end_of_input().is_ok() && Body::Sized(1).end_of_input().is_err());
    }

    #[test]
    fn no_more_is_kept_than_one_byte_above_the_cap() {
        for piece in 1..20 {
            for body in [Body::Sized(20), Body::UntilClosed] {
                let (found, ended, _) = read(body, &[b'x'; 20], piece, 10).unwrap();
                assert_eq!((found.len(), ended), (11, false));
            }
            let (found, ended, _) =
                read(Body::chunked(), b"8\r\nxxxxxxxx\r\n8\r\nxxxxxxxx\r\n0\r\n\r\n", piece, 10).unwrap();
            assert_eq!((found.len(), ended), (11, false));
            // What just fits is read to its end.
            assert!(read(Body::chunked(), b"a\r\nxxxxxxxxxx\r\n0\r\n\r\n", piece, 10).unwrap().1);
        }
    }

    #[test]
    fn broken_chunks_are_refused_and_endless_lines_too() {
        let long = format!("4;{}", "x".repeat(LINE_MAX));
        let many = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(20);
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(TRAILERS_MAX));
        let trailer = format!("0\r\n{}", "a".repeat(TRAILERS_MAX));
        for text in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "11111111111111111\r\n",
            "1\r\nabc\r\n",
            "1\r\na\n\n",
            &long,
            &many,
            "1;a\nb\r\na\r\n",
            &trailers,
            &trailer,
        ] {
            for piece in [1, 7, usize::MAX] {
                let found = read(Body::chunked(), text.as_bytes(), piece, 100);
                assert!(matches!(found, Err(Error::Chunk)), "{:?} {found:?}", &text[..text.len().min(20)]);
            }
        }
    }
}
