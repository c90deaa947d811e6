//! Writing records: place, cut, encode, checksum, and leave in large writes per device.
//!
//! Consecutive records land in consecutive rows, so each column of a group turns into one long vectored write. Encoding
//! of later records overlaps with the I/O of earlier ones. A member that fails a write is taken out of service; the write
//! stands as long as no more columns are missing than the group has parity.

use std::collections::HashMap;
use std::sync::Arc;

use super::checksum::checksum;
use super::erasure::Codec;
use super::pointer::{Pointer, UNIT_BLOCKS};
use super::store::{RecordStore, WRITE_DEADLINE};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::device::{IoBatch, Outcome, Request};
use crate::error::Result;
use crate::fail;
use crate::pool::format::entries::{Class, ColumnEntry, ZoneRef};
use crate::pool::group::Group;
use crate::pool::member::Member;
use crate::pool::space::Extent;

/// Bytes encoded before the next batch of writes is handed to the devices.
const START_BYTES: usize = 2 << 20;
/// Longest single write, bytes.
const RUN_BYTES_MAX: usize = 1 << 20;
/// Most pieces of a vectored write.
const RUN_PIECES_MAX: usize = 512;

/// One contiguous write that is being collected.
struct Run {
    start_row: u32,
    next_row: u32,
    bytes: usize,
    slices: Vec<BufSlice>,
}

/// Writes in flight over all members, with what must hold until they are done.
struct Flight<'a> {
    store: &'a RecordStore,
    batch: IoBatch,
    owners: Vec<Arc<Member>>,
    runs: HashMap<ZoneRef, Run>,
    groups: HashMap<u32, (Arc<Group>, parking_lot::ArcRwLockReadGuard<parking_lot::RawRwLock, ()>)>,
}

impl Flight<'_> {
    fn enter(&mut self, group: &Arc<Group>) {
        self.groups.entry(group.id).or_insert_with(|| (group.clone(), group.io.read_arc()));
    }

    fn push(&mut self, place: ZoneRef, row: u32, slice: BufSlice) {
        let rows = (slice.len() / BLOCK_SIZE) as u32;
        if let Some(run) = self.runs.get_mut(&place) {
            if run.next_row == row && run.bytes < RUN_BYTES_MAX && run.slices.len() < RUN_PIECES_MAX {
                run.next_row += rows;
                run.bytes += slice.len();
                run.slices.push(slice);
                return;
            }
            let run = self.runs.remove(&place).expect("found above");
            self.send(place, run);
        }
        let run = Run { start_row: row, next_row: row + rows, bytes: slice.len(), slices: vec![slice] };
        self.runs.insert(place, run);
    }

    fn send(&mut self, place: ZoneRef, run: Run) {
        let Some(member) = self.store.space.member(place.device) else { return };
        let Some(device) = member.device() else { return };
        let offset = self.store.space.offset(place, run.start_row);
        self.batch.push(&device, Request::Write { offset, slices: run.slices, durable: false });
        self.owners.push(member);
    }

    fn start(&mut self) {
        for (place, run) in std::mem::take(&mut self.runs) {
            self.send(place, run);
        }
        self.batch.start();
    }

    /// Waits for everything; an error means that more columns are lost than the geometry covers.
    fn finish(mut self) -> Result<()> {
        self.start();
        for (outcome, member) in self.batch.wait(WRITE_DEADLINE).into_iter().zip(self.owners) {
            match outcome {
                Outcome::Done(_) => {}
                Outcome::Failed(error) => {
                    member.count(&member.write_errors);
                    member.fail(&format!("write failed: {error}"));
                }
                Outcome::TimedOut => {
                    member.count(&member.write_errors);
                    member.fail("a write was not answered in time");
                }
            }
        }
        for (group, _) in self.groups.values() {
            self.store.check_writable(group)?;
        }
        Ok(())
    }
}

impl RecordStore {
    /// Fails when more columns of a group are out of service than it has parity. A column that is being moved is in service
    /// as long as its previous place is: the new one does not hold everything yet. Who goes on without both gives up what the
    /// previous place may still have.
    pub(crate) fn check_writable(&self, group: &Group) -> Result<()> {
        let serves = |place: ZoneRef| self.space.member(place.device).is_some_and(|m| m.in_service());
        let holds = |c: &&ColumnEntry| match c.previous {
            Some(previous) => serves(previous) || (!c.stale && serves(c.place)),
            None => serves(c.place),
        };
        let columns = group.columns.read();
        let out = columns.len() - columns.iter().filter(holds).count();
        if out > usize::from(group.parity) {
            fail!(Suspended, "{out} devices of block group {} are gone, it survives only {}", group.id, group.parity);
        }
        Ok(())
    }

    /// Writes records of whole blocks; returns their pointers in order. When free rows run out before the end, fewer
    /// pointers come back than records were given; none at all is `NoSpace`. Committing thread only.
    ///
    /// # Errors
    /// `NoSpace`, `Suspended`.
    pub fn write(&self, txg: u64, class: Class, records: &[BufSlice]) -> Result<Vec<Pointer>> {
        let mut flight = Flight {
            store: self,
            batch: IoBatch::new(),
            owners: Vec::new(),
            runs: HashMap::new(),
            groups: HashMap::new(),
        };
        let mut pointers = Vec::with_capacity(records.len());
        let mut collected = 0;
        for record in records {
            let blocks = record.len() / BLOCK_SIZE;
            assert!(blocks > 0 && record.len() % BLOCK_SIZE == 0, "records are whole blocks");
            let extent = match self.space.allocate(class, blocks as u32) {
                Ok(extent) => extent,
                Err(e) if e.kind() == crate::ErrorKind::NoSpace && !pointers.is_empty() => break,
                Err(e) => {
                    return Err(e);
                }
            };
            flight.enter(&extent.group);
            pointers.push(self.encode(txg, &extent, record, &mut flight)?);
            collected += record.len();
            if collected >= START_BYTES {
                collected = 0;
                flight.start();
            }
        }
        flight.finish()?;
        Ok(pointers)
    }

    fn encode(&self, txg: u64, extent: &Extent, record: &BufSlice, flight: &mut Flight<'_>) -> Result<Pointer> {
        let group = &extent.group;
        let width = usize::from(group.width);
        let blocks = record.len() / BLOCK_SIZE;
        let rows = blocks.div_ceil(width);
        let fragment = rows * BLOCK_SIZE;
        let whole = if blocks == rows * width {
            record.clone()
        } else {
            let mut padded = AlignedBuf::zeroed(fragment * width);
            padded[..record.len()].copy_from_slice(record);
            BufSlice::whole(Arc::new(padded))
        };
        let mut fragments: Vec<BufSlice> = (0..width).map(|c| whole.slice(c * fragment..(c + 1) * fragment)).collect();
        let parity = usize::from(group.parity);
        if width == 1 {
            fragments.resize(1 + parity, whole.clone());
        } else if parity > 0 {
            let mut sums: Vec<AlignedBuf> = (0..parity).map(|_| AlignedBuf::zeroed(fragment)).collect();
            {
                let data: Vec<&[u8]> = fragments.iter().map(|f| &**f).collect();
                let mut out: Vec<&mut [u8]> = sums.iter_mut().map(|p| &mut **p).collect();
                Codec::get(group.width, group.parity).encode(&data, &mut out);
            }
            fragments.extend(sums.into_iter().map(|p| BufSlice::whole(Arc::new(p))));
        }
        let unit = UNIT_BLOCKS as usize * BLOCK_SIZE;
        let summed = if width == 1 { &fragments[..1] } else { &fragments[..] };
        let checksums = summed.iter().flat_map(|f| f.chunks(unit).map(checksum)).collect();
        for (column, slice) in group.columns.read().iter().zip(&fragments) {
            flight.push(column.place, extent.row, slice.clone());
            if let Some(previous) = column.previous {
                flight.push(previous, extent.row, slice.clone());
            }
        }
        Ok(Pointer {
            group: group.id,
            row: extent.row,
            birth: txg,
            blocks: blocks as u16,
            width: group.width,
            parity: group.parity,
            checksums,
        })
    }

    /// Frees a record's rows when `txg` commits.
    ///
    /// # Errors
    /// `Corrupt` when they were not in use.
    pub fn free(&self, txg: u64, pointer: &Pointer) -> Result<()> {
        let group = self.space.group(pointer.group)?;
        let rows = match group.class {
            Class::Data => {
                self.forget(pointer);
                pointer.rows()
            }
            _ => crate::pool::space::NODE_ROWS,
        };
        self.space.free(txg, pointer.group, pointer.row, rows)
    }

    /// Makes everything written so far durable on every member in service. A member that fails is taken out.
    pub fn flush(&self) {
        let mut batch = IoBatch::new();
        let mut owners = Vec::new();
        // all of them: a mark of what was written to would be taken away by the flush of another thread, which may have
        // begun before our write was done or may not have ended yet
        for member in self.space.members() {
            if let Some(device) = member.device() {
                batch.push(&device, Request::Flush);
                owners.push(member);
            }
        }
        for (outcome, member) in batch.wait(WRITE_DEADLINE).into_iter().zip(owners) {
            let reason = match outcome {
                Outcome::Done(_) => continue,
                Outcome::Failed(error) => format!("flush failed: {error}"),
                Outcome::TimedOut => "a flush was not answered in time".to_owned(),
            };
            member.count(&member.write_errors);
            member.fail(&reason);
        }
    }
}
