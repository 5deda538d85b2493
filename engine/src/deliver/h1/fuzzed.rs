//! A reply as it is read, for the fuzz target.

use futures_util::FutureExt;

use super::*;

/// Takes every request, and has a reply ready in pieces.
struct Pieces {
    reply: Vec<u8>,
    at: usize,
    piece: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context, into: &mut ReadBuf) -> Poll<io::Result<()>> {
        let end = self.reply.len().min(self.at + self.piece.min(into.remaining()));
        into.put_slice(&self.reply[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Io for Pieces {
    fn poll_unasked(&mut self, _: &mut Context) -> Poll<()> {
        Poll::Ready(())
    }

    fn fails_whole(&self) -> bool {
        true
    }
}

/// The status of a reply, as much as is kept of its body, whether that has ended, and whether the connection is of further use.
/// None where it is none.
pub(crate) fn reply(reply: &[u8], piece: usize, max: usize) -> Option<(u16, Vec<u8>, bool, bool)> {
    let mut h1 = H1::new(Pieces { reply: reply.to_vec(), at: 0, piece }, 1);
    let read = async {
        let wire = Wire { start: b"POST / HTTP/1.1\r\n\r\n".to_vec(), rest: Bytes::new() };
        let mut sending = Sending::new(&wire);
        let (head, mut body) = h1.exchange(&mut sending).await.ok()?;
        let mut into = Vec::new();
        let ended = h1.read(&mut sending, &mut body, max, &mut into).await.unwrap_or(false);
        Some((head.status.as_u16(), into, ended, head.keeps))
    };
    read.now_or_never().expect("there is nothing to wait for")
}
