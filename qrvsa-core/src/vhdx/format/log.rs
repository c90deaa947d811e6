//! The log (2.3): entries of descriptors and data, in whole sectors of 4 KiB.
//!
//! An entry is a header and descriptors, then one data sector per data descriptor. Everything here works on one entry's
//! bytes; where entries lie in the ring and which of them count is the engine's affair.

use std::ops::Range;

use super::fields::{checksum_with_hole, guid_at, has_at, put, u32_at, u64_at};
use super::guid::Guid;

/// Bytes of a log sector.
pub const SECTOR: usize = 4096;
/// Descriptors in the first sector of an entry, beside its header.
pub const FIRST_DESCRIPTORS: usize = 126;
/// Descriptors in each further sector.
pub const MORE_DESCRIPTORS: usize = 128;

const MAGIC: &[u8; 4] = b"loge";
const CHECKSUM_AT: usize = 4;
const HEADER_BYTES: usize = 64;
const DESCRIPTOR_BYTES: usize = 32;
const ZERO: &[u8; 4] = b"zero";
const DATA: &[u8; 4] = b"desc";
const DATA_SECTOR: &[u8; 4] = b"data";
/// The bytes of a sector that stand in its data sector; the rest is in the descriptor.
const BODY: Range<usize> = 8..SECTOR - 4;

/// The header of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// CRC-32C of the whole entry, its own field zeroed.
    pub checksum: u32,
    /// Bytes of the entry, a positive multiple of 4 KiB.
    pub length: u32,
    /// Offset in the log of the oldest entry that must be replayed with this one.
    pub tail: u32,
    /// One more than the entry before; never 0.
    pub sequence: u64,
    /// Number of descriptors.
    pub descriptors: u32,
    /// The log's identity when the entry was written.
    pub log_guid: Guid,
    /// The file was at least that long, durably, when the entry was written.
    pub flushed_file_offset: u64,
    /// The file must be at least that long after replay.
    pub last_file_offset: u64,
}

impl EntryHeader {
    /// Reads the header from the entry's first sector, if it can be one in a log of `log_length` bytes. The checksum is not
    /// looked at.
    pub fn decode(bytes: &[u8], log_length: u32) -> Option<EntryHeader> {
        if bytes.len() < HEADER_BYTES || !has_at(bytes, 0, MAGIC) {
            return None;
        }
        let header = EntryHeader {
            checksum: u32_at(bytes, CHECKSUM_AT),
            length: u32_at(bytes, 8),
            tail: u32_at(bytes, 12),
            sequence: u64_at(bytes, 16),
            descriptors: u32_at(bytes, 24),
            log_guid: guid_at(bytes, 32),
            flushed_file_offset: u64_at(bytes, 48),
            last_file_offset: u64_at(bytes, 56),
        };
        let sector = SECTOR as u32;
        let sane = header.length >= sector
            && header.length <= log_length
            && header.length.is_multiple_of(sector)
            && header.tail < log_length
            && header.tail.is_multiple_of(sector)
            && header.sequence > 0
            && descriptor_bytes(header.descriptors) <= u64::from(header.length);
        sane.then_some(header)
    }
}

/// Bytes of the sectors that hold the header and so many descriptors.
pub fn descriptor_bytes(descriptors: u32) -> u64 {
    let more = u64::from(descriptors).saturating_sub(FIRST_DESCRIPTORS as u64);
    (1 + more.div_ceil(MORE_DESCRIPTORS as u64)) * SECTOR as u64
}

/// One change that an entry makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The run becomes zeros.
    Zero {
        /// File offset, a multiple of 4 KiB.
        offset: u64,
        /// Bytes, a multiple of 4 KiB.
        length: u64,
    },
    /// A sector gets new contents.
    Data {
        /// File offset, a multiple of 4 KiB.
        offset: u64,
        /// The 4 KiB.
        sector: Box<[u8; SECTOR]>,
    },
}

/// An entry that was written whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its header.
    pub header: EntryHeader,
    /// What it changes, in order.
    pub changes: Vec<Change>,
}

/// The checksum an entry of these bytes must have.
pub fn entry_checksum(bytes: &[u8]) -> u32 {
    checksum_with_hole(bytes, CHECKSUM_AT)
}

impl Entry {
    /// Reads a whole entry: `bytes` are exactly as long as its header says. `None` if anything in it is wrong: checksum,
    /// descriptors, sequence numbers, lengths (2.3.1.1).
    pub fn decode(bytes: &[u8], log_length: u32) -> Option<Entry> {
        let header = EntryHeader::decode(bytes, log_length)?;
        if bytes.len() != usize::try_from(header.length).ok()? || header.checksum != entry_checksum(bytes) {
            return None;
        }
        let count = usize::try_from(header.descriptors).ok()?;
        let (heads, data) = bytes.split_at_checked(usize::try_from(descriptor_bytes(header.descriptors)).ok()?)?;
        let mut sectors = data.chunks_exact(SECTOR);
        let mut changes = Vec::with_capacity(count.min(bytes.len() / DESCRIPTOR_BYTES));
        for descriptor in heads.get(HEADER_BYTES..)?.chunks_exact(DESCRIPTOR_BYTES).take(count) {
            changes.push(decode_change(descriptor, header.sequence, &mut sectors)?);
        }
        (changes.len() == count && sectors.next().is_none()).then_some(Entry { header, changes })
    }

    /// Bytes of an entry with these changes.
    pub fn encoded_length(changes: &[Change]) -> u64 {
        let data = changes.iter().filter(|c| matches!(c, Change::Data { .. })).count() as u64;
        descriptor_bytes(u32::try_from(changes.len()).unwrap_or(u32::MAX)) + data * SECTOR as u64
    }

    /// The bytes; length, count of descriptors and checksum of the header are set here.
    ///
    /// # Panics
    /// If the entry is longer than 4 GiB; no log is.
    pub fn encode(&self) -> Vec<u8> {
        let header = &self.header;
        let length = u32::try_from(Entry::encoded_length(&self.changes)).expect("a log is shorter than 4 GiB");
        let count = u32::try_from(self.changes.len()).expect("the length fits, so the count does");
        let mut bytes = vec![0; length as usize];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &length.to_le_bytes());
        put(&mut bytes, 12, &header.tail.to_le_bytes());
        put(&mut bytes, 16, &header.sequence.to_le_bytes());
        put(&mut bytes, 24, &count.to_le_bytes());
        put(&mut bytes, 32, &header.log_guid.bytes());
        put(&mut bytes, 48, &header.flushed_file_offset.to_le_bytes());
        put(&mut bytes, 56, &header.last_file_offset.to_le_bytes());
        let mut data_at = descriptor_bytes(count) as usize;
        let sequence = header.sequence.to_le_bytes();
        for (i, change) in self.changes.iter().enumerate() {
            let at = HEADER_BYTES + i * DESCRIPTOR_BYTES;
            put(&mut bytes, at + 24, &sequence);
            match change {
                Change::Zero { offset, length } => {
                    put(&mut bytes, at, ZERO);
                    put(&mut bytes, at + 8, &length.to_le_bytes());
                    put(&mut bytes, at + 16, &offset.to_le_bytes());
                }
                Change::Data { offset, sector } => {
                    put(&mut bytes, at, DATA);
                    put(&mut bytes, at + 4, &sector[BODY.end..]);
                    put(&mut bytes, at + 8, &sector[..BODY.start]);
                    put(&mut bytes, at + 16, &offset.to_le_bytes());
                    put(&mut bytes, data_at, DATA_SECTOR);
                    put(&mut bytes, data_at + 4, &sequence[4..]);
                    put(&mut bytes, data_at + BODY.start, &sector[BODY]);
                    put(&mut bytes, data_at + BODY.end, &sequence[..4]);
                    data_at += SECTOR;
                }
            }
        }
        let checksum = entry_checksum(&bytes);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        bytes
    }
}

/// Decodes one descriptor, taking its data sector from `sectors`.
fn decode_change(descriptor: &[u8], sequence: u64, sectors: &mut std::slice::ChunksExact<'_, u8>) -> Option<Change> {
    let aligned = |n: u64| n.is_multiple_of(SECTOR as u64);
    let offset = u64_at(descriptor, 16);
    if u64_at(descriptor, 24) != sequence || !aligned(offset) {
        return None;
    }
    if has_at(descriptor, 0, ZERO) {
        let length = u64_at(descriptor, 8);
        let end = offset.checked_add(length)?;
        return (aligned(length) && i64::try_from(end).is_ok()).then_some(Change::Zero { offset, length });
    }
    if !has_at(descriptor, 0, DATA) || i64::try_from(offset.checked_add(SECTOR as u64)?).is_err() {
        return None;
    }
    let data = sectors.next()?;
    let found = u64::from(u32_at(data, 4)) << 32 | u64::from(u32_at(data, BODY.end));
    if !has_at(data, 0, DATA_SECTOR) || found != sequence {
        return None;
    }
    let mut sector = Box::new([0; SECTOR]);
    put(&mut *sector, 0, descriptor.get(8..16)?);
    put(&mut *sector, BODY.start, data.get(BODY)?);
    put(&mut *sector, BODY.end, descriptor.get(4..8)?);
    Some(Change::Data { offset, sector })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: u32 = 1 << 20;

    fn entry(changes: Vec<Change>) -> Entry {
        let header = EntryHeader {
            checksum: 0,
            length: 0,
            tail: 8192,
            sequence: 0x1_2345_6789_abcd,
            descriptors: 0,
            log_guid: Guid::random(3),
            flushed_file_offset: 4 << 20,
            last_file_offset: 5 << 20,
        };
        Entry { header, changes }
    }

    fn data(offset: u64, fill: u8) -> Change {
        let mut sector = Box::new([fill; SECTOR]);
        (sector[0], sector[SECTOR - 1]) = (1, 2);
        Change::Data { offset, sector }
    }

    #[test]
    fn what_is_written_is_read() {
        for count in [0, 1, 126, 127, 200] {
            let mut changes: Vec<Change> = (0..count).map(|i| data(i * 4096, 7)).collect();
            if count > 1 {
                changes[1] = Change::Zero { offset: 8 << 20, length: 1 << 20 };
            }
            let entry = entry(changes);
            let bytes = entry.encode();
            assert_eq!(bytes.len() as u64, Entry::encoded_length(&entry.changes));
            let read = Entry::decode(&bytes, LOG).unwrap();
            assert_eq!(read.changes, entry.changes);
            assert_eq!(u64::from(read.header.length), bytes.len() as u64);
            assert_eq!((read.header.sequence, read.header.tail), (entry.header.sequence, 8192));
        }
        assert_eq!(descriptor_bytes(126), 4096);
        assert_eq!(descriptor_bytes(127), 8192);
        assert_eq!(descriptor_bytes(126 + 128), 8192);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let bytes = entry(vec![data(4096, 9), Change::Zero { offset: 0, length: 4096 }]).encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Entry::decode(&damaged, LOG).is_none(), "byte {at}");
        }
        assert_eq!(Entry::decode(&bytes[..4096], LOG), None);
        assert_eq!(Entry::decode(&bytes, 4096), None, "longer than the log");
    }

    #[test]
    fn wrong_inside_although_the_checksum_is_right() {
        let good = entry(vec![data(4096, 9), Change::Zero { offset: 0, length: 4096 }]).encode();
        let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            let sum = entry_checksum(&bytes);
            put(&mut bytes, 4, &sum.to_le_bytes());
            Entry::decode(&bytes, LOG)
        };
        assert!(sealed(&|_| ()).is_some());
        // Another count, sequence, descriptor's sequence, alignment, magic, data sector's magic and sequence.
        for at in [16, 64 + 24, 64 + 16, 64, 96 + 8, 4096, 4096 + 4, 8191] {
            assert!(sealed(&|b| b[at] ^= 3).is_none(), "byte {at}");
        }
        assert!(sealed(&|b| b[24] = 3).is_none(), "a descriptor too many");
        assert!(sealed(&|b| b.extend([0; SECTOR])).is_none(), "a length of its own");
        assert!(sealed(&|b| put(b, 96 + 16, &(u64::MAX - 4095).to_le_bytes())).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn total(head in proptest::collection::vec(any::<u8>(), 16..300)) {
            let mut bytes = vec![0; 8192];
            put(&mut bytes, 0, MAGIC);
            put(&mut bytes, 8, &8192u32.to_le_bytes());
            put(&mut bytes, 16, &head);
            let sum = entry_checksum(&bytes);
            put(&mut bytes, 4, &sum.to_le_bytes());
            let _ = Entry::decode(&bytes, LOG);
        }
    }
}
