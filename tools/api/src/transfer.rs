//! The contents of a volume over the interface.
//!
//! `GET .../data?offset=&length=` answers with that many bytes, at most [`READ_BYTES_MAX`], of `application/octet-stream`.
//!
//! `PUT .../data?force=` fills a volume: whatever it holds is discarded (with `force` only, if it holds anything), the records
//! in the body are written, all is made durable, and then it is answered. What no record names reads as zeros. As long as the
//! request lasts, nobody else may write to the volume; it ends with the connection. The body is of
//! `application/octet-stream`, of any length, and is taken as fast as it can be written: records of
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | where in the volume, bytes, little-endian |
//! | 8 | 8 | how many bytes follow, little-endian; 0 in the last record |
//! | 16 | | the bytes |
//!
//! The last record has no bytes, and in the place of the first number the sum of all others' bytes. A body that ends without it
//! was broken off: the volume holds a part of what was to be written. After an error, the answer comes before the body's end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Method;
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;

use crate::client::Client;
use crate::error::{ApiError, ErrorKind};
use crate::names::FsName;
use crate::routes;
use crate::types::{VolumeExtents, VolumeFilled};

/// Most bytes that one request reads.
pub const READ_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the head of a record.
pub const RECORD_HEAD_BYTES: usize = 16;
/// The type of bodies that are bytes.
pub const OCTETS: &str = "application/octet-stream";
/// Records that wait to be sent.
const WAITING_MAX: usize = 2;

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Where in the volume; in the last record, the sum of all lengths.
    pub offset: u64,
    /// Bytes that follow; 0 in the last record.
    pub length: u64,
}

impl RecordHead {
    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; RECORD_HEAD_BYTES] {
        let bytes = u128::from(self.length) << 64 | u128::from(self.offset);
        bytes.to_le_bytes()
    }

    /// From bytes.
    #[must_use]
    pub fn decode(bytes: [u8; RECORD_HEAD_BYTES]) -> RecordHead {
        let both = u128::from_le_bytes(bytes);
        let half = |n: u128| u64::try_from(n & u128::from(u64::MAX)).unwrap_or(0);
        RecordHead { offset: half(both), length: half(both >> 64) }
    }
}

/// A body that comes from elsewhere, piece by piece.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<VolumeFilled, ApiError>> + 'a>>;

/// A volume that is being filled. Dropped before [`Fill::finish`], it breaks off.
pub struct Fill<'a> {
    client: &'a Client,
    pieces: Option<mpsc::Sender<Bytes>>,
    /// Until it has come.
    answer: Option<Answer<'a>>,
    written: u64,
}

impl Client {
    /// Where a volume holds data, from `offset` on.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` beyond the end.
    pub fn volume_extents(&self, name: &FsName, offset: u64) -> Result<VolumeExtents, ApiError> {
        self.get(&format!("{}?offset={offset}", routes::volume_part(name, "extents")))
    }

    /// Bytes of a volume; at most [`READ_BYTES_MAX`].
    ///
    /// # Errors
    /// `NotFound`, `Invalid` beyond the end, `Io`, `Corrupt`.
    pub fn read_volume(&self, name: &FsName, offset: u64, length: u64) -> Result<Bytes, ApiError> {
        let path = format!("{}?offset={offset}&length={length}", routes::volume_part(name, "data"));
        let bytes = self.send(Method::GET, &path, Bytes::new())?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        let what = format!("the daemon gave {} bytes of volume {name} in the place of {length}", bytes.len());
        Err(ApiError::new(ErrorKind::Internal, what))
    }

    /// Begins to fill a volume. An error comes with the first writes.
    pub fn fill_volume(&self, name: &FsName, force: bool) -> Fill<'_> {
        let (pieces, receiver) = mpsc::channel(WAITING_MAX);
        let path = format!("{}?force={force}", routes::volume_part(name, "data"));
        let answer = async move {
            let body = self.exchange(Method::PUT, &path, OCTETS, Pieces(receiver)).await?;
            Client::decode(&path, &body)
        };
        Fill { client: self, pieces: Some(pieces), answer: Some(Box::pin(answer)), written: 0 }
    }
}

impl Fill<'_> {
    /// Writes. Nothing of it may be durable before [`Fill::finish`].
    ///
    /// # Errors
    /// Why the daemon ended it: of this write or an earlier one.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ApiError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        let head = RecordHead { offset, length: bytes.len() as u64 };
        self.push([&head.encode(), bytes].concat().into())
    }

    /// Ends it and waits until all of it is durable.
    ///
    /// # Errors
    /// As [`Fill::write`]; the volume holds a part only.
    pub fn finish(mut self) -> Result<VolumeFilled, ApiError> {
        let end = RecordHead { offset: self.written, length: 0 };
        self.push(end.encode().to_vec().into())?;
        self.pieces = None;
        match self.answer.take() {
            Some(answer) => self.client.wait_for(answer),
            None => Err(ended()),
        }
    }

    /// Breaks it off, and waits until the daemon has let go of the volume.
    pub fn abandon(mut self) {
        self.pieces = None;
        if let Some(answer) = self.answer.take() {
            let _ = self.client.wait_for(answer);
        }
    }

    /// Hands a piece on, and sends what waits.
    fn push(&mut self, piece: Bytes) -> Result<(), ApiError> {
        let (Some(pieces), Some(mut answer)) = (&self.pieces, self.answer.take()) else { return Err(ended()) };
        let mut room = Box::pin(pieces.reserve());
        let outcome = self.client.wait_for(std::future::poll_fn(|context| {
            // The answer first: it drives the connection, and says why there is no room any more.
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(Err(answer));
            }
            room.as_mut().poll(context).map(Ok)
        }));
        match outcome {
            Ok(Ok(room)) => {
                room.send(piece);
                self.answer = Some(answer);
                Ok(())
            }
            // The connection takes nothing any more: the answer says why.
            Ok(Err(_)) => Err(self.client.wait_for(answer).err().unwrap_or_else(ended)),
            Err(answer) => Err(answer.err().unwrap_or_else(ended)),
        }
    }
}

fn ended() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the daemon ended the transfer before its end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn heads_round_trip(offset: u64, length: u64) {
            let head = RecordHead { offset, length };
            let bytes = head.encode();
            prop_assert_eq!(&bytes[..8], &offset.to_le_bytes());
            prop_assert_eq!(&bytes[8..], &length.to_le_bytes());
            prop_assert_eq!(RecordHead::decode(bytes), head);
        }
    }
}
