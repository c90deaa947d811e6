//! Devices on their way into a pool: labels and uberblocks read and judged, nothing written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::buf::AlignedBuf;
use crate::device::{Device, IoBatch, Outcome, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::format::label::Label;
use crate::pool::format::layout::{self, LABEL_BYTES, RING_OFFSET, RING_SLOTS, SLOT_BYTES};
use crate::pool::format::uberblock::Uberblock;
use crate::record::store::{LAST_READ_DEADLINE, READ_DEADLINE, WRITE_DEADLINE};

/// Reads one run of a device, as labels are read.
///
/// # Errors
/// `Io`.
pub fn read_at(device: &Arc<dyn Device>, offset: u64, len: usize) -> Result<AlignedBuf> {
    read_runs(device, &[(offset, len)]).pop().expect("one run was asked for")
}

/// Reads runs of a device: offset and length of each. What is not answered in time is asked for once more and given much
/// time: a disk may be asleep.
fn read_runs(device: &Arc<dyn Device>, runs: &[(u64, usize)]) -> Vec<Result<AlignedBuf>> {
    let path = device.info().path.display();
    let late = || Err(Error::new(ErrorKind::Io, format!("{path}: no answer in time")));
    let mut results: Vec<Result<AlignedBuf>> = runs.iter().map(|_| late()).collect();
    let mut ask: Vec<usize> = (0..runs.len()).collect();
    for deadline in [READ_DEADLINE, LAST_READ_DEADLINE] {
        let mut batch = IoBatch::new();
        for &(offset, len) in ask.iter().filter_map(|i| runs.get(*i)) {
            batch.push(device, Request::Read { offset, bufs: vec![AlignedBuf::spare(len)] });
        }
        let asked = std::mem::take(&mut ask);
        for (outcome, i) in batch.wait(deadline).into_iter().zip(asked) {
            results[i] = match outcome {
                Outcome::Done(mut bufs) => Ok(bufs.pop().expect("one buffer was given")),
                Outcome::Failed(e) => Err(Error::new(ErrorKind::Io, format!("{path}")).with_source(e)),
                Outcome::TimedOut => {
                    ask.push(i);
                    continue;
                }
            };
        }
        if ask.is_empty() {
            break;
        }
    }
    results
}

/// Writes one run of a device, durably.
///
/// # Errors
/// `Io`.
pub fn write_at(device: &Arc<dyn Device>, offset: u64, bytes: &[u8]) -> Result<()> {
    let slices = vec![crate::buf::BufSlice::whole(Arc::new(AlignedBuf::from_slice_padded(bytes)))];
    let mut batch = IoBatch::new();
    batch.push(device, Request::Write { offset, slices, durable: true });
    match batch.wait(WRITE_DEADLINE).pop() {
        Some(Outcome::Done(_)) => Ok(()),
        Some(Outcome::Failed(e)) => {
            Err(Error::new(ErrorKind::Io, format!("{}", device.info().path.display())).with_source(e))
        }
        _ => Err(Error::new(ErrorKind::Io, format!("{}: no answer in time", device.info().path.display()))),
    }
}

/// A label copy: where it stands and what is there.
pub struct LabelCopy {
    /// Byte offset.
    pub offset: u64,
    /// The label, or why it is none.
    pub label: Result<Label>,
}

/// Reads the four labels of a device.
pub fn read_labels(device: &Arc<dyn Device>) -> Vec<LabelCopy> {
    let size = device.info().size_bytes;
    if size < layout::DEVICE_BYTES_MIN {
        return Vec::new();
    }
    let offsets = layout::label_offsets(size);
    let blocks = read_runs(device, &offsets.map(|offset| (offset, LABEL_BYTES)));
    let copies = offsets.into_iter().zip(blocks);
    copies
        .map(|(offset, block)| LabelCopy { offset, label: block.and_then(|block| Label::decode(&block, size)) })
        .collect()
}

/// The label of a device, from the copies that are valid; damaged copies are fine as long as one is right.
///
/// # Errors
/// `NotFound` without any label, otherwise the first error.
pub fn read_label(device: &Arc<dyn Device>) -> Result<Label> {
    choose_label(read_labels(device))
}

fn choose_label(copies: Vec<LabelCopy>) -> Result<Label> {
    let mut first_error = None;
    for copy in copies {
        match copy.label {
            Ok(label) => return Ok(label),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                first_error.get_or_insert(e);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "no QRVSA label")))
}

/// Writes all copies of a label.
///
/// # Errors
/// `Io`.
pub fn write_label(device: &Arc<dyn Device>, label: &Label) -> Result<()> {
    let bytes = label.encode();
    for offset in layout::label_offsets(device.info().size_bytes) {
        write_at(device, offset, &bytes)?;
    }
    Ok(())
}

/// Overwrites everything by which a device is recognised, as a member or as something else.
///
/// # Errors
/// `Io`.
pub fn wipe(device: &Arc<dyn Device>) -> Result<()> {
    let size = device.info().size_bytes;
    let zeros = vec![0u8; 1 << 20];
    for offset in [0, 1 << 20, size.saturating_sub(1 << 20) / 4096 * 4096] {
        if offset + zeros.len() as u64 <= size {
            write_at(device, offset, &zeros)?;
        }
    }
    // the ring ends beyond the second MiB
    write_at(device, 0, &zeros[..4096])
}

/// The valid uberblocks of a device, newest first.
pub fn read_uberblocks(device: &Arc<dyn Device>, label: &Label) -> Vec<Uberblock> {
    read_ring(device, label).0
}

/// The valid uberblocks of a device, newest first, and a bit for each slot that cannot be read.
fn read_ring(device: &Arc<dyn Device>, label: &Label) -> (Vec<Uberblock>, u32) {
    const { assert!(RING_SLOTS <= u32::BITS as u64) };
    let (mut list, mut unreadable): (Vec<Uberblock>, u32) = (Vec::new(), 0);
    let mut take = |slot: &[u8]| match Uberblock::decode(slot) {
        Ok(u) if u.pool_id == label.pool_id && u.device_id == label.device_id => list.push(u),
        _ => {}
    };
    match read_at(device, RING_OFFSET, RING_SLOTS as usize * SLOT_BYTES) {
        Ok(ring) => {
            ring.chunks(SLOT_BYTES).for_each(&mut take);
            ring.keep();
        }
        // somewhere in it is a bad sector: that hides one slot, not all
        Err(_) => {
            let slots: Vec<_> = (0..RING_SLOTS).map(|slot| (layout::slot_offset(slot), SLOT_BYTES)).collect();
            for (number, slot) in read_runs(device, &slots).into_iter().enumerate() {
                match slot {
                    Ok(slot) => take(&slot),
                    Err(e) => {
                        unreadable |= 1 << number;
                        tracing::warn!("uberblock slot {number} cannot be read: {e}");
                    }
                }
            }
        }
    }
    list.sort_by_key(|u| std::cmp::Reverse((u.generation, u.txg)));
    (list, unreadable)
}

/// A device that says it is a member.
pub struct Candidate {
    /// The device, held exclusively.
    pub device: Arc<dyn Device>,
    /// Its label.
    pub label: Label,
    /// Its uberblocks, newest first.
    pub uberblocks: Vec<Uberblock>,
    /// A bit for each slot of its ring that cannot be read.
    pub unreadable_slots: u32,
    /// Label copies that are damaged.
    pub damaged_labels: usize,
}

impl Candidate {
    /// Judges an open device.
    ///
    /// # Errors
    /// As [`read_label`].
    pub fn new(device: Arc<dyn Device>) -> Result<Candidate> {
        let copies = read_labels(&device);
        let damaged_labels = copies.iter().filter(|c| c.label.is_err()).count();
        let label = choose_label(copies)?;
        let (uberblocks, unreadable_slots) = read_ring(&device, &label);
        Ok(Candidate { device, label, uberblocks, unreadable_slots, damaged_labels })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.device.info().path
    }
}

/// Regular files and block devices in a directory, or the path itself.
///
/// # Errors
/// `Io` when the directory cannot be listed.
pub fn possible_devices(dir: &Path) -> Result<Vec<PathBuf>> {
    use std::os::unix::fs::FileTypeExt;
    let meta = std::fs::metadata(dir)
        .map_err(|e| Error::new(ErrorKind::NotFound, format!("{}", dir.display())).with_source(e))?;
    if !meta.is_dir() {
        return Ok(vec![dir.to_owned()]);
    }
    let list =
        std::fs::read_dir(dir).map_err(|e| Error::new(ErrorKind::Io, format!("{}", dir.display())).with_source(e))?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in list.flatten() {
        let path = entry.path();
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        let kind = meta.file_type();
        // A container may be smaller than what it holds.
        let large = meta.len() >= layout::DEVICE_BYTES_MIN;
        if kind.is_block_device() || (kind.is_file() && (large || crate::vhdx::is_vhdx(&path))) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
