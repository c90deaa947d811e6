//! Writing out the dirty state of a txg.
//!
//! Objects in order of their numbers, slots in order of their offsets; slots of many objects share a batch of about 8 MiB.
//! For each slot: the plan ([`plan`]), the kept blocks of replaced extents read in one go for the batch, the runs written
//! in one go, then slot by slot: publish the extents, free what they replace, drop the slot from the syncing layer. Holes
//! over slots that hold nothing dirty only free extents, page by page.
//!
//! A kept block that cannot be read must not stop the commit, and must not become good-looking zeros either: it is
//! written as a record of its own whose pointer carries wrong checksums, so that reading it fails as it did before.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use tracing::error;

use super::bits::Bits;
use super::extents::{Extent, PAGE, bytes, extent_key, extent_value};
use super::layer::{BLOCK, Object, Shape};
use super::plan::{self, Plan, Span};
use super::slot::SlotData;
use super::{KIND_SPACE, Objects, ReadRequest, log};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::error::{Error, ErrorKind, Result};
use crate::item::Intent;
use crate::record::pointer::Pointer;
use crate::tree::Key;

/// Neighbouring slots whose extents are looked up together.
const SLOTS_PER_SCAN: u64 = 16;
/// Slots and objects in a batch, at most, however little they write.
const BATCH_ENTRIES: usize = 4096;
/// What the checksums of a record that stands for unreadable blocks are bent by.
const UNREADABLE: u64 = 0x6272_6f6b_656e_2121;

/// What a sync did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SyncStats {
    /// Objects with changes.
    pub objects: u64,
    /// Slots with changes.
    pub slots: u64,
    /// Records written.
    pub records_written: u64,
    /// Blocks in them.
    pub blocks_written: u64,
    /// Blocks read to write them anew.
    pub blocks_read: u64,
    /// Extents freed.
    pub extents_freed: u64,
    /// Objects deleted completely.
    pub objects_reaped: u64,
    /// Deletions that were due and are not finished.
    pub reaping: usize,
    /// Kept blocks that could not be read and stay unreadable.
    pub blocks_unreadable: u64,
    /// Physical blocks that cost more than was reserved; 0 unless the pool changed its shape meanwhile.
    pub blocks_unreserved: u64,
}

/// A slot whose turn it is.
struct Pending {
    /// Index in the batch.
    owner: usize,
    slot: u64,
    dirty: Bits,
    /// Blocks whose old content is gone: dirty ones and holes.
    masked: Bits,
    data: SlotData,
    existing: Vec<Extent>,
    plan: Plan,
    /// Physical blocks reserved in addition to what the slot holds.
    extra_reserved: u64,
}

/// An object with slots in the batch.
struct Owner {
    object: Arc<Object>,
    /// Change of the blocks in all its extents so far.
    space: i64,
    /// No more slots will come.
    complete: bool,
}

struct Batch {
    txg: u64,
    owners: Vec<Owner>,
    slots: Vec<Pending>,
    bytes: usize,
}

/// A run to write.
struct Run {
    /// Index in the batch.
    pending: usize,
    span: Span,
    source: Source,
    /// Blocks, counted from the start of the slot, that could not be read.
    unreadable: Bits,
}

enum Source {
    /// Part of the dirty buffer.
    Dirty(BufSlice),
    /// Put together from dirty and kept blocks.
    Assembled { buf: AlignedBuf, kept: Vec<Kept> },
}

/// A part of an assembled run that comes from an extent.
struct Kept {
    extent: usize,
    /// Blocks, counted from the start of the slot.
    blocks: Range<usize>,
}

impl Objects {
    /// Writes out everything dirty of `txg` (and publishes its extents), then goes on with about `reap_budget` items of
    /// queued deletions. To be called on the sync thread, after `txg` has closed. When it returns, all of `txg` can be
    /// found through the items.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Suspended`: the commit is aborted. What was dirty stays readable; no change is taken any more.
    pub fn sync_txg(&self, txg: u64, reap_budget: usize) -> Result<SyncStats> {
        let _one_at_a_time = self.syncing.lock();
        self.check_running()?;
        // A new sync begins: the one before is committed.
        self.committing.lock().clear();
        let mut stats = SyncStats::default();
        let done = self.sync_objects(txg, &mut stats).and_then(|()| self.reap_some(txg, reap_budget, &mut stats));
        if let Err(error) = done {
            self.failed.store(true, SeqCst);
            return Err(error);
        }
        Ok(stats)
    }

    /// `txg` is committed: what was written out with it unlogged is durable, and no fsync has to wait for it any more.
    pub fn committed(&self, txg: u64) {
        self.committing.lock().retain(|_, committing| *committing > txg);
    }

    fn sync_objects(&self, txg: u64, stats: &mut SyncStats) -> Result<()> {
        let mut objects: Vec<Arc<Object>> = Vec::new();
        for shard in &self.shards {
            objects.extend(shard.objects.read().values().cloned());
        }
        objects.sort_unstable_by_key(|object| object.id);
        let mut batch = Batch { txg, owners: Vec::new(), slots: Vec::new(), bytes: 0 };
        for object in objects {
            self.sync_object(object, &mut batch, stats)?;
        }
        self.flush(&mut batch, stats)
    }

    /// Puts the slots of one object into the batch, and frees what only holes cover.
    fn sync_object(&self, object: Arc<Object>, batch: &mut Batch, stats: &mut SyncStats) -> Result<()> {
        let shape = object.shape;
        let (holes, mut slots) = {
            let mut state = object.state.lock();
            if state.open.as_ref().is_some_and(|open| open.txg <= batch.txg) {
                state.switch_to(batch.txg + 1);
            }
            let Some(layer) = &state.syncing else {
                drop(state);
                self.forget_if_clean(&object);
                return Ok(());
            };
            assert!(layer.txg <= batch.txg, "a layer of transaction group {} is syncing in {}", layer.txg, batch.txg);
            (layer.holes.clone(), layer.slots.keys().copied().collect::<Vec<u64>>())
        };
        stats.objects += 1;
        batch.owners.push(Owner { object: object.clone(), space: 0, complete: false });

        let mut cut = Vec::new();
        for hole in holes.iter() {
            let mut next = Some(shape.slot_start(hole.start));
            while let Some(from) = next {
                let page = self.extent_page(object.reference(), shape, from..hole.end, PAGE)?;
                let mut gone = Vec::new();
                for extent in page.extents {
                    let slot = shape.slot(extent.block);
                    if extent.end() <= hole.start || slots.binary_search(&slot).is_ok() {
                        continue;
                    }
                    match holes.contains_range(extent.block..extent.end()) {
                        true => gone.push(extent),
                        false => cut.push(slot),
                    }
                }
                self.free_extents(&object, &gone, batch, stats);
                next = page.next;
            }
        }
        // A slot that a hole cuts an extent of has an entry, for its reservation. It would be written all the same.
        slots.extend(cut);
        slots.sort_unstable();
        slots.dedup();

        let mut slots = slots.as_slice();
        while let Some(&first) = slots.first() {
            let in_scan = |pair: &(u64, &u64)| *pair.1 == first + pair.0;
            let count = (0..SLOTS_PER_SCAN).zip(slots).take_while(in_scan).count();
            let (together, after) = slots.split_at(count);
            slots = after;
            let range = shape.range(first).start..shape.range(first + count as u64 - 1).end;
            let mut extents = self.extents(object.reference(), shape, range)?.into_iter().peekable();
            for &slot in together {
                let mut existing = Vec::new();
                while let Some(extent) = extents.next_if(|e| shape.slot(e.block) == slot) {
                    existing.push(extent);
                }
                self.add_slot(&object, slot, existing, batch, stats);
                if batch.bytes >= self.batch_bytes || batch.slots.len() >= BATCH_ENTRIES {
                    self.flush(batch, stats)?;
                }
            }
        }
        if let Some(owner) = batch.owners.last_mut() {
            owner.complete = true;
        }
        if batch.owners.len() >= BATCH_ENTRIES {
            self.flush(batch, stats)?;
        }
        Ok(())
    }

    /// Plans a slot and puts it into the batch.
    fn add_slot(&self, object: &Object, slot: u64, existing: Vec<Extent>, batch: &mut Batch, stats: &mut SyncStats) {
        let shape = object.shape;
        let (holes, dirty, data, reserved) = {
            let state = object.state.lock();
            let layer = state.syncing.as_ref().expect("only the sync thread takes the syncing layer away");
            let holes = layer.hole_bits(shape, slot);
            match layer.slots.get(&slot) {
                Some(entry) => (holes, entry.dirty, entry.data.clone(), entry.reserved),
                None => (holes, Bits::EMPTY, SlotData::Sparse(Default::default()), 0),
            }
        };
        let spans: Vec<Span> = existing.iter().map(|e| e.span(shape)).collect();
        let plan = plan::plan(&spans, holes, dirty);
        let cost: u64 = plan.runs.iter().map(|run| self.io.cost_blocks(u32::from(run.blocks))).sum();
        let mut extra_reserved = cost.saturating_sub(reserved);
        if extra_reserved > 0 {
            error!(object = object.id, slot, cost, reserved, "a slot costs more than was reserved for it");
            stats.blocks_unreserved += extra_reserved;
            if self.io.reserve(extra_reserved, Intent::Shrink).is_err() {
                extra_reserved = 0;
            }
        }
        stats.slots += 1;
        batch.bytes += plan.runs.iter().map(|run| bytes(u64::from(run.blocks))).sum::<usize>();
        let owner = batch.owners.len() - 1;
        batch.slots.push(Pending { owner, slot, dirty, masked: dirty | holes, data, existing, plan, extra_reserved });
    }

    /// Frees extents that a hole covers.
    fn free_extents(&self, object: &Object, gone: &[Extent], batch: &mut Batch, stats: &mut SyncStats) {
        if gone.is_empty() {
            return;
        }
        self.shard(object.id).publish(|| {
            for extent in gone {
                self.items.delete_syncing(extent.key(object.id));
            }
        });
        for extent in gone {
            self.io.free(batch.txg, &extent.pointer);
        }
        stats.extents_freed += gone.len() as u64;
        if let Some(owner) = batch.owners.last_mut() {
            owner.space -= gone.iter().map(|e| i64::from(e.pointer.blocks)).sum::<i64>();
        }
    }

    /// Writes the batch and publishes it.
    fn flush(&self, batch: &mut Batch, stats: &mut SyncStats) -> Result<()> {
        let mut runs = assemble(batch);
        self.read_kept(batch, &mut runs, stats)?;

        let mut sources = Vec::with_capacity(runs.len());
        let mut places: Vec<(usize, Span, bool)> = Vec::with_capacity(runs.len());
        for run in runs {
            if !run.unreadable.is_empty() {
                self.reserve_split(&mut batch.slots[run.pending], run.span, run.unreadable);
            }
            let source = match run.source {
                Source::Dirty(slice) => slice,
                Source::Assembled { buf, .. } => BufSlice::whole(Arc::new(buf)),
            };
            // One piece, unless some of it could not be read.
            let all = run.span.bits();
            let mut at = run.span.range().start;
            while at < run.span.range().end {
                let unreadable = run.unreadable.contains(at);
                let end =
                    if unreadable { run.unreadable.next_clear(at) } else { (all & !run.unreadable).next_clear(at) };
                let offset = at - run.span.range().start;
                sources.push(source.slice(bytes(offset as u64)..bytes((offset + end - at) as u64)));
                places.push((run.pending, Span::from_range(at..end), unreadable));
                at = end;
            }
        }
        let mut pointers = Vec::new();
        if !sources.is_empty() {
            pointers = self.write_all(batch.txg, &mut sources, &mut places)?;
            let as_asked = pointers.len() == places.len()
                && pointers.iter().zip(&places).all(|(pointer, (_, span, _))| pointer.blocks == span.blocks);
            assert!(as_asked, "the record writer returned pointers that do not fit what was to be written");
        }
        stats.records_written += places.len() as u64;
        stats.blocks_written += places.iter().map(|(_, span, _)| u64::from(span.blocks)).sum::<u64>();

        let mut written = places.into_iter().zip(pointers).zip(sources).peekable();
        let mut slots = std::mem::take(&mut batch.slots);
        batch.bytes = 0;
        for (index, pending) in slots.drain(..).enumerate() {
            let owner = &mut batch.owners[pending.owner];
            let start = owner.object.shape.range(pending.slot).start;
            let mut extents = Vec::new();
            while let Some((((_, span, unreadable), mut pointer), source)) =
                written.next_if(|(((i, ..), _), _)| *i == index)
            {
                if unreadable {
                    pointer.checksums.iter_mut().for_each(|sum| *sum ^= UNREADABLE);
                } else {
                    self.io.keep(&pointer, &source);
                }
                extents.push(Extent { block: start + u64::from(span.first), pointer });
            }
            self.publish_slot(batch.txg, owner, pending, &extents, stats);
        }
        batch.slots = slots;
        for owner in batch.owners.extract_if(.., |owner| owner.complete) {
            self.finish_object(batch.txg, owner)?;
        }
        Ok(())
    }

    /// Writes records; where free rows are too scattered for one, it is cut in two.
    fn write_all(
        &self,
        txg: u64,
        sources: &mut Vec<BufSlice>,
        places: &mut Vec<(usize, Span, bool)>,
    ) -> Result<Vec<Pointer>> {
        let mut pointers: Vec<Pointer> = Vec::with_capacity(sources.len());
        while pointers.len() < sources.len() {
            let at = pointers.len();
            let error = match self.io.write(txg, &sources[at..]) {
                Ok(some) if !some.is_empty() => {
                    pointers.extend(some);
                    continue;
                }
                Ok(_) => Error::new(ErrorKind::NoSpace, "no free rows for a record"),
                Err(error) => error,
            };
            let (pending, span, unreadable) = places[at];
            let range = span.range();
            if error.kind() != ErrorKind::NoSpace || range.len() == 1 {
                return Err(error);
            }
            // Cut between rows of full width: two parts then take no more rows than the whole.
            let row = usize::try_from(self.io.cost_blocks(1)).unwrap_or(1).max(1);
            let half = Some((range.len() / 2).next_multiple_of(row)).filter(|half| *half < range.len());
            let half = half.unwrap_or(range.len() / 2);
            let source = sources[at].clone();
            sources
                .splice(at..=at, [source.slice(0..half * BLOCK_SIZE), source.slice(half * BLOCK_SIZE..source.len())]);
            let middle = range.start + half;
            places.splice(
                at..=at,
                [
                    (pending, Span::from_range(range.start..middle), unreadable),
                    (pending, Span::from_range(middle..range.end), unreadable),
                ],
            );
        }
        Ok(pointers)
    }

    /// Reads the kept blocks of assembled runs.
    fn read_kept(&self, batch: &Batch, runs: &mut [Run], stats: &mut SyncStats) -> Result<()> {
        let mut requests = Vec::new();
        for run in runs.iter_mut() {
            let pending = &batch.slots[run.pending];
            let shape = batch.owners[pending.owner].object.shape;
            requests.extend(kept_requests(shape, pending, run));
        }
        if requests.is_empty() {
            return Ok(());
        }
        stats.blocks_read += requests.iter().map(|r| (r.out.len() / BLOCK_SIZE) as u64).sum::<u64>();
        let error = match self.io.read_once(&mut requests) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Corrupt => error,
            // devices that have not answered may have them yet: better no commit than one without these blocks
            Err(error) => return Err(error),
        };
        drop(requests);
        error!(%error, "reading blocks that are to be written anew; trying one by one");
        for run in runs.iter_mut() {
            let pending = &batch.slots[run.pending];
            let object = &batch.owners[pending.owner].object;
            let mut unreadable = Bits::EMPTY;
            let mut block = run.span.range().start;
            let places: Vec<Range<usize>> = match &run.source {
                Source::Dirty(_) => continue,
                Source::Assembled { kept, .. } => kept.iter().map(|k| k.blocks.clone()).collect(),
            };
            for (request, blocks) in kept_requests(object.shape, pending, run).into_iter().zip(places) {
                let ReadRequest { pointer, first_block, out } = request;
                if self.read_salvaging(pointer, first_block, out)? {
                    continue;
                }
                for (i, out) in out.chunks_mut(BLOCK_SIZE).enumerate() {
                    block = blocks.start + i;
                    if !self.read_salvaging(pointer, first_block + i as u16, out)? {
                        out.fill(0);
                        unreadable |= Bits::range(block..block + 1);
                    }
                }
            }
            if !unreadable.is_empty() {
                let offset = (object.shape.range(pending.slot).start + block as u64) * BLOCK;
                error!(object = object.id, offset, "blocks next to changed ones cannot be read and stay unreadable");
                stats.blocks_unreadable += unreadable.count() as u64;
                run.unreadable = unreadable;
            }
        }
        Ok(())
    }

    /// A run that is written in several pieces, as some of it is unreadable, costs more than was reserved for it.
    fn reserve_split(&self, pending: &mut Pending, span: Span, unreadable: Bits) {
        let pieces = (span.bits() & !unreadable).runs().chain(unreadable.runs());
        let cost: u64 = pieces.map(|piece| self.io.cost_blocks(piece.len() as u32)).sum();
        let more = cost.saturating_sub(self.io.cost_blocks(u32::from(span.blocks)));
        // Without it the write is tried all the same.
        if more > 0 && self.io.reserve(more, Intent::Shrink).is_ok() {
            pending.extra_reserved += more;
        }
    }

    /// Reads a part of a record; returns whether it could be read.
    fn read_salvaging(&self, pointer: &Pointer, first_block: u16, out: &mut [u8]) -> Result<bool> {
        match self.io.read_once(&mut [ReadRequest { pointer, first_block, out }]) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the new extents of a slot visible, frees the replaced ones and drops the slot from memory.
    fn publish_slot(&self, txg: u64, owner: &mut Owner, pending: Pending, extents: &[Extent], stats: &mut SyncStats) {
        let object = &owner.object;
        let gone: Vec<&Extent> = pending.plan.replaced.iter().map(|&i| &pending.existing[i]).collect();
        self.shard(object.id).publish(|| {
            for extent in extents {
                self.items.put_syncing(extent_key(object.id, extent.block), extent_value(&extent.pointer));
            }
            for extent in gone.iter().filter(|old| extents.iter().all(|new| new.block != old.block)) {
                self.items.delete_syncing(extent.key(object.id));
            }
        });
        for extent in &gone {
            self.io.free(txg, &extent.pointer);
        }
        stats.extents_freed += gone.len() as u64;
        owner.space += extents.iter().map(|e| i64::from(e.pointer.blocks)).sum::<i64>();
        owner.space -= gone.iter().map(|e| i64::from(e.pointer.blocks)).sum::<i64>();

        let mut state = object.state.lock();
        let layer = state.syncing.as_mut().expect("only the sync thread takes the syncing layer away");
        let mut before = layer.holes_memory();
        layer.holes.remove(object.shape.range(pending.slot));
        let after = layer.holes_memory();
        let mut reserved = pending.extra_reserved;
        if let Some(entry) = layer.slots.remove(&pending.slot) {
            if !entry.unlogged.is_empty() {
                self.committing.lock().insert(object.id, txg);
            }
            before += entry.memory();
            reserved += entry.reserved;
        }
        drop(state);
        if reserved > 0 {
            self.io.release(reserved);
        }
        self.account(before, after);
    }

    /// Brings the space item up to date and drops the syncing layer.
    fn finish_object(&self, txg: u64, owner: Owner) -> Result<()> {
        let Owner { object, space, .. } = owner;
        if space != 0 {
            let blocks = self.space_blocks(object.id)?.checked_add_signed(space).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, format!("space item of object {} is less than its extents", object.id))
            })?;
            self.items.put_syncing(Key::new(object.id, KIND_SPACE, 0), blocks.to_le_bytes().as_slice().into());
        }
        let mut state = object.state.lock();
        let layer = state.syncing.take().expect("only the sync thread takes the syncing layer away");
        assert!(layer.slots.is_empty(), "a slot of the syncing layer was not written out");
        if log::unlogged(&layer, object.shape, &(0..super::layer::BLOCKS_END)) > 0 {
            self.committing.lock().insert(object.id, txg);
        }
        drop(state);
        self.discard(layer);
        self.forget_if_clean(&object);
        Ok(())
    }
}

/// The runs of a batch, with the dirty blocks in their place.
fn assemble(batch: &Batch) -> Vec<Run> {
    let mut runs = Vec::new();
    for (index, pending) in batch.slots.iter().enumerate() {
        let shape = batch.owners[pending.owner].object.shape;
        for &span in &pending.plan.runs {
            let dirty = pending.dirty & span.bits();
            let shared = if dirty == span.bits() { pending.data.shared(span.range()) } else { None };
            let source = shared.map_or_else(|| assemble_run(shape, pending, span, dirty), Source::Dirty);
            runs.push(Run { pending: index, span, source, unreadable: Bits::EMPTY });
        }
    }
    runs
}

fn assemble_run(shape: Shape, pending: &Pending, span: Span, dirty: Bits) -> Source {
    let mut buf = AlignedBuf::zeroed(bytes(u64::from(span.blocks)));
    let first = usize::from(span.first);
    for run in dirty.runs() {
        pending.data.pieces(run, |block, data| {
            buf[(block - first) * BLOCK_SIZE..][..data.len()].copy_from_slice(data);
        });
    }
    let mut kept = Vec::new();
    for &extent in &pending.plan.replaced {
        let old = pending.existing[extent].span(shape).bits() & span.bits() & !pending.masked;
        kept.extend(old.runs().map(|blocks| Kept { extent, blocks }));
    }
    Source::Assembled { buf, kept }
}

/// The reads that fill a run, in the order of its kept parts.
fn kept_requests<'a>(shape: Shape, pending: &'a Pending, run: &'a mut Run) -> Vec<ReadRequest<'a>> {
    let mut requests = Vec::new();
    if let Source::Assembled { buf, kept } = &mut run.source {
        let (mut at, mut rest) = (run.span.range().start, &mut buf[..]);
        for Kept { extent, blocks } in kept {
            let existing = &pending.existing[*extent];
            let (_, tail) = rest.split_at_mut((blocks.start - at) * BLOCK_SIZE);
            let (out, tail) = tail.split_at_mut(blocks.len() * BLOCK_SIZE);
            let first_block = blocks.start as u16 - existing.span(shape).first;
            requests.push(ReadRequest { pointer: &existing.pointer, first_block, out });
            (at, rest) = (blocks.end, tail);
        }
    }
    requests
}
