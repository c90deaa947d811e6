//! What waits to be sent on a connection. Headers and short data are gathered in one buffer, long data is sent from where the
//! device server put it; all of it leaves in few vectored writes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::sync::Arc;

use crate::backing::Part;
use crate::pdu::{digest, padded};

/// Data up to this length is copied behind its header.
const COPY_BYTES_MAX: usize = 8 << 10;
/// Parts of longer data that are shorter are copied, too.
const LENT_BYTES_MIN: usize = 2 << 10;
/// Slices of one write.
const SLICES_MAX: usize = 128;
/// A gathering buffer that is larger is not kept.
const SPARE_BYTES_MAX: usize = 1 << 20;

enum Segment {
    Gathered(Vec<u8>),
    Shared(Arc<Vec<u8>>, usize, usize),
    Lent(Part),
}

/// All data-in of a command: its own, and behind it what is lent to it.
#[derive(Default)]
pub(crate) struct Source {
    pub(crate) own: Arc<Vec<u8>>,
    pub(crate) lent: Vec<Part>,
}

impl Source {
    /// Calls `each` with bytes `from..to`, segment by segment.
    fn segments(&self, from: usize, to: usize, mut each: impl FnMut(Segment)) {
        let own = self.own.len();
        if from < own.min(to) {
            each(Segment::Shared(Arc::clone(&self.own), from, own.min(to)));
        }
        let mut start = own;
        for part in &self.lent {
            let end = start + part.bytes().len();
            if start >= to {
                break;
            }
            let (low, high) = (from.max(start), to.min(end));
            if low < high {
                each(Segment::Lent(part.part(low - start, high - low)));
            }
            start = end;
        }
    }
}

impl Segment {
    /// Whether to send it from where it lies: it is not too short for that, and does not keep far more memory than it has bytes.
    fn may_stay(&self) -> bool {
        match self {
            Segment::Gathered(_) => false,
            Segment::Shared(..) => true,
            Segment::Lent(part) => {
                let bytes = part.bytes().len();
                bytes >= LENT_BYTES_MIN && part.held_bytes() / 4 <= bytes
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Gathered(bytes) => bytes,
            Segment::Shared(data, from, to) => data.get(*from..*to).unwrap_or_default(),
            Segment::Lent(part) => part.bytes(),
        }
    }
}

/// The data segment of a PDU.
pub(crate) enum Data<'a> {
    None,
    /// To be copied.
    Borrowed(&'a [u8]),
    /// A range of a command's data-in.
    From(&'a Source, usize, usize),
}

#[derive(Default)]
pub(crate) struct OutQueue {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that were sent.
    sent: usize,
    bytes: usize,
    spare: Vec<u8>,
    /// Room for the segments of one PDU.
    pieces: Vec<Segment>,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

impl OutQueue {
    pub(crate) fn new(header_digest: bool, data_digest: bool) -> OutQueue {
        OutQueue { header_digest, data_digest, ..OutQueue::default() }
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn gathered(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.back(), Some(Segment::Gathered(_))) {
            self.segments.push_back(Segment::Gathered(std::mem::take(&mut self.spare)));
        }
        match self.segments.back_mut() {
            Some(Segment::Gathered(bytes)) => bytes,
            // The line above put one there.
            _ => &mut self.spare,
        }
    }

    fn gather(&mut self, bytes: &[u8]) {
        self.gathered().extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    /// Queues a PDU whose header has the length of its data.
    pub(crate) fn push(&mut self, header: &[u8], data: Data<'_>) {
        self.gather(header);
        if self.header_digest {
            self.gather(&digest(&[header]));
        }
        let mut segments = std::mem::take(&mut self.pieces);
        let copied: &[u8] = match data {
            Data::None => &[],
            Data::Borrowed(bytes) => bytes,
            Data::From(source, from, to) => {
                source.segments(from, to, |segment| segments.push(segment));
                &[]
            }
        };
        let bytes = copied.len() + segments.iter().map(|s| s.bytes().len()).sum::<usize>();
        let padding = &[0u8; 3][..(padded(bytes) - bytes).min(3)];
        let sum = (self.data_digest && bytes > 0).then(|| {
            let mut covered = vec![copied];
            covered.extend(segments.iter().map(Segment::bytes));
            covered.push(padding);
            digest(&covered)
        });
        self.gather(copied);
        for segment in segments.drain(..) {
            if bytes > COPY_BYTES_MAX && segment.may_stay() {
                self.bytes += segment.bytes().len();
                self.segments.push_back(segment);
            } else {
                self.gather(segment.bytes());
            }
        }
        self.pieces = segments;
        if !padding.is_empty() {
            self.gather(padding);
        }
        if let Some(sum) = sum {
            self.gather(&sum);
        }
    }

    /// Sends as much as the socket takes. Returns the bytes sent.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn send(&mut self, mut socket: impl Write) -> io::Result<usize> {
        let mut total = 0;
        while self.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (mut count, mut skip) = (0, self.sent);
            for (slot, segment) in slices.iter_mut().zip(&self.segments) {
                *slot = IoSlice::new(segment.bytes().get(skip..).unwrap_or_default());
                skip = 0;
                count += 1;
            }
            match socket.write_vectored(slices.get(..count).unwrap_or_default()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    total += bytes;
                    self.advance(bytes);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(total)
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.sent += bytes;
        while let Some(first) = self.segments.front() {
            let length = first.bytes().len();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            if let Some(Segment::Gathered(mut buffer)) = self.segments.pop_front()
                && buffer.capacity() <= SPARE_BYTES_MAX
            {
                buffer.clear();
                self.spare = buffer;
            }
        }
    }

    /// Gives memory back that is only kept for speed.
    pub(crate) fn shrink(&mut self) {
        self.spare = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::frame::{Rules, body, header};
    use proptest::prelude::*;

    /// Takes a few bytes at a time, and then none.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for &mut Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(lengths in prop::collection::vec(prop_oneof![0..40usize, 9000..9100usize], 1..12),
                                  room in 1..5000usize, digests in 0..4u8,
                                  part in 1..3000usize, spread in 1..7usize) {
            let mut queue = OutQueue { header_digest: digests & 1 != 0, data_digest: digests & 2 != 0, ..OutQueue::default() };
            let mut narrow = Narrow { taken: Vec::new(), room: 0 };
            for (n, length) in lengths.iter().enumerate() {
                let mut head = [u8::try_from(n).unwrap(); 48];
                head[4] = 0;
                head[5..8].copy_from_slice(&u32::try_from(*length).unwrap().to_be_bytes()[1..]);
                // cut into what is its own and what is lent, in parts as they come
                let fill = u8::try_from(n).unwrap();
                let own = if n % 3 == 0 { length + 1 } else { (length + 1).min(n * 100) };
                let mut data = Source { own: Arc::new(vec![fill; own]), lent: Vec::new() };
                let (mut left, mut step) = (length + 2 - own, part);
                while left > 0 {
                    let bytes = step.min(left);
                    data.lent.push(Part::new(Arc::new(vec![fill; bytes * spread]), bytes * (spread - 1)..bytes * spread));
                    (left, step) = (left - bytes, step * 2 + 1);
                }
                queue.push(&head, Data::From(&data, 1, length + 1));
                narrow.room = room;
                queue.send(&mut narrow).unwrap();
            }
            while queue.bytes() > 0 {
                narrow.room = room;
                queue.send(&mut narrow).unwrap();
            }
            let rules = Rules { header_digest: digests & 1 != 0, data_digest: digests & 2 != 0, data_bytes_max: 10_000 };
            let mut rest = narrow.taken.as_slice();
            for (n, length) in lengths.iter().enumerate() {
                let found = header(rest, &rules).unwrap().unwrap();
                let pdu = body(rest, &found, &rules).unwrap();
                prop_assert!(pdu.data_good);
                prop_assert_eq!(pdu.data, &vec![u8::try_from(n).unwrap(); *length][..]);
                rest = &rest[found.total..];
            }
            prop_assert!(rest.is_empty());
        }
    }
}
