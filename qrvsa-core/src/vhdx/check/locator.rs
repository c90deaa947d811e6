//! The parent locator: keys and values that tell where the parent is, and which one.

use super::codes::*;
use super::fix::Change;
use super::metadata::Disk;
use super::source::{Fields, guid_from_text, guid_text};
use super::walk::Walk;

/// `B04AEFB7-D19E-4A81-B789-25B8E9445913`
const LOCATOR_TYPE: [u8; 16] =
    [0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13];
const PATH_KEYS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

/// What a valid locator says of the parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentName {
    /// DataWriteGuids that the parent may have, mixed-endian bytes.
    pub linkages: Vec<[u8; 16]>,
    /// Its paths, in the order in which they are tried: key and value.
    pub paths: Vec<(String, String)>,
}

impl Walk<'_> {
    /// Checks the parent locator against whether there is a parent.
    pub(super) fn locator(&mut self, disk: &Disk) -> Option<ParentName> {
        let (at, bytes) = match (&disk.locator, disk.has_parent) {
            (None, false) => return None,
            (None, true) => {
                self.add(&LOCATOR_MISSING, "metadata", 0, "the image has a parent, and no item tells which");
                return None;
            }
            (Some((at, _)), false) => {
                self.add(&LOCATOR_UNEXPECTED, "parent locator", *at, "the file parameters say that there is no parent");
                return None;
            }
            (Some((at, bytes)), true) => (*at, bytes.as_slice()),
        };
        if bytes.guid(0) != LOCATOR_TYPE {
            let what = format!("its type is {}", guid_text(&bytes.guid(0)));
            self.add(&LOCATOR_TYPE_CODE, "parent locator", at, what);
            return None;
        }
        if bytes.u16(16) != 0 {
            self.add(&LOCATOR_RESERVED, "parent locator", at + 16, "a reserved field is not zero");
            let zero = Change::Bytes(vec![0; 2]);
            self.fix(&LOCATOR_RESERVED, "parent locator", at + 16, zero, "the reserved field is zero now");
        }
        let pairs = self.locator_pairs(at, bytes);
        let mut name = ParentName::default();
        let linkage = pairs.iter().find(|(key, _)| key == "parent_linkage").map(|(_, value)| value.as_str());
        match linkage.and_then(braced) {
            Some(guid) => name.linkages.push(guid),
            None => {
                let what =
                    linkage.map_or("there is no parent_linkage".to_owned(), |v| format!("parent_linkage is {v:?}"));
                self.add(&LOCATOR_LINKAGE, "parent locator", at, what);
            }
        }
        // While a parent changes under its child (merge), the second names what it becomes.
        let second = pairs.iter().find(|(key, _)| key == "parent_linkage2").and_then(|(_, value)| braced(value));
        name.linkages.extend(second.filter(|guid| *guid != [0; 16]));
        for key in PATH_KEYS {
            let found = pairs.iter().find(|(k, v)| k == key && !v.is_empty());
            name.paths.extend(found.cloned());
        }
        if name.paths.is_empty() {
            self.add(
                &LOCATOR_PATH,
                "parent locator",
                at,
                "it has none of relative_path, volume_path, absolute_win32_path",
            );
        }
        Some(name)
    }

    fn locator_pairs(&mut self, at: u64, bytes: &[u8]) -> Vec<(String, String)> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let count = usize::from(bytes.u16(18));
        if 20 + 12 * count > bytes.len() {
            let what = format!("{count} entries do not fit into {} bytes", bytes.len());
            self.add(&LOCATOR_ENTRY, "parent locator", at + 18, what);
            return pairs;
        }
        for index in 0..count {
            let (entry, place) = (20 + 12 * index, at + 20 + 12 * index as u64);
            let name = format!("parent locator, entry {index}");
            let mut texts = Vec::new();
            for (what, offset, length) in [("key", entry, entry + 8), ("value", entry + 4, entry + 10)] {
                let (offset, length) = (bytes.u32(offset) as usize, usize::from(bytes.u16(length)));
                let raw = bytes.bytes(offset, length);
                if offset < 20 + 12 * count || length == 0 || raw.len() != length || !length.is_multiple_of(2) {
                    let what = format!("its {what} has {length} bytes at {offset:#x} of {:#x}", bytes.len());
                    self.add(&LOCATOR_ENTRY, name.clone(), place, what);
                    continue;
                }
                let units: Vec<u16> = raw.chunks_exact(2).map(|unit| unit.u16(0)).collect();
                match String::from_utf16(&units) {
                    Ok(text) if !text.contains('\0') => texts.push(text),
                    _ => self.add(&LOCATOR_TEXT, name.clone(), place, format!("its {what} is no UTF-16 without NUL")),
                }
            }
            let Ok([key, value]) = <[String; 2]>::try_from(texts) else { continue };
            if pairs.iter().any(|(k, _)| *k == key) {
                self.add(&LOCATOR_DUPLICATE, name, place, format!("the key {key:?} appears before"));
                continue;
            }
            pairs.push((key, value));
        }
        pairs
    }
}

/// A GUID in braces.
fn braced(text: &str) -> Option<[u8; 16]> {
    guid_from_text(text.strip_prefix('{')?.strip_suffix('}')?)
}
