//! Directory entries: by name (DIRENT) and in creation order (DIRINDEX).
//!
//! Each entry is stored twice. DIRENT finds a name by its keyed hash; entries with the same hash share one item. DIRINDEX
//! lists a directory: the index grows with every entry and is never used for another name, so it serves as the cookie of
//! readdir, which stays exact while other entries come and go. Indexes start at 3: cookies 1 and 2 belong to `.` and `..`,
//! which are not stored.
//!
//! # On disk: DIRENT, key (directory, 4, XXH3-64 of the name with the dataset's hash seed)
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | entries | one or more, to the end of the item |
//!
//! | entry offset | type | field |
//! |---|---|---|
//! | 0 | u64 | index |
//! | 8 | u64 | inode number |
//! | 16 | u8 | file type, bits 12 to 15 of the mode |
//! | 17 | u8 | name length, 1 to 255 |
//! | 18 | bytes | name |
//!
//! # On disk: DIRINDEX, key (directory, 5, index)
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u64 | inode number |
//! | 9 | u8 | file type |
//! | 10 | bytes | name, 1 to 255 bytes, to the end of the item |

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::inode::corrupt;
use crate::fs::ops::Ino;
use crate::fs::store::VALUE_BYTES_MAX;
use crate::tree::Key;

/// Kind of entries by name.
pub const KIND_DIRENT: u8 = 4;
/// Kind of entries by index.
pub const KIND_DIRINDEX: u8 = 5;
/// The first index of a directory.
pub const INDEX_FIRST: u64 = 3;
/// Longest name in bytes.
pub const NAME_MAX: usize = 255;

const VERSION: u8 = 1;
const ENTRY_HEADER: usize = 18;
const INDEX_HEADER: usize = 10;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// Position in the directory.
    pub index: u64,
    /// Inode.
    pub ino: Ino,
    /// Type bits of the mode (`S_IFMT` mask).
    pub file_type: u32,
    /// Name.
    pub name: Vec<u8>,
}

/// The key of an entry by index.
pub const fn dirindex_key(dir: Ino, index: u64) -> Key {
    Key::new(dir, KIND_DIRINDEX, index)
}

/// The hash of a name that keys its DIRENT.
pub fn name_hash(seed: u64, name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(name, seed)
}

/// Checks a name that a new entry gets or an existing one is looked up by.
///
/// # Errors
/// `ENOENT` for the empty name, `ENAMETOOLONG`, `EINVAL` for `/` or NUL in it.
pub fn validate_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Error::posix(Errno::ENOENT));
    }
    if name.len() > NAME_MAX {
        return Err(Error::posix(Errno::ENAMETOOLONG));
    }
    if name.iter().any(|&b| b == 0 || b == b'/') {
        return Err(Error::posix(Errno::EINVAL));
    }
    Ok(())
}

/// The DIRENT item of entries with one hash.
///
/// # Errors
/// `ENOSPC` when they do not fit into an item.
pub fn encode_bucket(entries: &[Dirent]) -> Result<Vec<u8>> {
    let bytes: usize = entries.iter().map(|e| ENTRY_HEADER + e.name.len()).sum();
    if 1 + bytes > VALUE_BYTES_MAX {
        return Err(Error::posix(Errno::ENOSPC));
    }
    let mut out = Vec::with_capacity(1 + bytes);
    out.push(VERSION);
    for e in entries {
        out.extend_from_slice(&e.index.to_le_bytes());
        out.extend_from_slice(&e.ino.to_le_bytes());
        out.push(type_to_disk(e.file_type));
        out.push(e.name.len() as u8);
        out.extend_from_slice(&e.name);
    }
    Ok(out)
}

/// Reads a DIRENT item.
///
/// # Errors
/// `Corrupt`.
pub fn decode_bucket(bytes: &[u8]) -> Result<Vec<Dirent>> {
    let bad = || corrupt(format!("directory entry item of {} bytes", bytes.len()));
    let (&version, mut rest) = bytes.split_first().ok_or_else(bad)?;
    if version != VERSION || rest.is_empty() {
        return Err(bad());
    }
    let mut entries = Vec::with_capacity(1);
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<ENTRY_HEADER>().ok_or_else(bad)?;
        let name = after.get(..usize::from(header[17])).ok_or_else(bad)?;
        rest = &after[name.len()..];
        entries.push(checked(u64_at(header, 0), u64_at(header, 8), header[16], name).ok_or_else(bad)?);
    }
    Ok(entries)
}

/// The DIRINDEX item of an entry.
pub fn encode_index(ino: Ino, file_type: u32, name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(INDEX_HEADER + name.len());
    out.push(VERSION);
    out.extend_from_slice(&ino.to_le_bytes());
    out.push(type_to_disk(file_type));
    out.extend_from_slice(name);
    out
}

/// Reads the DIRINDEX item at `index`.
///
/// # Errors
/// `Corrupt`.
pub fn decode_index(index: u64, bytes: &[u8]) -> Result<Dirent> {
    let bad = || corrupt(format!("directory index item of {} bytes", bytes.len()));
    let (header, name) = bytes.split_first_chunk::<INDEX_HEADER>().ok_or_else(bad)?;
    if header[0] != VERSION {
        return Err(bad());
    }
    checked(index, u64_at(header, 1), header[9], name).ok_or_else(bad)
}

fn checked(index: u64, ino: Ino, kind: u8, name: &[u8]) -> Option<Dirent> {
    let file_type = u32::from(kind) << 12;
    let known = matches!(
        file_type,
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK
    );
    let sound = known
        && ino != 0
        && (INDEX_FIRST..i64::MAX as u64).contains(&index)
        && validate_name(name).is_ok()
        && name != b"."
        && name != b"..";
    sound.then(|| Dirent { index, ino, file_type, name: name.to_vec() })
}

fn type_to_disk(file_type: u32) -> u8 {
    ((file_type >> 12) & 0xf) as u8
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(index: u64, name: &[u8]) -> Dirent {
        Dirent { index, ino: 2000 + index, file_type: libc::S_IFREG, name: name.to_vec() }
    }

    #[test]
    fn buckets_are_reversible() {
        let entries = vec![entry(3, b"a"), entry(90, &[b'x'; 255])];
        let bytes = encode_bucket(&entries).unwrap();
        assert_eq!(decode_bucket(&bytes).unwrap(), entries);
        assert_eq!(&bytes[..20], &[1, 3, 0, 0, 0, 0, 0, 0, 0, 0xd3, 7, 0, 0, 0, 0, 0, 0, 8, 1, b'a']);
        let index = encode_index(2003, libc::S_IFREG, b"a");
        assert_eq!(decode_index(3, &index).unwrap(), entries[0]);
        assert_eq!(index, [1, 0xd3, 7, 0, 0, 0, 0, 0, 0, 8, b'a']);
    }

    #[test]
    fn full_bucket_is_enospc() {
        let entries: Vec<_> = (3..40).map(|i| entry(i, &[b'x'; 255])).collect();
        assert_eq!(encode_bucket(&entries).unwrap_err().errno(), Errno::ENOSPC);
    }

    #[test]
    fn names() {
        assert_eq!(validate_name(b"").unwrap_err().errno(), Errno::ENOENT);
        assert_eq!(validate_name(&[b'a'; 256]).unwrap_err().errno(), Errno::ENAMETOOLONG);
        assert_eq!(validate_name(b"a/b").unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(validate_name(b"a\0b").unwrap_err().errno(), Errno::EINVAL);
        validate_name(&[0xff; 255]).unwrap();
    }

    #[test]
    fn refuses_bad_entries() {
        let good = encode_bucket(&[entry(3, b"ab")]).unwrap();
        for (at, v) in [(0, 2), (1, 2), (17, 3), (18, 0), (18, 3), (19, b'/'), (19, 0)] {
            let mut bad = good.clone();
            bad[at] = v;
            assert!(decode_bucket(&bad).is_err(), "byte {at} = {v}");
        }
        assert!(decode_bucket(&good[..1]).is_err());
        assert!(decode_index(2, &encode_index(5, libc::S_IFREG, b"a")).is_err());
        assert!(decode_index(3, &encode_index(5, libc::S_IFREG, b"..")).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(entries) = decode_bucket(&bytes) {
                prop_assert_eq!(encode_bucket(&entries).unwrap(), bytes.clone());
            }
            let _ = decode_index(3, &bytes);
        }
    }
}
