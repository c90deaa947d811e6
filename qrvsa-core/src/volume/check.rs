//! Checking a volume's items: nothing but its settings and its contents is there, contents lie where they may, and the
//! count of blocks is right.

use super::settings::{Settings, VOLUME_OBJECT, settings_key};
use super::side::{SIDE_BYTES_MAX, SIDE_OBJECT};
use crate::error::Result;
use crate::fs::store::ItemSource;
use crate::object::{KIND_EXTENT, KIND_SPACE};
use crate::record::pointer::Pointer;
use crate::tree::Key;

const PAGE: usize = 512;

/// Checks a volume; `report` gets what is wrong, in words. Returns the objects seen: 1.
///
/// # Errors
/// `Io`, `Corrupt`: the tree cannot be read.
pub fn check<S: ItemSource>(source: &S, report: &mut dyn FnMut(String)) -> Result<u64> {
    let settings = match source.get(settings_key())?.map(|value| Settings::decode(&value)) {
        Some(Ok(settings)) => Some(settings),
        Some(Err(e)) => {
            report(e.to_string());
            None
        }
        None => {
            report("the volume has no settings".to_owned());
            None
        }
    };
    let (mut counted, mut stored, mut end) = (0u64, 0u64, 0u64);
    let mut from = Some(Key::MIN);
    while let Some(key) = from {
        let items = source.scan(key, Key::MAX, PAGE)?;
        for (key, value) in &items {
            match key.kind {
                _ if *key == settings_key() => {}
                KIND_EXTENT if key.object == VOLUME_OBJECT => match Pointer::decode(value) {
                    Ok((pointer, _)) => {
                        if key.offset < end {
                            report(format!("the record at {} overlaps the one before it", key.offset));
                        }
                        counted += u64::from(pointer.blocks);
                        end = key.offset.saturating_add(pointer.len_bytes() as u64);
                        let record = settings.map_or(4096, |s| u64::from(s.record_bytes));
                        if (end - 1) / record != key.offset / record && settings.is_some() {
                            report(format!("the record at {} crosses a border of records", key.offset));
                        }
                        if settings.is_some_and(|s| key.offset >= s.size_bytes.next_multiple_of(record)) {
                            report(format!("the record at {} lies behind the end of the volume", key.offset));
                        }
                    }
                    Err(e) => report(format!("the record at {}: {e}", key.offset)),
                },
                // headers and log of its VHDX face
                KIND_EXTENT | KIND_SPACE if key.object == SIDE_OBJECT && key.offset < SIDE_BYTES_MAX => {}
                KIND_SPACE if key.object == VOLUME_OBJECT => match value.as_ref().try_into() {
                    Ok(bytes) => stored = u64::from_le_bytes(bytes),
                    Err(_) => report("the count of blocks is not eight bytes long".to_owned()),
                },
                kind => report(format!("item of kind {kind} of object {}, which a volume does not have", key.object)),
            }
        }
        from = items.last().filter(|_| items.len() == PAGE).and_then(|(key, _)| key.successor());
    }
    if counted != stored {
        report(format!("the volume counts {stored} blocks, its records have {counted}"));
    }
    Ok(1)
}
