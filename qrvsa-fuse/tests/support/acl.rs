//! POSIX ACLs in their xattr form, as far as the in-memory filesystem needs them.

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

pub const USER_OBJ: u16 = 0x01;
pub const USER: u16 = 0x02;
pub const GROUP_OBJ: u16 = 0x04;
pub const MASK: u16 = 0x10;
pub const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub tag: u16,
    pub perm: u16,
    pub id: u32,
}

pub fn decode(bytes: &[u8]) -> Option<Vec<Entry>> {
    let rest = bytes.strip_prefix(&2u32.to_le_bytes())?;
    if rest.len() % 8 != 0 {
        return None;
    }
    let entry = |c: &[u8]| Entry {
        tag: u16::from_le_bytes([c[0], c[1]]),
        perm: u16::from_le_bytes([c[2], c[3]]),
        id: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
    };
    Some(rest.chunks_exact(8).map(entry).collect())
}

pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for e in entries {
        out.extend(e.tag.to_le_bytes());
        out.extend(e.perm.to_le_bytes());
        out.extend(e.id.to_le_bytes());
    }
    out
}

/// The permission bits an ACL shows: the group bits are the mask where there is one.
pub fn mode_of(entries: &[Entry]) -> u32 {
    let find = |tag| entries.iter().find(|e| e.tag == tag).map(|e| u32::from(e.perm & 7));
    let group = find(MASK).or(find(GROUP_OBJ)).unwrap_or(0);
    (find(USER_OBJ).unwrap_or(0) << 6) | (group << 3) | find(OTHER).unwrap_or(0)
}

/// Whether the mode bits say all the ACL says.
pub fn is_minimal(entries: &[Entry]) -> bool {
    entries.iter().all(|e| matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER))
}

/// Limits an ACL to `mode` (at chmod: sets; at create: takes away).
pub fn apply_mode(entries: &mut [Entry], mode: u32, only_take_away: bool) {
    let group_tag = if entries.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ };
    for e in entries {
        let bits = match e.tag {
            USER_OBJ => mode >> 6,
            tag if tag == group_tag => mode >> 3,
            OTHER => mode,
            _ => continue,
        } as u16
            & 7;
        e.perm = if only_take_away { e.perm & bits } else { bits };
    }
}
