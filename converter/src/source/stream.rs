//! A stream of bytes from the network as a reader for threads that may block.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;

/// Pieces of a body that may wait for the reader; each is what the network brought at once,
/// usually 8 to 64 KiB.
const PIECES: usize = 32;

/// The reading end; dropping it ends the download.
#[derive(Debug)]
pub(crate) struct StreamReader {
    pieces: mpsc::Receiver<Result<Bytes, String>>,
    piece: Bytes,
}

/// Starts to read `body` ahead on the runtime, and gives the end to read from.
pub(crate) fn reader<E: std::fmt::Display + Send>(
    mut body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
) -> StreamReader {
    let (send, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| error.to_string());
            let last = piece.is_err();
            if send.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    StreamReader {
        pieces,
        piece: Bytes::new(),
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_and_then_the_error_arrive_in_order() {
        let items = vec![
            Ok(Bytes::from_static(b"ab")),
            Ok(Bytes::new()),
            Ok(Bytes::from_static(b"c")),
            Err("connection lost"),
        ];
        let mut reader = reader(futures_util::stream::iter(items));
        let read = crate::source::blocking(move || {
            let mut out = Vec::new();
            let error = reader.read_to_end(&mut out).unwrap_err();
            (out, error.to_string())
        });
        assert_eq!(read.await, (b"abc".to_vec(), "connection lost".into()));
    }
}
