//! Logs as no well-behaved program leaves them, made here entry by entry.

use super::format::log::{Change, Entry, EntryHeader, SECTOR};
use super::*;

const LOG: u64 = MIB;
const LOG_BYTES: u64 = MIB;

/// An image whose header names a log with the entries that a test puts there.
struct Rig {
    file: Arc<SimFile>,
    guid: Guid,
    target: u64,
}

impl Rig {
    fn new() -> Rig {
        let (file, image) = fresh(&options(8 * MIB));
        image.write(0, &[1; 8192]).unwrap();
        image.close().unwrap();
        let target = image.block_entry(0).unwrap().offset();
        drop(image);
        let guid = Guid::random(0x1234);
        let mut header = header_of(&file);
        header.log_guid = guid;
        header.sequence += 1;
        for at in format::HEADER_OFFSETS {
            header.sequence += 1;
            file.tamper(at, &header.encode());
        }
        Rig { file, guid, target }
    }

    fn header(&self, sequence: u64, tail: u32) -> EntryHeader {
        let length = self.file.contents().length;
        EntryHeader {
            checksum: 0,
            length: 0,
            tail,
            sequence,
            descriptors: 0,
            log_guid: self.guid,
            flushed_file_offset: length,
            last_file_offset: length,
        }
    }

    /// An entry that fills the image's first sector of 4 KiB.
    fn fill(&self, fill: u8) -> Change {
        Change::Data { offset: self.target, sector: Box::new([fill; SECTOR]) }
    }

    /// Puts an entry into the ring, around its end if it must be.
    fn put(&self, at: u64, header: EntryHeader, changes: Vec<Change>) -> u64 {
        let bytes = Entry { header, changes }.encode();
        let first = bytes.len().min((LOG_BYTES - at) as usize);
        self.file.tamper(LOG + at, &bytes[..first]);
        self.file.tamper(LOG, &bytes[first..]);
        (at + bytes.len() as u64) % LOG_BYTES
    }

    fn first_byte(&self) -> Result<u8> {
        let reading = read(&*load(&self.file, false)?, 0, 4096)[0];
        let copy = SimFile::with(self.file.contents());
        let writing = load(&copy, true)?;
        assert_eq!(read(&writing, 0, 4096)[0], reading, "in memory as in the file");
        assert!(header_of(&copy).log_guid.is_nil());
        Ok(reading)
    }
}

#[test]
fn the_newest_sequence_counts_and_stale_entries_do_not() {
    let rig = Rig::new();
    let next = rig.put(8192, rig.header(10, 8192), vec![rig.fill(10)]);
    let next = rig.put(next, rig.header(11, 8192), vec![rig.fill(11)]);
    // Directly behind the newest, valid, of this log, but older.
    rig.put(next, rig.header(5, next as u32), vec![rig.fill(5)]);
    assert_eq!(rig.first_byte().unwrap(), 11);
    // A lone older one elsewhere changes nothing.
    rig.put(512 << 10, rig.header(9, 512 << 10), vec![rig.fill(9)]);
    assert_eq!(rig.first_byte().unwrap(), 11);
    // A gap in the numbers ends a sequence.
    rig.put(next, rig.header(13, 8192), vec![rig.fill(13)]);
    assert_eq!(rig.first_byte().unwrap(), 11);
    rig.put(next, rig.header(12, 8192), vec![rig.fill(12)]);
    assert_eq!(rig.first_byte().unwrap(), 12);
}

#[test]
fn a_sequence_counts_only_with_its_tail() {
    let rig = Rig::new();
    rig.put(0, rig.header(3, 0), vec![rig.fill(3)]);
    // Newer, but its tail is nowhere.
    rig.put(64 << 10, rig.header(20, 128 << 10), vec![rig.fill(20)]);
    assert_eq!(rig.first_byte().unwrap(), 3);
    // The tail is a valid entry, but of another sequence.
    rig.put(64 << 10, rig.header(20, 0), vec![rig.fill(20)]);
    assert_eq!(rig.first_byte().unwrap(), 3);
}

#[test]
fn only_from_the_tail_on() {
    let rig = Rig::new();
    let other = Change::Data { offset: rig.target + 4096, sector: Box::new([44; SECTOR]) };
    let second = rig.put(0, rig.header(1, 0), vec![other]);
    let third = rig.put(second, rig.header(2, 0), vec![rig.fill(2)]);
    rig.put(third, rig.header(3, second as u32), vec![]);
    let image = load(&rig.file, false).unwrap();
    assert_eq!(read(&image, 0, 8192)[4095..4097], [2, 1], "the first entry was made before");
}

#[test]
fn around_the_end_of_the_ring() {
    let rig = Rig::new();
    // The second entry begins in the last sector and goes on at the start.
    let next = rig.put(LOG_BYTES - 3 * 4096, rig.header(7, (LOG_BYTES - 3 * 4096) as u32), vec![rig.fill(7)]);
    assert_eq!(next, LOG_BYTES - 4096);
    let next = rig.put(next, rig.header(8, (LOG_BYTES - 3 * 4096) as u32), vec![rig.fill(8)]);
    assert_eq!(next, 4096);
    assert_eq!(rig.first_byte().unwrap(), 8);
    rig.put(next, rig.header(9, (LOG_BYTES - 4096) as u32), vec![rig.fill(9)]);
    assert_eq!(rig.first_byte().unwrap(), 9);
}

#[test]
fn entries_without_changes_and_zeros() {
    let rig = Rig::new();
    rig.put(0, rig.header(1, 0), vec![]);
    assert_eq!(rig.first_byte().unwrap(), 1, "nothing to do");
    let zero = Change::Zero { offset: rig.target, length: 4096 };
    rig.put(4096, rig.header(2, 0), vec![rig.fill(5), zero.clone()]);
    assert_eq!(rig.first_byte().unwrap(), 0);
    rig.put(4096, rig.header(2, 0), vec![zero, rig.fill(5)]);
    assert_eq!(rig.first_byte().unwrap(), 5, "in order");
}

#[test]
fn lengths_of_the_file() {
    let rig = Rig::new();
    let length = rig.file.contents().length;
    let mut header = rig.header(1, 0);
    header.last_file_offset = length + 3 * MIB;
    rig.put(0, header, vec![rig.fill(6)]);
    assert_eq!(rig.first_byte().unwrap(), 6);
    let image = load(&rig.file, true).unwrap();
    assert_eq!(image.file_length(), length + 3 * MIB);
    drop(image);
    // The file was longer when the entry was written.
    let rig = Rig::new();
    header.log_guid = rig.guid;
    header.flushed_file_offset = length + MIB;
    rig.put(0, header, vec![rig.fill(6)]);
    let error = rig.first_byte().unwrap_err();
    assert!(error.to_string().contains("was cut off"), "{error}");
    // A length that no file has.
    let rig = Rig::new();
    (header.log_guid, header.flushed_file_offset, header.last_file_offset) = (rig.guid, length, u64::MAX - 4095);
    rig.put(0, header, vec![]);
    assert_eq!(rig.first_byte().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_log_without_a_valid_entry_is_refused() {
    let rig = Rig::new();
    assert_eq!(rig.first_byte().unwrap_err().kind(), ErrorKind::Corrupt);
    // Of another log.
    let mut header = rig.header(1, 0);
    header.log_guid = Guid::random(77);
    rig.put(0, header, vec![rig.fill(9)]);
    assert!(rig.first_byte().unwrap_err().to_string().contains("no valid ones"));
    // Torn.
    rig.put(0, rig.header(1, 0), vec![rig.fill(9)]);
    rig.file.tamper(LOG + 5000, &[1]);
    let before = rig.file.bytes(0, 4 << 20);
    assert_eq!(load(&rig.file, true).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(rig.file.bytes(0, 4 << 20) == before);
}

#[test]
fn entries_that_would_change_what_no_log_may_change() {
    let data = |offset: u64| Change::Data { offset, sector: Box::new([0x55; SECTOR]) };
    let zero = |offset: u64, length: u64| Change::Zero { offset, length };
    for forged in [
        data(0),
        data(64 << 10),
        data((192 << 10) - 4096),
        data(LOG + LOG_BYTES - 4096),
        zero(0, 4096),
        zero((192 << 10) - 4096, 8192),
        zero(320 << 10, LOG),
        zero(LOG + LOG_BYTES - 4096, 8192),
    ] {
        let rig = Rig::new();
        let before = [rig.file.bytes(0, 4096), rig.file.bytes(64 << 10, 4096)];
        let next = rig.put(0, rig.header(1, 0), vec![rig.fill(10)]);
        rig.put(next, rig.header(2, next as u32), vec![rig.fill(66), forged.clone()]);
        assert_eq!(rig.first_byte().unwrap(), 10, "{forged:?}");
        // Alone, it is none.
        let lone = Rig::new();
        lone.put(0, lone.header(1, 0), vec![forged]);
        assert!(load(&lone.file, true).unwrap_err().to_string().contains("no valid ones"));
        assert_eq!(before, [rig.file.bytes(0, 4096), rig.file.bytes(64 << 10, 4096)]);
    }
    // Region tables are changed by a log when the table moves.
    let rig = Rig::new();
    let mut changes = vec![rig.fill(12)];
    for offset in format::REGION_TABLE_OFFSETS {
        let sector = Box::new(rig.file.bytes(offset, SECTOR).try_into().unwrap());
        rig.file.tamper(offset, &[0; SECTOR]);
        changes.push(Change::Data { offset, sector });
    }
    rig.put(0, rig.header(1, 0), changes);
    assert_eq!(rig.first_byte().unwrap(), 12);
}

#[test]
fn what_is_refused_is_not_replayed() {
    let unknown = |rig: &Rig| {
        let bytes = rig.file.bytes(format::REGION_TABLE_OFFSETS[0], format::REGION_TABLE_BYTES);
        let mut table = format::RawRegionTable::decode(&bytes).validate().unwrap();
        let region = format::Region { offset: rig.file.contents().length, length: MIB as u32 };
        table.others.push(format::RawRegion { guid: Guid::random(4711), region, flags: 1 });
        table.encode()
    };
    // The file says so, or what the log makes of it.
    for logged in [false, true] {
        let rig = Rig::new();
        let table = unknown(&rig);
        let mut header = rig.header(1, 0);
        header.last_file_offset += MIB;
        let mut changes = vec![rig.fill(10)];
        for offset in format::REGION_TABLE_OFFSETS {
            if logged {
                changes.push(Change::Data { offset, sector: Box::new(table[..SECTOR].try_into().unwrap()) });
            } else {
                rig.file.tamper(offset, &table);
            }
        }
        rig.put(0, header, changes);
        let (before, length) = (rig.file.bytes(0, 8 << 20), rig.file.contents().length);
        for write in [false, true] {
            assert_eq!(load(&rig.file, write).unwrap_err().kind(), ErrorKind::Unsupported, "{logged}");
        }
        assert!(rig.file.bytes(0, 8 << 20) == before && rig.file.contents().length == length, "{logged}");
    }
    // The parent is missing.
    let (_, base) = fresh(&options(8 * MIB));
    let file = child_of(&base, 1 << 20);
    let child = Image::load(file.clone(), true, &env(), |_| Ok(base.clone())).unwrap();
    child.write(0, &[3; 512]).unwrap();
    child.flush().unwrap();
    kill(child);
    let before = file.bytes(0, 8 << 20);
    load(&file, true).unwrap_err();
    assert!(file.bytes(0, 8 << 20) == before);
}

#[test]
fn an_entry_forged_to_change_the_table() {
    // What the log says is believed, and checked afterwards as any table is.
    let rig = Rig::new();
    let sector = Box::new([0xff; SECTOR]);
    rig.put(0, rig.header(1, 0), vec![Change::Data { offset: 3 * MIB, sector }]);
    let image = load(&rig.file, true).unwrap();
    assert_eq!(image.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(image.write(0, &[1; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn our_own_log_goes_around_its_ring() {
    let (file, image) = fresh(&options(900 << 30));
    for i in 0..400u64 {
        image.write(i * 2100 * MIB, &[i as u8; 512]).unwrap();
        image.flush().unwrap();
        if i % 50 == 49 {
            let killed = load(&SimFile::with(file.contents()), false).unwrap();
            assert!((0..=i).all(|j| read(&killed, j * 2100 * MIB, 512) == [j as u8; 512]));
        }
    }
}
