//! POSIX access control lists, in the kernel's extended-attribute form.
//!
//! An ACL is kept as the value of `system.posix_acl_access` or `system.posix_acl_default`, byte for byte as the kernel
//! passes it: a 4-byte little-endian version (2), then entries of 8 bytes: tag (u16), permissions (u16), id (u32). The
//! kernel checks permissions against it; here are only the rules that tie an ACL to the mode bits and to new children.

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Name of the access ACL.
pub const XATTR_ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the default ACL.
pub const XATTR_DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const UNDEFINED_ID: u32 = u32::MAX;

/// Whom an entry is about, in the order entries must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    UserObj,
    User,
    GroupObj,
    Group,
    Mask,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    perm: u16,
    id: u32,
}

/// A valid ACL: owner, group and other exactly once, a mask if any user or group is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

/// What a new inode gets from its parent's default ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Mode with permission bits taken from the ACL.
    pub mode: u32,
    /// The access ACL, unless the mode says it all.
    pub access: Option<Acl>,
}

impl Acl {
    /// Reads an attribute value. `None` for one without entries, which means "remove".
    ///
    /// # Errors
    /// `EINVAL` for anything the kernel would refuse, `EOPNOTSUPP` for another version.
    pub fn decode(bytes: &[u8]) -> Result<Option<Acl>> {
        let invalid = || Error::posix(Errno::EINVAL);
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or_else(invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::posix(Errno::EOPNOTSUPP));
        }
        if rest.len() % ENTRY_BYTES != 0 {
            return Err(invalid());
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let mut entries = Vec::with_capacity(rest.len() / ENTRY_BYTES);
        for e in rest.chunks_exact(ENTRY_BYTES) {
            let tag = match u16::from_le_bytes([e[0], e[1]]) {
                0x01 => Tag::UserObj,
                0x02 => Tag::User,
                0x04 => Tag::GroupObj,
                0x08 => Tag::Group,
                0x10 => Tag::Mask,
                0x20 => Tag::Other,
                _ => return Err(invalid()),
            };
            let perm = u16::from_le_bytes([e[2], e[3]]);
            let named = matches!(tag, Tag::User | Tag::Group);
            let id = if named { u32::from_le_bytes([e[4], e[5], e[6], e[7]]) } else { UNDEFINED_ID };
            if perm > 7 || (named && id == UNDEFINED_ID) {
                return Err(invalid());
            }
            entries.push(Entry { tag, perm, id });
        }
        let acl = Acl { entries };
        acl.is_valid().then_some(Some(acl)).ok_or_else(invalid)
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|e| e.tag == tag).count();
        let named = count(Tag::User) + count(Tag::Group) > 0;
        self.entries.is_sorted_by_key(|e| e.tag)
            && count(Tag::UserObj) == 1
            && count(Tag::GroupObj) == 1
            && count(Tag::Other) == 1
            && (count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && !named))
    }

    /// The attribute value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.entries.len() * ENTRY_BYTES);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for e in &self.entries {
            let tag: u16 = match e.tag {
                Tag::UserObj => 0x01,
                Tag::User => 0x02,
                Tag::GroupObj => 0x04,
                Tag::Group => 0x08,
                Tag::Mask => 0x10,
                Tag::Other => 0x20,
            };
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&e.perm.to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    fn perm(&self, tag: Tag) -> Option<u32> {
        self.entries.iter().find(|e| e.tag == tag).map(|e| u32::from(e.perm))
    }

    fn set_perm(&mut self, tag: Tag, perm: u32) {
        for e in self.entries.iter_mut().filter(|e| e.tag == tag) {
            e.perm = (perm & 7) as u16;
        }
    }

    /// The tag whose permissions show as the group bits of the mode.
    fn group_class(&self) -> Tag {
        if self.perm(Tag::Mask).is_some() { Tag::Mask } else { Tag::GroupObj }
    }

    /// The nine permission bits this ACL shows as a mode.
    pub fn permission_bits(&self) -> u32 {
        let bits = |tag| self.perm(tag).unwrap_or(0);
        (bits(Tag::UserObj) << 6) | (bits(self.group_class()) << 3) | bits(Tag::Other)
    }

    /// Whether the permission bits of a mode say all of this ACL.
    pub fn is_mode(&self) -> bool {
        self.entries.len() == 3
    }

    /// Follows a chmod.
    pub fn chmod(&mut self, mode: u32) {
        self.set_perm(Tag::UserObj, mode >> 6);
        self.set_perm(self.group_class(), mode >> 3);
        self.set_perm(Tag::Other, mode);
    }

    /// Taken as the default ACL of a directory: what a child gets that is made with `mode`.
    pub fn inherit(&self, mode: u32) -> Inherited {
        let bits = self.permission_bits() & mode;
        let mut access = self.clone();
        access.chmod(bits);
        Inherited { mode: (mode & !0o777) | bits, access: (!access.is_mode()).then_some(access) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A blob of (tag, perm, id).
    pub(crate) fn blob(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for &(tag, perm, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    const NONE: u32 = u32::MAX;

    fn full() -> Vec<u8> {
        blob(&[(1, 7, NONE), (2, 6, 1000), (4, 5, NONE), (8, 7, 50), (0x10, 6, NONE), (0x20, 1, NONE)])
    }

    #[test]
    fn round_trip_and_mode() {
        let acl = Acl::decode(&full()).unwrap().unwrap();
        assert_eq!(acl.encode(), full());
        assert_eq!(acl.permission_bits(), 0o761);
        assert!(!acl.is_mode());
        let small = Acl::decode(&blob(&[(1, 6, NONE), (4, 4, NONE), (0x20, 0, NONE)])).unwrap().unwrap();
        assert_eq!(small.permission_bits(), 0o640);
        assert!(small.is_mode());
        assert_eq!(Acl::decode(&blob(&[])).unwrap(), None);
    }

    #[test]
    fn chmod_sets_the_mask() {
        let mut acl = Acl::decode(&full()).unwrap().unwrap();
        acl.chmod(0o104);
        let want = blob(&[(1, 1, NONE), (2, 6, 1000), (4, 5, NONE), (8, 7, 50), (0x10, 0, NONE), (0x20, 4, NONE)]);
        assert_eq!(acl.encode(), want);
    }

    #[test]
    fn inheritance() {
        let acl = Acl::decode(&full()).unwrap().unwrap();
        let got = acl.inherit(0o100644);
        assert_eq!(got.mode, 0o100640);
        let want = blob(&[(1, 6, NONE), (2, 6, 1000), (4, 5, NONE), (8, 7, 50), (0x10, 4, NONE), (0x20, 0, NONE)]);
        assert_eq!(got.access.unwrap().encode(), want);
        let plain = Acl::decode(&blob(&[(1, 7, NONE), (4, 5, NONE), (0x20, 0, NONE)])).unwrap().unwrap();
        assert_eq!(plain.inherit(0o40777), Inherited { mode: 0o40750, access: None });
    }

    #[test]
    fn refuses_what_the_kernel_refuses() {
        let cases: &[&[(u16, u16, u32)]] = &[
            &[(1, 7, NONE), (4, 5, NONE)],
            &[(1, 7, NONE), (1, 7, NONE), (4, 5, NONE), (0x20, 0, NONE)],
            &[(1, 8, NONE), (4, 5, NONE), (0x20, 0, NONE)],
            &[(4, 5, NONE), (1, 7, NONE), (0x20, 0, NONE)],
            &[(1, 7, NONE), (2, 7, 5), (4, 5, NONE), (0x20, 0, NONE)],
            &[(1, 7, NONE), (2, 7, NONE), (4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE)],
            &[(1, 7, NONE), (3, 7, 5), (4, 5, NONE), (0x20, 0, NONE)],
        ];
        for case in cases {
            assert_eq!(Acl::decode(&blob(case)).unwrap_err().errno(), Errno::EINVAL, "{case:?}");
        }
        assert_eq!(Acl::decode(&full()[..11]).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(Acl::decode(&[2, 0, 0]).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(Acl::decode(&[1, 0, 0, 0]).unwrap_err().errno(), Errno::EOPNOTSUPP);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Acl::decode(&bytes);
        }
    }
}
