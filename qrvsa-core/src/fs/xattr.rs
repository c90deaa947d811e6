//! Extended attributes.
//!
//! Attributes are found by the hash of their name; those with one hash share an item. A value of up to 1024 bytes lies
//! in that item; a larger one in chunks, numbered per inode and never overwritten, so that setting a value swaps one
//! item.
//!
//! # On disk: XATTR, key (inode number, 2, XXH3-64 of the name with the dataset's hash seed)
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | attributes | one or more, to the end of the item |
//!
//! | attribute offset | type | field |
//! |---|---|---|
//! | 0 | u8 | name length, 1 to 255 |
//! | 1 | u8 | 0: value here, 1: value in chunks |
//! | 2 | u32 | value length, at most 65536 |
//! | 6 | u32 | number of the first chunk; 0 when the value is here |
//! | 10 | bytes | name |
//! | then | bytes | value, when here |
//!
//! # On disk: XATTR_CHUNK, key (inode number, 3, chunk number)
//!
//! 4096 bytes of the value, the last chunk less. No header; the length is checked against the attribute's.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::acl::{self, Acl};
use crate::fs::attr::in_group;
use crate::fs::dirent::name_hash;
use crate::fs::edit::{Edit, Puts, attribute_log};
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{
    FLAG_HAS_ACCESS_ACL, FLAG_HAS_CAPABILITY, FLAG_HAS_DEFAULT_ACL, Inode, S_ISGID, corrupt, inode_key,
};
use crate::fs::ops::{Caller, Ino, XattrMode};
use crate::fs::store::{Intent, Log, Store, VALUE_BYTES_MAX};
use crate::tree::Key;

/// Kind of attribute items.
pub const KIND_XATTR: u8 = 2;
/// Kind of the chunks of large values.
pub const KIND_XATTR_CHUNK: u8 = 3;
/// Longest name in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Largest value in bytes.
pub const XATTR_SIZE_MAX: usize = 65536;
/// Most bytes of names (each with its terminating zero) of one inode, what `listxattr` can return.
pub const XATTR_LIST_MAX: u32 = 65536;
/// The attribute that holds a program's capabilities.
pub(crate) const XATTR_CAPABILITY: &[u8] = b"security.capability";

const VERSION: u8 = 1;
const HEADER: usize = 10;
const VALUE_HERE_MAX: usize = 1024;
const CHUNK: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here(Vec<u8>),
    Chunks { first: u32, len: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: Vec<u8>,
    pub(crate) place: Place,
}

impl Place {
    /// Numbers of the chunks.
    pub(crate) fn chunks(&self) -> std::ops::Range<u64> {
        match self {
            Place::Here(_) => 0..0,
            Place::Chunks { first, len } => {
                u64::from(*first)..u64::from(*first) + u64::from(*len).div_ceil(CHUNK as u64)
            }
        }
    }

    /// Bytes a chunk must have.
    pub(crate) fn chunk_len(&self, number: u64) -> usize {
        match self {
            Place::Here(_) => 0,
            Place::Chunks { first, len } => {
                let before = (number - u64::from(*first)) * CHUNK as u64;
                u64::from(*len).saturating_sub(before).min(CHUNK as u64) as usize
            }
        }
    }
}

fn encode_bucket(attributes: &[Xattr]) -> Result<Vec<u8>> {
    let mut out = vec![VERSION];
    for x in attributes {
        out.push(x.name.len() as u8);
        let (form, len, first) = match &x.place {
            Place::Here(value) => (0, value.len() as u32, 0),
            Place::Chunks { first, len } => (1, *len, *first),
        };
        out.push(form);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&x.name);
        if let Place::Here(value) = &x.place {
            out.extend_from_slice(value);
        }
    }
    if out.len() > VALUE_BYTES_MAX {
        return Err(Error::posix(Errno::ENOSPC));
    }
    Ok(out)
}

pub(crate) fn decode_bucket(bytes: &[u8]) -> Result<Vec<Xattr>> {
    let bad = || corrupt(format!("extended attribute item of {} bytes", bytes.len()));
    let (&version, mut rest) = bytes.split_first().ok_or_else(bad)?;
    if version != VERSION || rest.is_empty() {
        return Err(bad());
    }
    let mut attributes = Vec::with_capacity(1);
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<HEADER>().ok_or_else(bad)?;
        let len = u32::from_le_bytes([header[2], header[3], header[4], header[5]]);
        let first = u32::from_le_bytes([header[6], header[7], header[8], header[9]]);
        let name = after.get(..usize::from(header[0])).ok_or_else(bad)?;
        rest = &after[name.len()..];
        if name.is_empty() || name.contains(&0) || len as usize > XATTR_SIZE_MAX {
            return Err(bad());
        }
        let place = match header[1] {
            0 if first == 0 => {
                let value = rest.get(..len as usize).ok_or_else(bad)?;
                rest = &rest[value.len()..];
                Place::Here(value.to_vec())
            }
            1 if len > 0 => Place::Chunks { first, len },
            _ => return Err(bad()),
        };
        attributes.push(Xattr { name: name.to_vec(), place });
    }
    Ok(attributes)
}

fn flag_of(name: &[u8]) -> u32 {
    match name {
        XATTR_CAPABILITY => FLAG_HAS_CAPABILITY,
        acl::XATTR_ACCESS => FLAG_HAS_ACCESS_ACL,
        acl::XATTR_DEFAULT => FLAG_HAS_DEFAULT_ACL,
        _ => 0,
    }
}

fn err<T>(errno: Errno) -> Result<T> {
    Err(Error::posix(errno))
}

/// Checks a name, and whether this kind of inode can have it; `refused` is the error when it cannot.
fn check_name(inode: &Inode, name: &[u8], refused: Errno) -> Result<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX || name.contains(&0) {
        return err(Errno::ERANGE);
    }
    let prefixed = |prefix: &[u8]| name.strip_prefix(prefix).map(|rest| !rest.is_empty());
    let named = prefixed(b"user.").or(prefixed(b"trusted.")).or(prefixed(b"security."));
    match named {
        Some(false) => err(Errno::EINVAL),
        Some(true) if name.starts_with(b"user.") && !inode.is_dir() && !inode.is_regular() => err(refused),
        Some(true) => Ok(()),
        None if (name == acl::XATTR_ACCESS || name == acl::XATTR_DEFAULT) && !inode.is_symlink() => Ok(()),
        None => err(Errno::EOPNOTSUPP),
    }
}

impl<S: Store> FileSystem<S> {
    fn xattr_key(&self, ino: Ino, name: &[u8]) -> Key {
        let full = name_hash(self.store.hash_seed(), name);
        Key::new(ino, KIND_XATTR, full & self.hash_mask())
    }

    fn xattr_bucket(&self, key: Key) -> Result<Vec<Xattr>> {
        match self.store.get(key)? {
            Some(value) => decode_bucket(&value),
            None => Ok(Vec::new()),
        }
    }

    /// As it will be after the changes planned so far.
    fn planned_bucket(&self, key: Key, puts: &Puts) -> Result<Vec<Xattr>> {
        match puts.iter().rev().find(|p| p.0 == key) {
            Some((_, Some(planned), _)) => decode_bucket(planned),
            Some((_, None, _)) => Ok(Vec::new()),
            None => self.xattr_bucket(key),
        }
    }

    /// The value of an attribute. The caller holds the inode's lock or sees it does not matter.
    pub(crate) fn read_xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(found) = self.xattr_bucket(self.xattr_key(ino, name))?.into_iter().find(|x| x.name == name) else {
            return Ok(None);
        };
        let chunks = found.place.chunks();
        let mut value = match &found.place {
            Place::Here(value) => return Ok(Some(value.clone())),
            Place::Chunks { len, .. } => Vec::with_capacity(*len as usize),
        };
        for number in chunks {
            match self.store.get(Key::new(ino, KIND_XATTR_CHUNK, number))? {
                Some(chunk) if chunk.len() == found.place.chunk_len(number) => value.extend_from_slice(&chunk),
                _ => return Err(corrupt(format!("inode {ino}: chunk {number} of an extended attribute is missing"))),
            }
        }
        Ok(Some(value))
    }

    /// Changes for setting an attribute; `inode` is changed but not stored. The value is not checked.
    pub(crate) fn plan_set_xattr(
        &self,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
        value: &[u8],
        puts: &mut Puts,
    ) -> Result<()> {
        let key = self.xattr_key(ino, name);
        let mut bucket = self.planned_bucket(key, puts)?;
        let place = if value.len() <= VALUE_HERE_MAX {
            Place::Here(value.to_vec())
        } else {
            let first = inode.xattr_next_chunk;
            let place = Place::Chunks { first, len: value.len() as u32 };
            inode.xattr_next_chunk = u32::try_from(place.chunks().end).map_err(|_| Error::posix(Errno::ENOSPC))?;
            for (number, chunk) in place.chunks().zip(value.chunks(CHUNK)) {
                puts.push((Key::new(ino, KIND_XATTR_CHUNK, number), Some(chunk.to_vec()), Log::Always));
            }
            place
        };
        let mut old_chunks = 0..0;
        match bucket.iter_mut().find(|x| x.name == name) {
            Some(existing) => {
                old_chunks = existing.place.chunks();
                existing.place = place;
            }
            None => {
                bucket.push(Xattr { name: name.to_vec(), place });
                let bytes = inode.xattr_names_bytes.saturating_add(name.len() as u32 + 1);
                if bytes > XATTR_LIST_MAX {
                    return err(Errno::ENOSPC);
                }
                inode.xattr_names_bytes = bytes;
            }
        }
        inode.set_flag(flag_of(name), true);
        puts.push((key, Some(encode_bucket(&bucket)?), Log::Always));
        puts.extend(old_chunks.map(|n| (Key::new(ino, KIND_XATTR_CHUNK, n), None, Log::Always)));
        Ok(())
    }

    /// Changes for an attribute of an inode that is being made.
    pub(crate) fn plan_first_xattr(
        &self,
        edit: &mut Edit<'_, S>,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        self.plan_set_xattr(ino, inode, name, value, edit.items_mut())
    }

    /// Changes for removing an attribute; `inode` is changed but not stored. Returns whether it was there.
    pub(crate) fn plan_remove_xattr(&self, ino: Ino, inode: &mut Inode, name: &[u8], puts: &mut Puts) -> Result<bool> {
        let key = self.xattr_key(ino, name);
        let mut bucket = self.planned_bucket(key, puts)?;
        inode.set_flag(flag_of(name), false);
        let Some(at) = bucket.iter().position(|x| x.name == name) else { return Ok(false) };
        let removed = bucket.remove(at);
        inode.xattr_names_bytes = inode.xattr_names_bytes.saturating_sub(name.len() as u32 + 1);
        let value = if bucket.is_empty() { None } else { Some(encode_bucket(&bucket)?) };
        puts.push((key, value, Log::Always));
        puts.extend(removed.place.chunks().map(|n| (Key::new(ino, KIND_XATTR_CHUNK, n), None, Log::Always)));
        Ok(true)
    }

    pub(crate) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let _held = self.locks.shared(ino);
        let inode = self.load(ino)?;
        check_name(&inode, name, Errno::ENODATA)?;
        if inode.xattr_names_bytes == 0 {
            return err(Errno::ENODATA);
        }
        self.read_xattr(ino, name)?.ok_or(Error::posix(Errno::ENODATA))
    }

    pub(crate) fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let _held = self.locks.shared(ino);
        if self.load(ino)?.xattr_names_bytes == 0 {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        let mut from = Key::new(ino, KIND_XATTR, 0);
        loop {
            let page = self.store.scan(from, Key::new(ino, KIND_XATTR, u64::MAX), 128)?;
            let last = page.last().map(|(key, _)| *key);
            for (_, value) in &page {
                names.extend(decode_bucket(value)?.into_iter().map(|x| x.name));
            }
            match last.and_then(Key::successor) {
                Some(next) if page.len() == 128 && next.object == ino && next.kind == KIND_XATTR => from = next,
                _ => return Ok(names),
            }
        }
    }

    pub(crate) fn set_xattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let held = self.locks.exclusive(&[ino]);
        let mut inode = self.load(ino)?;
        check_name(&inode, name, Errno::EPERM)?;
        if value.len() > XATTR_SIZE_MAX {
            return err(Errno::E2BIG);
        }
        let mut puts = Puts::with_capacity(2);
        let encoded;
        let mut value = Some(value);
        if name == acl::XATTR_ACCESS || name == acl::XATTR_DEFAULT {
            let Some(acl) = Acl::decode(value.unwrap_or_default())? else {
                drop(held);
                return self.remove_xattr(ino, name);
            };
            if name == acl::XATTR_DEFAULT && !inode.is_dir() {
                return err(Errno::EACCES);
            }
            encoded = acl.encode();
            value = Some(&encoded);
            if name == acl::XATTR_ACCESS {
                inode.mode = (inode.mode & !0o777) | acl.permission_bits();
                if !in_group(caller, inode.gid) {
                    inode.mode &= !S_ISGID;
                }
                if acl.is_mode() {
                    value = None;
                }
            }
        } else {
            let exists = self.xattr_bucket(self.xattr_key(ino, name))?.iter().any(|x| x.name == name);
            match mode {
                XattrMode::Create if exists => return err(Errno::EEXIST),
                XattrMode::Replace if !exists => return err(Errno::ENODATA),
                _ => {}
            }
        }
        match value {
            Some(value) => self.plan_set_xattr(ino, &mut inode, name, value, &mut puts)?,
            None => {
                self.plan_remove_xattr(ino, &mut inode, name, &mut puts)?;
            }
        }
        inode.ctime_ns = self.store.now_ns();
        puts.push((inode_key(ino), Some(inode.encode().to_vec()), attribute_log(&inode)));
        self.apply(&held, Intent::Grow, puts)
    }

    pub(crate) fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let held = self.locks.exclusive(&[ino]);
        let mut inode = self.load(ino)?;
        check_name(&inode, name, Errno::EPERM)?;
        let mut puts = Puts::with_capacity(2);
        if !self.plan_remove_xattr(ino, &mut inode, name, &mut puts)? {
            // An ACL that is not there is what removing one leaves.
            let is_acl = name == acl::XATTR_ACCESS || name == acl::XATTR_DEFAULT;
            return if is_acl { Ok(()) } else { err(Errno::ENODATA) };
        }
        inode.ctime_ns = self.store.now_ns();
        puts.push((inode_key(ino), Some(inode.encode().to_vec()), attribute_log(&inode)));
        self.apply(&held, Intent::Shrink, puts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_reversible() {
        let attributes = vec![
            Xattr { name: b"user.a".to_vec(), place: Place::Here(b"xyz".to_vec()) },
            Xattr { name: b"user.b".to_vec(), place: Place::Chunks { first: 7, len: 65536 } },
            Xattr { name: b"user.c".to_vec(), place: Place::Here(Vec::new()) },
        ];
        let bytes = encode_bucket(&attributes).unwrap();
        assert_eq!(decode_bucket(&bytes).unwrap(), attributes);
        assert_eq!(&bytes[..20], b"\x01\x06\x00\x03\0\0\0\0\0\0\0user.axyz"[..20].as_ref());
        assert_eq!(attributes[1].place.chunks(), 7..23);
        assert_eq!(attributes[1].place.chunk_len(22), 4096);
        assert_eq!(Place::Chunks { first: 0, len: 4097 }.chunk_len(1), 1);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(attributes) = decode_bucket(&bytes) {
                prop_assert_eq!(encode_bucket(&attributes).unwrap(), bytes.clone());
            }
        }
    }
}
