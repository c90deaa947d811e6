//! Where the contents of a disk are: extents through the whole chain of parents.

use std::path::PathBuf;

use super::format::{BatSlot, Header, PayloadState};
use super::image::Image;
use super::status::ExtentKind;
use crate::error::Result;

/// A run of a disk whose bytes are in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// How many parents away the file is that decides: 0 is the image itself.
    pub depth: u32,
    /// Whether a file says so; otherwise nothing was ever written there.
    pub present: bool,
    /// File and offset in it, if there is data; zeros otherwise.
    pub data: Option<(PathBuf, u64)>,
}

impl Image {
    /// The extent at `offset`, a multiple of the logical sector inside the disk.
    ///
    /// # Errors
    /// As for [`Image::status`].
    pub fn extent(&self, offset: u64) -> Result<MapExtent> {
        let mut image = self;
        let mut depth = 0;
        let mut length = u64::MAX;
        loop {
            let extent = image.status(offset)?;
            length = length.min(extent.length);
            let here = |present, data| MapExtent { offset, length, depth, present, data };
            match (extent.kind, image.parent()) {
                (ExtentKind::Data { file_offset }, _) => {
                    return Ok(here(true, Some((image.file().path().to_owned(), file_offset))));
                }
                (ExtentKind::Zero, _) => return Ok(here(depth == 0 && image.parent().is_some(), None)),
                (ExtentKind::Parent, Some(parent)) if offset < parent.size() => {
                    length = length.min(parent.size() - offset);
                    image = parent;
                    depth += 1;
                }
                (ExtentKind::Parent, _) => return Ok(here(false, None)),
            }
        }
    }

    /// Calls `each` with all extents in order, neighbours of one kind as one.
    ///
    /// # Errors
    /// As for [`Image::status`], and those of `each`.
    pub fn for_each_extent(&self, each: &mut dyn FnMut(MapExtent) -> Result<()>) -> Result<()> {
        let mut pending: Option<MapExtent> = None;
        let mut at = 0;
        while at < self.size() {
            let next = self.extent(at)?;
            at += next.length.max(1);
            match &mut pending {
                Some(last) if follows(last, &next) => last.length += next.length,
                _ => {
                    if let Some(done) = pending.replace(next) {
                        each(done)?;
                    }
                }
            }
        }
        pending.map_or(Ok(()), each)
    }
}

fn follows(last: &MapExtent, next: &MapExtent) -> bool {
    let places = match (&last.data, &next.data) {
        (Some((a, from)), Some((b, to))) => a == b && from + last.length == *to,
        (None, None) => true,
        _ => false,
    };
    places && last.depth == next.depth && last.present == next.present
}

impl Image {
    /// The current header.
    pub fn header(&self) -> Header {
        self.journal.lock().header().clone()
    }

    /// How many payload blocks are in which state; those that are not present are left out.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn count_blocks(&self) -> Result<Vec<(PayloadState, u64)>> {
        let shape = self.shape.read();
        let mut counts: Vec<(PayloadState, u64)> = Vec::new();
        self.for_each_entry(&shape, |slot, entry| {
            let state = entry.payload_state();
            if matches!(slot, BatSlot::Payload(_)) && state != PayloadState::NotPresent {
                match counts.iter_mut().find(|(known, _)| *known == state) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((state, 1)),
                }
            }
            Ok(())
        })?;
        Ok(counts)
    }
}
