//! What came in on a connection and was not looked at yet.

use std::io::{self, ErrorKind, IoSliceMut, Read};

/// First size, and size of an idle connection, in bytes.
const FIRST_BYTES: usize = 16 << 10;
/// Size that it grows to while a connection is busy.
const BUSY_BYTES: usize = 512 << 10;

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// Bytes, and whether all room was filled, so that there may be more.
    Bytes { direct: usize, full: bool },
    /// Nothing now.
    Nothing,
    /// The peer has closed.
    End,
}

#[derive(Default)]
pub(crate) struct InBuffer {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl InBuffer {
    /// Bytes that are there.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.from = self.from.saturating_add(count).min(self.to);
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Makes room so that `need` bytes from the front can be there at once, and some to read into.
    pub(crate) fn make_room(&mut self, need: usize) {
        let held = self.to - self.from;
        let wanted = need.max(FIRST_BYTES).max(held + 1);
        if self.bytes.len() - self.from >= wanted.max(held + FIRST_BYTES / 2) {
            return;
        }
        if self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, held);
        }
        let wanted = wanted.max(held + FIRST_BYTES / 2);
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted.next_power_of_two(), 0);
        }
    }

    /// Reads once: first into `direct`, then into the buffer.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn receive(&mut self, mut socket: impl Read, direct: &mut [u8]) -> io::Result<Got> {
        let direct_bytes = direct.len();
        let room = self.bytes.get_mut(self.to..).unwrap_or_default();
        let room_bytes = room.len();
        let read = loop {
            let read = if direct_bytes == 0 {
                socket.read(room)
            } else {
                socket.read_vectored(&mut [IoSliceMut::new(direct), IoSliceMut::new(room)])
            };
            match read {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(0) => Ok(Got::End),
            Ok(count) => {
                let into_direct = count.min(direct_bytes);
                self.to += count - into_direct;
                let full = count == direct_bytes + room_bytes;
                if full && self.bytes.len() < BUSY_BYTES {
                    let larger = (self.bytes.len() * 4).clamp(FIRST_BYTES, BUSY_BYTES);
                    self.bytes.resize(larger, 0);
                }
                Ok(Got::Bytes { direct: into_direct, full })
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Got::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Gives memory back that is only kept for speed.
    pub(crate) fn shrink(&mut self) {
        if self.from == self.to && self.bytes.len() > FIRST_BYTES {
            *self = InBuffer::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stream_comes_through(pieces in prop::collection::vec((1..3000usize, 0..400usize), 1..200)) {
            let total: usize = pieces.iter().map(|(count, _)| count).sum();
            let all: Vec<u8> = (0..total).map(|n| (n * 7 % 251) as u8).collect();
            let mut source = all.as_slice();
            let (mut buffer, mut seen) = (InBuffer::default(), Vec::new());
            for (take, direct) in pieces {
                buffer.make_room(take);
                let mut target = vec![0; if buffer.bytes().is_empty() { direct } else { 0 }];
                match buffer.receive(&mut source, &mut target).unwrap() {
                    Got::Bytes { direct, .. } => seen.extend_from_slice(&target[..direct]),
                    Got::End => prop_assert!(source.is_empty()),
                    Got::Nothing => {}
                }
                let count = take.min(buffer.bytes().len());
                seen.extend_from_slice(&buffer.bytes()[..count]);
                buffer.consume(count);
            }
            seen.extend_from_slice(buffer.bytes());
            prop_assert_eq!(&all[..seen.len()], &seen[..]);
        }
    }
}
