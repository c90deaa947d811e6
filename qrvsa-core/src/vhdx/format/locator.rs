//! The parent locator (2.6.2.6): which file a differencing file stands on, by identity and by paths.

use std::collections::BTreeMap;

use super::fields::{guid_at, put, u16_at, u32_at, utf16_units};
use super::guid::Guid;
use super::problem::Problem;
use crate::error::{Error, ErrorKind, Result};

/// The one type of locator the format defines.
pub const LOCATOR_TYPE: Guid = Guid::from_printed(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
/// The keys that hold paths, in the order in which they are tried.
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];
const COUNT_AT: usize = 18;
const ENTRIES_AT: usize = 20;
const ENTRY_BYTES: usize = 12;

/// A locator as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawLocator {
    /// Its type.
    pub kind: Guid,
    /// Keys and values, in order; what lies outside the item is missing, and named by `problems`.
    pub entries: Vec<(String, String)>,
    problems: Vec<Problem>,
}

/// A locator that names a parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentLocator {
    entries: BTreeMap<String, String>,
    linkage: Guid,
}

impl RawLocator {
    /// Reads the item.
    pub fn decode(bytes: &[u8]) -> RawLocator {
        let kind = guid_at(bytes, 0);
        let count = usize::from(u16_at(bytes, COUNT_AT));
        let mut problems = Vec::new();
        if kind != LOCATOR_TYPE {
            problems.push(Problem::fatal(0, format!("the locator is of an unknown type, {kind}")));
        }
        let mut entries = Vec::new();
        if bytes.len() < ENTRIES_AT + count * ENTRY_BYTES {
            problems.push(Problem::fatal(COUNT_AT as u64, format!("{count} entries do not fit into the item")));
        }
        for (i, entry) in bytes.get(ENTRIES_AT..).unwrap_or(&[]).chunks_exact(ENTRY_BYTES).take(count).enumerate() {
            let at = ENTRIES_AT + i * ENTRY_BYTES;
            let text = |offset: u32, length: u16| {
                let start = usize::try_from(offset).ok()?;
                let end = start.checked_add(usize::from(length))?;
                // Keys and values lie behind the entries and are not empty.
                let part = bytes.get(start..end).filter(|_| start >= ENTRIES_AT && length > 0)?;
                part.len().is_multiple_of(2).then(|| String::from_utf16(&utf16_units(part)).ok()).flatten()
            };
            let key = text(u32_at(entry, 0), u16_at(entry, 8));
            let value = text(u32_at(entry, 4), u16_at(entry, 10));
            match (key, value) {
                (Some(key), _) if entries.iter().any(|(k, _)| *k == key) => {
                    problems.push(Problem::fatal(at as u64, format!("the key {key:?} is there twice")));
                }
                (Some(key), Some(value)) => entries.push((key, value)),
                _ => problems.push(Problem::fatal(at as u64, format!("entry {i} is not UTF-16 text inside the item"))),
            }
        }
        RawLocator { kind, entries, problems }
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.problems.clone();
        match self.value(LINKAGE).map(str::parse::<Guid>) {
            Some(Ok(_)) => {}
            Some(Err(_)) => problems.push(Problem::fatal(0, "parent_linkage is not a GUID")),
            None => problems.push(Problem::fatal(0, "there is no parent_linkage")),
        }
        if !PATHS.iter().any(|key| self.value(key).is_some()) {
            problems.push(Problem::minor(0, "there is no path to the parent"));
        }
        problems
    }

    /// The locator, if it names a parent.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with the first problem that forbids to use it, [`ErrorKind::Unsupported`] for another type.
    pub fn validate(&self) -> Result<ParentLocator> {
        if self.kind != LOCATOR_TYPE {
            crate::fail!(Unsupported, "parent locator: type {} is not known", self.kind);
        }
        Problem::refuse(self.problems(), "parent locator")?;
        let linkage = self.value(LINKAGE).unwrap_or_default().parse()?;
        Ok(ParentLocator { entries: self.entries.iter().cloned().collect(), linkage })
    }
}

impl ParentLocator {
    /// A locator for the parent with this `DataWriteGuid`, with paths by key.
    pub fn new<'a>(linkage: Guid, paths: impl IntoIterator<Item = (&'a str, &'a str)>) -> ParentLocator {
        let mut entries: BTreeMap<String, String> =
            paths.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        entries.insert(LINKAGE.into(), format!("{{{linkage}}}"));
        ParentLocator { entries, linkage }
    }

    /// The `DataWriteGuid` the parent must have.
    pub fn linkage(&self) -> Guid {
        self.linkage
    }

    /// The other `DataWriteGuid` the parent may have, while a merge is under way.
    pub fn linkage2(&self) -> Option<Guid> {
        self.entries.get(LINKAGE2)?.parse().ok().filter(|guid: &Guid| !guid.is_nil())
    }

    /// Whether an image of this `DataWriteGuid` is the parent.
    pub fn names(&self, guid: Guid) -> bool {
        guid == self.linkage || Some(guid) == self.linkage2()
    }

    /// The same locator with another second linkage; `None` removes it.
    #[must_use]
    pub fn with_linkage2(mut self, linkage: Option<Guid>) -> ParentLocator {
        match linkage {
            Some(guid) => self.entries.insert(LINKAGE2.into(), format!("{{{guid}}}")),
            None => self.entries.remove(LINKAGE2),
        };
        self
    }

    /// The same locator for another parent.
    #[must_use]
    pub fn with_linkage(mut self, linkage: Guid) -> ParentLocator {
        self.entries.insert(LINKAGE.into(), format!("{{{linkage}}}"));
        self.linkage = linkage;
        self
    }

    /// The same locator with another path under `key`.
    #[must_use]
    pub fn with_path(mut self, key: &str, path: &str) -> ParentLocator {
        self.entries.insert(key.into(), path.into());
        self
    }

    /// The paths, by key, in the order in which they are to be tried.
    pub fn paths(&self) -> Vec<(&'static str, &str)> {
        PATHS.iter().filter_map(|key| self.entries.get(*key).map(|path| (*key, path.as_str()))).collect()
    }

    /// All keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// The item's bytes. Keys and values of more than 32,767 units are cut.
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        let taken = usize::from(count);
        let mut bytes = vec![0; ENTRIES_AT + taken * ENTRY_BYTES];
        put(&mut bytes, 0, &LOCATOR_TYPE.bytes());
        put(&mut bytes, COUNT_AT, &count.to_le_bytes());
        for (i, (key, value)) in self.entries.iter().take(taken).enumerate() {
            let at = ENTRIES_AT + i * ENTRY_BYTES;
            for (text, offset_at, length_at) in [(key, at, at + 8), (value, at + 4, at + 10)] {
                let text: Vec<u8> = text.encode_utf16().take(32_767).flat_map(u16::to_le_bytes).collect();
                let offset = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                put(&mut bytes, offset_at, &offset.to_le_bytes());
                put(&mut bytes, length_at, &length.to_le_bytes());
                bytes.extend(text);
            }
        }
        bytes
    }
}

impl ParentLocator {
    /// The error for a parent that none of the paths leads to.
    pub fn not_found(&self, child: &std::path::Path) -> Error {
        let paths: Vec<&str> = self.paths().iter().map(|(_, path)| *path).collect();
        let child = child.display();
        let what = format!(
            "{child}: its parent is at none of the places it names ({}); move it there, or name it with reparent",
            paths.join(", ")
        );
        Error::new(ErrorKind::NotFound, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn locator() -> ParentLocator {
        let paths = [("absolute_win32_path", "C:\\vm\\é.vhdx"), ("relative_path", ".\\é.vhdx")];
        ParentLocator::new(Guid::random(1), paths).with_linkage2(Some(Guid::NIL))
    }

    #[test]
    fn what_is_written_is_read() {
        let raw = RawLocator::decode(&locator().encode());
        assert_eq!(raw.validate().unwrap(), locator());
        assert!(raw.problems().is_empty());
        assert_eq!(locator().linkage(), Guid::random(1));
        assert_eq!(locator().linkage2(), None, "the nil GUID means none");
        let keys: Vec<&str> = locator().paths().iter().map(|(k, _)| *k).collect();
        assert_eq!(keys, ["relative_path", "absolute_win32_path"]);
        let moved =
            locator().with_linkage(Guid::random(4)).with_linkage2(Some(Guid::random(3))).with_path("volume_path", "x");
        let read = RawLocator::decode(&moved.encode()).validate().unwrap();
        assert_eq!((read.linkage(), read.linkage2(), read.paths().len()), (Guid::random(4), Some(Guid::random(3)), 3));
    }

    #[test]
    fn what_names_no_parent() {
        let good = locator().encode();
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            RawLocator::decode(&bytes).validate().unwrap_err()
        };
        assert_eq!(broken(&|b| b[0] ^= 1).kind(), ErrorKind::Unsupported);
        assert!(broken(&|b| b[18] = 200).to_string().contains("do not fit"));
        assert!(broken(&|b| b[23] = 255).to_string().contains("entry 0"));
        assert!(broken(&|b| b.truncate(80)).to_string().contains("UTF-16"));
        let none = ParentLocator { entries: BTreeMap::new(), linkage: Guid::NIL };
        let error = RawLocator::decode(&none.encode()).validate().unwrap_err();
        assert!(error.to_string().contains("no parent_linkage"), "{error}");
    }

    proptest! {
        #[test]
        fn total(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = LOCATOR_TYPE.bytes().to_vec();
            bytes.extend(tail);
            let raw = RawLocator::decode(&bytes);
            let _ = (raw.problems(), raw.validate());
        }

        #[test]
        fn any_text_survives(key in "[a-z]{1,20}", value in "\\PC{1,50}") {
            let locator = ParentLocator::new(Guid::random(9), [(key.as_str(), value.as_str())]);
            prop_assert_eq!(RawLocator::decode(&locator.encode()).validate().unwrap(), locator);
        }
    }
}
