//! A connection that remembers the first bytes that came, to tell what the peer speaks.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The header of an HTTP/2 frame (RFC 9113, 4.1).
const ENOUGH: usize = 9;

/// What a peer speaks, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// It sent nothing, or too little to tell.
    Nothing,
    /// HTTP/1.
    Http1,
    /// HTTP/2: a SETTINGS frame comes first (RFC 9113, 3.4), or a GOAWAY.
    Http2,
    /// A TLS alert or handshake (RFC 8446, 5.1).
    Tls,
    /// Something else.
    Other,
}

/// What a peer speaks that began like that.
pub(super) fn speaks(first: &[u8]) -> Speaks {
    match first {
        [] => Speaks::Nothing,
        [b'H', b'T', b'T', b'P', b'/', b'1', ..] => Speaks::Http1,
        [0x15 | 0x16, 3, ..] => Speaks::Tls,
        [_, _, _, 4, 0 | 1, 0, 0, 0, 0, ..] | [_, _, _, 7, 0, 0, 0, 0, 0, ..] => Speaks::Http2,
        few if few.len() < ENOUGH => Speaks::Nothing,
        _ => Speaks::Other,
    }
}

/// The first bytes, while the connection is in others' hands.
#[derive(Clone, Default)]
pub(super) struct FirstBytes(Arc<Mutex<Bytes>>);

#[derive(Default)]
struct Bytes {
    bytes: [u8; ENOUGH],
    count: usize,
}

impl FirstBytes {
    /// What they say.
    pub fn speaks(&self) -> Speaks {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        speaks(&first.bytes[..first.count])
    }

    fn add(&self, new: &[u8]) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = first.count;
        for (place, byte) in first.bytes.iter_mut().skip(count).zip(new) {
            *place = *byte;
        }
        first.count = (count + new.len()).min(ENOUGH);
    }
}

/// The connection.
pub(super) struct Remembering<S> {
    stream: S,
    first: FirstBytes,
    full: bool,
}

impl<S> Remembering<S> {
    pub fn new(stream: S, first: FirstBytes) -> Self {
        Self {
            stream,
            first,
            full: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Remembering<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if !this.full {
            let new = &buffer.filled()[before..];
            this.first.add(new);
            this.full = new.len() >= ENOUGH;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Remembering<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_known_by_its_first_bytes() {
        for (parts, speaks) in [
            (&[&b""[..]][..], Speaks::Nothing),
            (&[b"HT"], Speaks::Nothing),
            (&[b"HTTP/1.1 200 OK"], Speaks::Http1),
            (&[b"HT", b"TP/1.", b"0 200"], Speaks::Http1),
            (&[b"\0\0\x12\x04\0\0\0\0\0\0\x03"], Speaks::Http2),
            (&[b"\0\0\x08\x07\0\0\0\0\0"], Speaks::Http2),
            (&[b"\x15\x03\x01\0\x02"], Speaks::Tls),
            (&[b"SSH-2.0-OpenSSH"], Speaks::Other),
        ] {
            let first = FirstBytes::default();
            for part in parts {
                first.add(part);
            }
            assert_eq!(first.speaks(), speaks, "{parts:?}");
        }
    }
}
