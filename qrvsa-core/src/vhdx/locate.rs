//! The parent locator in a file that has one: rewriting it without touching any other item.

use super::file::{ImageFile, io_error};
use super::format::{ItemEntry, METADATA_TABLE_BYTES, MetadataTable, ParentLocator, RawMetadataTable, Region, items};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a table that an entry needs behind its header of 32 bytes.
const ENTRY_BYTES: usize = 32;

/// The bytes to be written, and where, so that the metadata region has this locator: the item, and its entry.
///
/// # Errors
/// [`ErrorKind::Invalid`] if there is no room for it; [`ErrorKind::Corrupt`], [`ErrorKind::Io`].
pub(super) fn locator_writes(
    file: &dyn ImageFile,
    region: Region,
    locator: &ParentLocator,
) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut bytes = vec![0; METADATA_TABLE_BYTES];
    file.read_at(&mut bytes, region.offset).map_err(|e| io_error(file.path(), "cannot read the metadata of", e))?;
    let table = RawMetadataTable::decode(&bytes).validate(region.length)?;
    let path = file.path().display();
    let Some(index) = table.entries.iter().position(|entry| entry.id == items::PARENT_LOCATOR) else {
        crate::fail!(Corrupt, "{path} has no parent locator");
    };
    let item = locator.encode();
    let length = u32::try_from(item.len()).ok().filter(|length| *length <= 1 << 20);
    let length = length.ok_or_else(|| no_room(file))?;
    let offset = place(&table, index, length, region.length).ok_or_else(|| no_room(file))?;
    let mut entry = offset.to_le_bytes().to_vec();
    entry.extend(length.to_le_bytes());
    let entry_at = region.offset + 32 + (index * ENTRY_BYTES) as u64 + 16;
    Ok(vec![(region.offset + u64::from(offset), item), (entry_at, entry)])
}

fn no_room(file: &dyn ImageFile) -> Error {
    let what = format!("{}: the paths to the parent are too long for its metadata", file.path().display());
    Error::new(ErrorKind::Invalid, what)
}

/// Where an item of `length` bytes goes: where it is, if it fits there, or behind all others.
fn place(table: &MetadataTable, index: usize, length: u32, region: u32) -> Option<u32> {
    let others = || table.entries.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, entry)| entry);
    let end = |entry: &ItemEntry| u64::from(entry.offset) + u64::from(entry.length);
    let own = table.entries.get(index)?;
    let next = others().map(|entry| entry.offset).filter(|offset| *offset >= own.offset).min().unwrap_or(region);
    if own.offset as usize >= METADATA_TABLE_BYTES && u64::from(own.offset) + u64::from(length) <= u64::from(next) {
        return Some(own.offset);
    }
    let behind = others().map(end).max().unwrap_or(0).max(METADATA_TABLE_BYTES as u64).next_multiple_of(4096);
    (behind + u64::from(length) <= u64::from(region)).then(|| u32::try_from(behind).ok()).flatten()
}
