//! Small images made byte by byte from the specification, without the code under test: sound ones, to be broken.

use super::super::source::checksum;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
pub const REGIONS: [u64; 2] = [192 * KIB, 256 * KIB];
pub const LOG: u64 = MIB;
pub const META: u64 = 2 * MIB;
pub const BAT: u64 = 3 * MIB;
/// Entry of the only bitmap: 4096 blocks of 1 MiB with sectors of 512 bytes are a chunk.
pub const BITMAP_ENTRY: u64 = 4096;
pub const LOG_GUID: u128 = 0x1111_2222_3333_4444_5555_6666_7777_8888;
pub const DATA_GUID: u128 = 0xdddd;
pub const PARENT_GUID: &str = "{03020100-0504-0706-0809-0a0b0c0d0e0f}";

pub const BAT_ID: &str = "2DC27766-F623-4200-9D64-115E9BFD4A08";
pub const META_ID: &str = "8B7CA206-4790-4B9A-B8FE-575F050F886E";
pub const PARAMS_ID: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";
pub const SIZE_ID: &str = "2FA54224-CD1B-4876-B211-5DBED83BF4B8";
pub const DISK_ID: &str = "BECA12AB-B2E6-4523-93EF-C309E000C746";
pub const LOGICAL_ID: &str = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F";
pub const PHYSICAL_ID: &str = "CDA348C7-445D-4471-9CC9-E9885251C556";
pub const LOCATOR_ID: &str = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C";
pub const LOCATOR_TYPE: &str = "B04AEFB7-D19E-4A81-B789-25B8E9445913";
pub const OTHER_ID: &str = "0BADF00D-0000-0000-0000-000000000001";

/// A GUID of the specification as bytes in the file.
pub fn guid(text: &str) -> [u8; 16] {
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let b: Vec<u8> = (0..16).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
    [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
}

/// A whole image.
#[derive(Clone)]
pub struct Image {
    pub bytes: Vec<u8>,
}

impl Image {
    pub fn put(&mut self, at: u64, bytes: &[u8]) -> &mut Image {
        let at = at as usize;
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn u16(&mut self, at: u64, value: u16) -> &mut Image {
        self.put(at, &value.to_le_bytes())
    }

    pub fn u32(&mut self, at: u64, value: u32) -> &mut Image {
        self.put(at, &value.to_le_bytes())
    }

    pub fn u64(&mut self, at: u64, value: u64) -> &mut Image {
        self.put(at, &value.to_le_bytes())
    }

    fn seal(&mut self, at: u64, len: u64) {
        let sum = checksum(&self.bytes[at as usize..(at + len) as usize]);
        self.u32(at + 4, sum);
    }

    /// Changes both headers, and their checksums.
    pub fn headers(&mut self, change: impl Fn(&mut Image, u64)) -> &mut Image {
        for at in HEADERS {
            change(self, at);
            self.seal(at, 4096);
        }
        self
    }

    /// Changes one header, and its checksum.
    pub fn header(&mut self, number: usize, change: impl Fn(&mut Image, u64)) -> &mut Image {
        change(self, HEADERS[number]);
        self.seal(HEADERS[number], 4096);
        self
    }

    /// Changes both region tables, and their checksums.
    pub fn regions(&mut self, change: impl Fn(&mut Image, u64)) -> &mut Image {
        for at in REGIONS {
            change(self, at);
            self.seal(at, 65536);
        }
        self
    }

    /// Changes one region table, and its checksum.
    pub fn region(&mut self, number: usize, change: impl Fn(&mut Image, u64)) -> &mut Image {
        change(self, REGIONS[number]);
        self.seal(REGIONS[number], 65536);
        self
    }

    /// Writes an entry of the region table at `table`.
    pub fn region_entry(&mut self, table: u64, index: u64, id: &str, at: u64, len: u32, flags: u32) -> &mut Image {
        let entry = table + 16 + 32 * index;
        self.put(entry, &guid(id)).u64(entry + 16, at).u32(entry + 24, len).u32(entry + 28, flags)
    }

    /// Writes an entry of the metadata table; `at` counts from the start of the region.
    pub fn item(&mut self, index: u64, id: &str, at: u64, len: u32, flags: u32) -> &mut Image {
        let entry = META + 32 + 32 * index;
        self.put(entry, &guid(id)).u32(entry + 16, at as u32).u32(entry + 20, len).u32(entry + 24, flags)
    }

    /// Writes a BAT entry.
    pub fn bat(&mut self, index: u64, state: u64, mib: u64) -> &mut Image {
        self.u64(BAT + 8 * index, state | mib << 20)
    }

    /// Makes the file so many bytes long.
    pub fn len(&mut self, bytes: u64) -> &mut Image {
        self.bytes.resize(bytes as usize, 0);
        self
    }

    /// Writes a log entry, with its checksum. Pieces are `(target, Some(contents))` or `(target, None)` for 4 KiB of zeros.
    pub fn log_entry(&mut self, at: u64, entry: &LogEntry) -> &mut Image {
        let mut bytes = entry.bytes();
        if let Some(change) = entry.change {
            change(&mut bytes);
        }
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        for (i, sector) in bytes.chunks(4096).enumerate() {
            let place = LOG + (at - LOG + 4096 * i as u64) % MIB;
            self.put(place, sector);
        }
        self
    }
}

/// A log entry to be written.
#[derive(Clone)]
pub struct LogEntry {
    pub sequence: u64,
    /// Of the sequence's first entry, from the start of the log.
    pub tail: u32,
    pub flushed: u64,
    pub last: u64,
    pub pieces: Vec<(u64, Option<Vec<u8>>)>,
    /// Breaks it, before the checksum.
    pub change: Option<fn(&mut Vec<u8>)>,
}

impl LogEntry {
    pub fn new(sequence: u64) -> LogEntry {
        LogEntry { sequence, tail: 0, flushed: 6 * MIB, last: 6 * MIB, pieces: Vec::new(), change: None }
    }

    fn bytes(&self) -> Vec<u8> {
        let sectors = 1 + (self.pieces.len().saturating_sub(126)).div_ceil(128);
        let data = self.pieces.iter().filter(|piece| piece.1.is_some()).count();
        let mut out = vec![0; 4096 * (sectors + data)];
        let len = out.len() as u32;
        let put = |out: &mut Vec<u8>, at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut out, 0, b"loge");
        put(&mut out, 8, &len.to_le_bytes());
        put(&mut out, 12, &self.tail.to_le_bytes());
        put(&mut out, 16, &self.sequence.to_le_bytes());
        put(&mut out, 24, &(self.pieces.len() as u32).to_le_bytes());
        put(&mut out, 32, &LOG_GUID.to_le_bytes());
        put(&mut out, 48, &self.flushed.to_le_bytes());
        put(&mut out, 56, &self.last.to_le_bytes());
        let mut sector = 4096 * sectors;
        for (i, (target, contents)) in self.pieces.iter().enumerate() {
            let at = 64 + 32 * i;
            match contents {
                None => {
                    put(&mut out, at, b"zero");
                    put(&mut out, at + 8, &4096u64.to_le_bytes());
                }
                Some(contents) => {
                    put(&mut out, at, b"desc");
                    put(&mut out, at + 4, &contents[4092..]);
                    put(&mut out, at + 8, &contents[..8]);
                    put(&mut out, sector, contents);
                    put(&mut out, sector, b"data");
                    put(&mut out, sector + 4, &((self.sequence >> 32) as u32).to_le_bytes());
                    put(&mut out, sector + 4092, &(self.sequence as u32).to_le_bytes());
                    sector += 4096;
                }
            }
            put(&mut out, at + 16, &target.to_le_bytes());
            put(&mut out, at + 24, &self.sequence.to_le_bytes());
        }
        out
    }
}

/// A dynamic image: 8 blocks of 1 MiB, two of them present, one zero.
pub fn dynamic() -> Image {
    let mut image = Image { bytes: vec![0; 6 << 20] };
    image.put(0, b"vhdxfile");
    for (i, at) in HEADERS.into_iter().enumerate() {
        image.put(at, b"head").u64(at + 8, 5 + i as u64).put(at + 16, &[0xf1; 16]);
        image.put(at + 32, &DATA_GUID.to_le_bytes()).u16(at + 66, 1).u32(at + 68, MIB as u32).u64(at + 72, LOG);
    }
    image.headers(|_, _| {});
    image.regions(|image, at| {
        image.put(at, b"regi").u32(at + 8, 2);
        image.region_entry(at, 0, BAT_ID, BAT, MIB as u32, 1).region_entry(at, 1, META_ID, META, MIB as u32, 1);
    });
    image.put(META, b"metadata").u16(META + 10, 5);
    image.item(0, PARAMS_ID, 65536, 8, 4).item(1, SIZE_ID, 65544, 8, 6).item(2, DISK_ID, 65552, 16, 6);
    image.item(3, LOGICAL_ID, 65568, 4, 6).item(4, PHYSICAL_ID, 65572, 4, 6);
    image.u32(META + 65536, MIB as u32).u64(META + 65544, 8 * MIB).put(META + 65552, &[7; 16]);
    image.u32(META + 65568, 512).u32(META + 65572, 4096);
    image.bat(0, 6, 4).bat(1, 6, 5).bat(2, 2, 0);
    image.put(4 * MIB, &[0xa5; 4096]).put(5 * MIB, &[0x5a; 4096]);
    image
}

/// Pairs of a parent locator as its bytes.
pub fn locator(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = guid(LOCATOR_TYPE).to_vec();
    out.extend(0u16.to_le_bytes());
    out.extend((pairs.len() as u16).to_le_bytes());
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let mut at = 20 + 12 * pairs.len() as u32;
    for (key, value) in pairs {
        let (key, value) = (utf16(key).len() as u32, utf16(value).len() as u32);
        out.extend(at.to_le_bytes());
        out.extend((at + key).to_le_bytes());
        out.extend((key as u16).to_le_bytes());
        out.extend((value as u16).to_le_bytes());
        at += key + value;
    }
    for (key, value) in pairs {
        out.extend(utf16(key));
        out.extend(utf16(value));
    }
    out
}

/// Where the locator of [`differencing`] lies in the file.
pub const LOCATOR: u64 = META + 65600;

/// A differencing image: block 0 partially present at 4 MiB, its bitmap at 5 MiB, block 1 present at 6 MiB.
pub fn differencing() -> Image {
    let mut image = dynamic();
    image.len(7 * MIB).u32(META + 65540, 2).u16(META + 10, 6);
    set_locator(&mut image, &[("parent_linkage", PARENT_GUID), ("relative_path", ".\\parent.vhdx")]);
    image.bat(0, 7, 4).bat(1, 6, 6).bat(BITMAP_ENTRY, 6, 5).put(5 * MIB, &[0xff]);
    image
}

/// Replaces the locator.
pub fn set_locator(image: &mut Image, pairs: &[(&str, &str)]) {
    let bytes = locator(pairs);
    image.item(5, LOCATOR_ID, 65600, bytes.len() as u32, 4).put(LOCATOR, &bytes);
}

/// A dynamic image that was not closed: its log sets BAT entry 2 to present at 5 MiB and takes that from entry 1.
pub fn dirty() -> Image {
    let mut image = dynamic();
    let mut bat = vec![0; 4096];
    bat[..8].copy_from_slice(&(6u64 | 4 << 20).to_le_bytes());
    bat[16..24].copy_from_slice(&(6u64 | 5 << 20).to_le_bytes());
    set_log(&mut image, LogEntry { pieces: vec![(BAT, Some(bat))], ..LogEntry::new(9) });
    image
}

/// Makes one entry the log.
pub fn set_log(image: &mut Image, entry: LogEntry) {
    image.headers(|image, at| {
        image.put(at + 48, &LOG_GUID.to_le_bytes());
    });
    image.log_entry(LOG, &entry);
}
