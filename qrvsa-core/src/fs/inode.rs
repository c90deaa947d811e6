//! The inode item: everything `stat` shows, and where a file's contents are.
//!
//! # On disk: INODE, key (inode number, 1, 0), 160 bytes, little-endian
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | log2 of the record size of the contents, 12 to 20 |
//! | 2 | u16 | zero |
//! | 4 | u32 | type and permission bits, as `st_mode` |
//! | 8 | u32 | flags, see below |
//! | 12 | u32 | hard links; directories: 2 + subdirectories; 0: deleted, listed as orphan |
//! | 16 | u32 | owner |
//! | 20 | u32 | group |
//! | 24 | u32 | device number of a device node |
//! | 28 | u32 | sum of (name length + 1) over the extended attributes |
//! | 32 | u64 | size in bytes; directories: 0 |
//! | 40 | i64 | access time, nanoseconds since the epoch |
//! | 48 | i64 | modification time |
//! | 56 | i64 | change time |
//! | 64 | i64 | birth time |
//! | 72 | u64 | primary parent: a directory that has an entry for this inode, 0 when unknown; root: itself |
//! | 80 | u64 | index of that entry in the primary parent, 0 when unknown |
//! | 88 | u64 | directories: the next index, at least 3; else 0 |
//! | 96 | u64 | directories: number of entries; else 0 |
//! | 104 | u32 | next chunk number for large extended attributes |
//! | 108 | 52 bytes | zero; kept for project quota and encryption |
//!
//! Flags: bit 0 `INLINE` (contents, if any, are in the INLINE item), bit 1 `HAS_HOLES` (a block below the size may be a
//! hole), bit 8 `HAS_CAPABILITY` (`security.capability` is set), bit 9 `HAS_ACCESS_ACL`, bit 10 `HAS_DEFAULT_ACL`. The
//! low eight bits describe contents. Any other bit is refused.
//!
//! # On disk: INLINE, key (inode number, 6, 0)
//!
//! The contents of a small regular file (exactly its size, 1 to 2048 bytes; no item for an empty file) or the target of
//! a symbolic link (1 to 4095 bytes). No header.

use crate::error::{Error, ErrorKind, Result};
use crate::fs::ops::{Attr, Ino};
use crate::fs::store::ObjectRef;
use crate::tree::Key;

/// Kind of inode items.
pub const KIND_INODE: u8 = 1;
/// Kind of inline contents.
pub const KIND_INLINE: u8 = 6;

/// Bytes of an inode item.
pub const INODE_BYTES: usize = 160;
/// Largest contents in bytes kept in the INLINE item of a regular file.
pub const INLINE_MAX: u64 = 2048;
/// Longest target of a symbolic link in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Most links an inode can have.
pub const LINK_MAX: u32 = 1 << 31;
/// Largest file size in bytes.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// Bytes of a block, the unit of holes.
pub const BLOCK: u64 = 4096;

/// The contents, if any, are in the INLINE item.
pub const FLAG_INLINE: u32 = 1 << 0;
/// A block below the size may be a hole.
pub const FLAG_HAS_HOLES: u32 = 1 << 1;
/// `security.capability` is set.
pub const FLAG_HAS_CAPABILITY: u32 = 1 << 8;
/// `system.posix_acl_access` is set.
pub const FLAG_HAS_ACCESS_ACL: u32 = 1 << 9;
/// `system.posix_acl_default` is set.
pub const FLAG_HAS_DEFAULT_ACL: u32 = 1 << 10;
/// Flags that describe contents.
pub const FLAGS_CONTENT: u32 = 0xff;
const FLAGS_KNOWN: u32 =
    FLAG_INLINE | FLAG_HAS_HOLES | FLAG_HAS_CAPABILITY | FLAG_HAS_ACCESS_ACL | FLAG_HAS_DEFAULT_ACL;

/// File type bits of a mode.
pub const S_IFMT: u32 = libc::S_IFMT;
/// Set-user-id bit.
pub const S_ISUID: u32 = libc::S_ISUID;
/// Set-group-id bit.
pub const S_ISGID: u32 = libc::S_ISGID;
/// Group execute bit.
pub const S_IXGRP: u32 = libc::S_IXGRP;

const VERSION: u8 = 1;
const RECORD_LOG2_MIN: u8 = 12;
const RECORD_LOG2_MAX: u8 = 20;

/// A decoded inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type and permission bits.
    pub mode: u32,
    /// Flags.
    pub flags: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Sum of (name length + 1) over the extended attributes.
    pub xattr_names_bytes: u32,
    /// Next chunk number for large extended attributes.
    pub xattr_next_chunk: u32,
    /// Record size in bytes.
    pub record_size: u32,
    /// Size in bytes.
    pub size: u64,
    /// Access time in nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Change time in nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Birth time in nanoseconds since the epoch.
    pub btime_ns: i64,
    /// Primary parent, 0 when unknown.
    pub parent: Ino,
    /// Index in the primary parent, 0 when unknown.
    pub parent_index: u64,
    /// Directories: the next index.
    pub next_index: u64,
    /// Directories: number of entries.
    pub entries: u64,
}

/// The key of an inode.
pub const fn inode_key(ino: Ino) -> Key {
    Key::new(ino, KIND_INODE, 0)
}

/// The key of inline contents.
pub const fn inline_key(ino: Ino) -> Key {
    Key::new(ino, KIND_INLINE, 0)
}

impl Inode {
    /// A new inode of this mode, with one link (a directory two), all times `now_ns`, and empty contents.
    pub fn new(mode: u32, now_ns: i64, record_size: u32) -> Inode {
        let dir = mode & S_IFMT == libc::S_IFDIR;
        let inline = matches!(mode & S_IFMT, libc::S_IFREG | libc::S_IFLNK);
        Inode {
            mode,
            flags: if inline { FLAG_INLINE } else { 0 },
            nlink: if dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            xattr_names_bytes: 0,
            xattr_next_chunk: 0,
            record_size,
            size: 0,
            atime_ns: now_ns,
            mtime_ns: now_ns,
            ctime_ns: now_ns,
            btime_ns: now_ns,
            parent: 0,
            parent_index: 0,
            next_index: if dir { crate::fs::dirent::INDEX_FIRST } else { 0 },
            entries: 0,
        }
    }

    /// The type bits.
    pub fn file_type(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type() == libc::S_IFLNK
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears a flag.
    pub fn set_flag(&mut self, flag: u32, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// The object that holds the contents.
    pub fn object(&self, ino: Ino) -> ObjectRef {
        ObjectRef { id: ino, record_size: self.record_size }
    }

    /// What `stat` shows. `allocated_bytes` is what the object has, asked for only when the file may have holes.
    pub fn attr(&self, ino: Ino, allocated_bytes: Option<u64>) -> Attr {
        let blocks = match self.file_type() {
            libc::S_IFREG | libc::S_IFLNK if self.has(FLAG_INLINE) => self.size.div_ceil(512),
            libc::S_IFREG => match allocated_bytes {
                Some(bytes) => bytes / 512,
                None => self.size.div_ceil(BLOCK).saturating_mul(BLOCK / 512),
            },
            libc::S_IFDIR => BLOCK / 512,
            _ => 0,
        };
        Attr {
            ino,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: if self.is_dir() { self.entries.saturating_add(2) } else { self.size },
            blocks,
            blksize: if self.is_regular() { self.record_size } else { BLOCK as u32 },
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
            btime_ns: self.btime_ns,
        }
    }

    /// The on-disk form.
    pub fn encode(&self) -> [u8; INODE_BYTES] {
        let mut b = [0; INODE_BYTES];
        b[0] = VERSION;
        b[1] = self.record_size.trailing_zeros() as u8;
        b[4..8].copy_from_slice(&self.mode.to_le_bytes());
        b[8..12].copy_from_slice(&self.flags.to_le_bytes());
        b[12..16].copy_from_slice(&self.nlink.to_le_bytes());
        b[16..20].copy_from_slice(&self.uid.to_le_bytes());
        b[20..24].copy_from_slice(&self.gid.to_le_bytes());
        b[24..28].copy_from_slice(&self.rdev.to_le_bytes());
        b[28..32].copy_from_slice(&self.xattr_names_bytes.to_le_bytes());
        b[32..40].copy_from_slice(&self.size.to_le_bytes());
        b[40..48].copy_from_slice(&self.atime_ns.to_le_bytes());
        b[48..56].copy_from_slice(&self.mtime_ns.to_le_bytes());
        b[56..64].copy_from_slice(&self.ctime_ns.to_le_bytes());
        b[64..72].copy_from_slice(&self.btime_ns.to_le_bytes());
        b[72..80].copy_from_slice(&self.parent.to_le_bytes());
        b[80..88].copy_from_slice(&self.parent_index.to_le_bytes());
        b[88..96].copy_from_slice(&self.next_index.to_le_bytes());
        b[96..104].copy_from_slice(&self.entries.to_le_bytes());
        b[104..108].copy_from_slice(&self.xattr_next_chunk.to_le_bytes());
        b
    }

    /// Reads the on-disk form.
    ///
    /// # Errors
    /// `Corrupt` for anything [`Inode::encode`] does not produce, `Unsupported` for a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Inode> {
        let b: &[u8; INODE_BYTES] =
            bytes.try_into().map_err(|_| corrupt(format!("inode item of {} bytes", bytes.len())))?;
        if b[0] != VERSION {
            return Err(Error::new(ErrorKind::Unsupported, format!("inode version {}", b[0])));
        }
        if !(RECORD_LOG2_MIN..=RECORD_LOG2_MAX).contains(&b[1]) {
            return Err(corrupt(format!("inode with record size 2^{}", b[1])));
        }
        if b[2] != 0 || b[3] != 0 || b[108..].iter().any(|&x| x != 0) {
            return Err(corrupt("inode with reserved bytes set".to_string()));
        }
        let inode = Inode {
            mode: u32_at(b, 4),
            flags: u32_at(b, 8),
            nlink: u32_at(b, 12),
            uid: u32_at(b, 16),
            gid: u32_at(b, 20),
            rdev: u32_at(b, 24),
            xattr_names_bytes: u32_at(b, 28),
            xattr_next_chunk: u32_at(b, 104),
            record_size: 1 << b[1],
            size: u64_at(b, 32),
            atime_ns: u64_at(b, 40) as i64,
            mtime_ns: u64_at(b, 48) as i64,
            ctime_ns: u64_at(b, 56) as i64,
            btime_ns: u64_at(b, 64) as i64,
            parent: u64_at(b, 72),
            parent_index: u64_at(b, 80),
            next_index: u64_at(b, 88),
            entries: u64_at(b, 96),
        };
        inode.validate()?;
        Ok(inode)
    }

    fn validate(&self) -> Result<()> {
        use crate::fs::dirent::INDEX_FIRST;
        if self.mode & !(S_IFMT | 0o7777) != 0 {
            return Err(corrupt(format!("inode with mode {:o}", self.mode)));
        }
        if self.flags & !FLAGS_KNOWN != 0 {
            return Err(corrupt(format!("inode with flags {:#x}", self.flags)));
        }
        let content_flags = self.flags & FLAGS_CONTENT;
        let sound = match self.file_type() {
            libc::S_IFREG => {
                self.size <= SIZE_MAX && (!self.has(FLAG_INLINE) || self.size <= INLINE_MAX) && self.entries == 0
            }
            libc::S_IFDIR => {
                self.size == 0
                    && content_flags == 0
                    && (INDEX_FIRST..SIZE_MAX).contains(&self.next_index)
                    && self.entries <= self.next_index - INDEX_FIRST
            }
            libc::S_IFLNK => {
                content_flags == FLAG_INLINE && (1..=SYMLINK_MAX as u64).contains(&self.size) && self.entries == 0
            }
            libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK => {
                self.size == 0 && content_flags == 0 && self.entries == 0
            }
            _ => false,
        };
        if !sound || self.nlink > LINK_MAX {
            return Err(corrupt(format!(
                "inode of mode {:o} with size {}, flags {:#x}, {} links",
                self.mode, self.size, self.flags, self.nlink
            )));
        }
        Ok(())
    }
}

/// The inode to write when replaying an attribute change from the intent log: `new`, but with the fields that describe
/// contents (size, content flags, mtime) of `old`, whose contents are what is on disk. Without a usable `old` the
/// contents are empty. Bytes that do not decode are returned as they are, to be found and reported by whoever reads them.
pub fn merge_content_fields(old: Option<&[u8]>, new: &[u8]) -> Vec<u8> {
    let Ok(mut merged) = Inode::decode(new) else { return new.to_vec() };
    if !merged.is_regular() {
        return new.to_vec();
    }
    match old.and_then(|bytes| Inode::decode(bytes).ok()).filter(Inode::is_regular) {
        Some(old) => {
            merged.size = old.size;
            merged.mtime_ns = old.mtime_ns;
            merged.flags = (merged.flags & !FLAGS_CONTENT) | (old.flags & FLAGS_CONTENT);
        }
        None => {
            merged.size = 0;
            merged.flags = (merged.flags & !FLAGS_CONTENT) | FLAG_INLINE;
        }
    }
    merged.encode().to_vec()
}

/// Whether a record size in bytes is allowed: a power of two from 4 KiB to 1 MiB.
pub fn record_size_is_valid(bytes: u32) -> bool {
    bytes.is_power_of_two() && (1 << RECORD_LOG2_MIN..=1 << RECORD_LOG2_MAX).contains(&bytes)
}

pub(crate) fn corrupt(text: String) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}

fn u32_at(b: &[u8; INODE_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8; INODE_BYTES], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | (u64::from(u32_at(b, at + 4)) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Inode {
        let mut inode = Inode::new(libc::S_IFREG | 0o4755, -5, 131072);
        inode.size = 70_000;
        inode.flags = FLAG_HAS_HOLES | FLAG_HAS_CAPABILITY;
        inode.parent = 1;
        inode.parent_index = 9;
        inode.xattr_next_chunk = 7;
        inode
    }

    #[test]
    fn encoding_is_reversible_and_fixed() {
        let bytes = sample().encode();
        assert_eq!(Inode::decode(&bytes).unwrap(), sample());
        assert_eq!(&bytes[..16], &[1, 17, 0, 0, 0xed, 0x89, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&bytes[32..34], &[0x70, 0x11]);
    }

    #[test]
    fn refuses_what_it_did_not_write() {
        let good = sample().encode();
        for (at, value) in [(0, 2), (1, 11), (1, 21), (2, 1), (8, 4), (5, 0), (39, 0x80), (120, 1), (159, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Inode::decode(&bad).is_err(), "byte {at} = {value}");
        }
        assert!(Inode::decode(&good[..159]).is_err());
        assert!(Inode::decode(&[]).is_err());
    }

    #[test]
    fn merge_keeps_the_contents_on_disk() {
        let mut old = sample();
        old.mode = libc::S_IFREG | 0o600;
        old.mtime_ns = 11;
        let mut new = sample();
        new.size = 3;
        new.flags = FLAG_INLINE | FLAG_HAS_ACCESS_ACL;
        new.mtime_ns = 12;
        new.uid = 77;
        let merged = Inode::decode(&merge_content_fields(Some(&old.encode()), &new.encode())).unwrap();
        assert_eq!((merged.size, merged.mtime_ns, merged.uid), (70_000, 11, 77));
        assert_eq!(merged.flags, FLAG_HAS_HOLES | FLAG_HAS_ACCESS_ACL);
        assert_eq!(merged.mode, new.mode);
        let merged = Inode::decode(&merge_content_fields(None, &sample().encode())).unwrap();
        assert_eq!((merged.size, merged.flags), (0, FLAG_INLINE | FLAG_HAS_CAPABILITY));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0usize..160, v: u8) {
            let _ = Inode::decode(&bytes);
            let mut near = sample().encode();
            near[flip] = v;
            if let Ok(inode) = Inode::decode(&near) {
                prop_assert_eq!(&inode.encode()[..], &near[..]);
            }
            let _ = merge_content_fields(Some(&bytes), &near);
        }
    }
}
