//! Entries of the intent log: what has to be done again after a crash.
//!
//! Values are absolute (an item's new value, an object's new bytes), so replaying an entry twice, in order, ends in the
//! same state. Byte tables stand in `docs/format.md`.

use crate::bytes::{Reader, Writer};
use crate::error::Result;
use crate::item::ObjectRef;
use crate::tree::Key;
use crate::tree::key::KEY_BYTES;

/// A change of one item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemChange {
    /// The item.
    pub key: Key,
    /// Its new value; `None` removes it.
    pub value: Option<Vec<u8>>,
    /// Keep the fields that describe contents as they are on disk (`item::Log::KeepContentFields`).
    pub keep_content_fields: bool,
}

/// What an entry does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// The item changes of one transaction.
    Items(Vec<ItemChange>),
    /// Bytes of an object.
    Write {
        /// The object.
        object: ObjectRef,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A range of an object that reads as zeros from now on.
    Punch {
        /// The object.
        object: ObjectRef,
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
}

/// An entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Dataset.
    pub dataset: u64,
    /// Transaction group it belongs to: roots of that group and later contain it.
    pub txg: u64,
    /// What to do.
    pub action: Action,
}

/// Appends one item change to the body of an items entry.
pub fn encode_change(out: &mut Vec<u8>, key: Key, value: Option<&[u8]>, keep_content_fields: bool) {
    out.extend_from_slice(&key.to_bytes());
    out.push(u8::from(value.is_none()) | u8::from(keep_content_fields) << 1);
    let value = value.unwrap_or_default();
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

fn head(kind: u8, dataset: u64, txg: u64) -> Writer {
    let mut w = Writer::new();
    w.u8(kind).u64(dataset).u64(txg);
    w
}

/// An items entry from a body made by [`encode_change`].
pub fn items_entry(dataset: u64, txg: u64, body: &[u8]) -> Vec<u8> {
    let mut w = head(1, dataset, txg);
    w.raw(body);
    w.finish()
}

/// A write entry; the data comes in pieces that follow each other.
pub fn write_entry<'a>(
    dataset: u64,
    txg: u64,
    object: ObjectRef,
    offset: u64,
    data: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut w = head(2, dataset, txg);
    w.u64(object.id).u32(object.record_size).u64(offset);
    for piece in data {
        w.raw(piece);
    }
    w.finish()
}

/// A punch entry.
pub fn punch_entry(dataset: u64, txg: u64, object: ObjectRef, start: u64, end: u64) -> Vec<u8> {
    let mut w = head(3, dataset, txg);
    w.u64(object.id).u32(object.record_size).u64(start).u64(end);
    w.finish()
}

impl Entry {
    /// Reads an entry.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Entry> {
        let mut r = Reader::new(bytes, "intent log entry");
        let (kind, dataset, txg) = (r.u8()?, r.u64()?, r.u64()?);
        let action = match kind {
            1 => {
                let mut changes = Vec::new();
                while !r.rest().is_empty() {
                    let key: &[u8; KEY_BYTES] = r.raw(KEY_BYTES)?.try_into().expect("raw returns that many");
                    let flags = r.u8()?;
                    let len = r.u32()?;
                    let value = r.raw(len as usize)?.to_vec();
                    changes.push(ItemChange {
                        key: Key::from_bytes(key),
                        value: (flags & 1 == 0).then_some(value),
                        keep_content_fields: flags & 2 != 0,
                    });
                }
                Action::Items(changes)
            }
            2 | 3 => {
                let object = ObjectRef { id: r.u64()?, record_size: r.u32()? };
                if !object.record_size.is_power_of_two() || !(4096..=1 << 20).contains(&object.record_size) {
                    return Err(r.bad("impossible record size"));
                }
                if kind == 2 {
                    let offset = r.u64()?;
                    let data = r.rest().to_vec();
                    if offset.checked_add(data.len() as u64).is_none() {
                        return Err(r.bad("a write beyond the end of numbers"));
                    }
                    Action::Write { object, offset, data }
                } else {
                    Action::Punch { object, start: r.u64()?, end: r.u64()? }
                }
            }
            _ => return Err(r.bad("unknown kind")),
        };
        Ok(Entry { dataset, txg, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_hostile_bytes_are_errors() {
        let object = ObjectRef { id: 9, record_size: 131072 };
        let mut body = Vec::new();
        encode_change(&mut body, Key::new(1, 2, 3), Some(b"value"), true);
        encode_change(&mut body, Key::new(4, 5, 6), None, false);
        let all = [
            items_entry(1, 7, &body),
            write_entry(1, 7, object, 4096, [b"da".as_slice(), b"ta"]),
            punch_entry(1, 7, object, 0, u64::MAX),
        ];
        let Action::Items(changes) = Entry::decode(&all[0]).unwrap().action else { panic!("items") };
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[0].value.as_deref(), Some(b"value".as_slice()));
        assert!(changes[0].keep_content_fields && changes[1].value.is_none());
        assert_eq!(
            Entry::decode(&all[1]).unwrap().action,
            Action::Write { object, offset: 4096, data: b"data".to_vec() }
        );
        for bytes in &all {
            for i in 0..bytes.len() {
                let _ = Entry::decode(&bytes[..i]);
                let mut bent = bytes.clone();
                bent[i] ^= 0xa5;
                let _ = Entry::decode(&bent);
            }
        }
    }
}
