//! Keys: (object, kind, offset), compared in that order.

/// A key of any tree. 17 bytes on disk: object (u64), kind (u8), offset (u64), each little-endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The object (inode, volume, group, ...) the item belongs to.
    pub object: u64,
    /// What the item is; the kinds of each tree stand with its owner and in `docs/format.md`.
    pub kind: u8,
    /// Offset, hash or index within the kind.
    pub offset: u64,
}

/// Bytes of a key on disk.
pub const KEY_BYTES: usize = 17;

impl Key {
    /// The smallest key.
    pub const MIN: Key = Key::new(0, 0, 0);
    /// The largest key.
    pub const MAX: Key = Key::new(u64::MAX, u8::MAX, u64::MAX);

    /// A key.
    pub const fn new(object: u64, kind: u8, offset: u64) -> Key {
        Key { object, kind, offset }
    }

    /// The key directly after this one, or `None` after the largest.
    pub fn successor(self) -> Option<Key> {
        if let Some(offset) = self.offset.checked_add(1) {
            return Some(Key { offset, ..self });
        }
        if let Some(kind) = self.kind.checked_add(1) {
            return Some(Key { kind, offset: 0, ..self });
        }
        self.object.checked_add(1).map(|object| Key::new(object, 0, 0))
    }

    /// The on-disk form.
    pub fn to_bytes(self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        bytes[..8].copy_from_slice(&self.object.to_le_bytes());
        bytes[8] = self.kind;
        bytes[9..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Reads the on-disk form.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Key {
        let mut object = [0; 8];
        let mut offset = [0; 8];
        object.copy_from_slice(&bytes[..8]);
        offset.copy_from_slice(&bytes[9..]);
        Key { object: u64::from_le_bytes(object), kind: bytes[8], offset: u64::from_le_bytes(offset) }
    }
}
