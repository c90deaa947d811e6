//! The intent log: a ring of blocks in `1 + m` log groups that makes fsync cheap.
//!
//! Callers append entries and wait; whoever finds nobody writing becomes the writer for all that are queued (group
//! commit). A block is written to all columns at once with forced unit access, and the next block only after that: so the
//! acknowledged blocks are a gapless run from the start that the uberblock names. A block is valid when its pool,
//! generation, sequence number and checksum are what is expected at its place; replay ends at the first that is not, on
//! any column.
//!
//! A block is acknowledged only when it is on every column whose device an uberblock lists as in service that an import
//! may find. When a device has failed since, a commit says so first, and makes the entries durable by itself. So each
//! column that an import uses has all that was acknowledged, however few of the others answer then. What only some have
//! was not acknowledged; a replay that commits before its end gives it to the others first.
//!
//! Positions are virtual rows that only grow; the ring is `position % (segments * rows)`. A block never crosses the end
//! of a segment.

use crate::waits;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::device::{IoBatch, Outcome, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::pool::format::entries::ZoneRef;
use crate::pool::format::uberblock::LogStart;
use crate::pool::group::Group;
use crate::pool::space::Space;
use crate::record::store::WRITE_DEADLINE;
use crate::txg::block::{self, BLOCK_ROWS_MAX, HEADER_BYTES};
use crate::txg::read::{Block, LogReader};

/// Longest entry in bytes that fits a block.
pub const ENTRY_BYTES_MAX: usize = BLOCK_ROWS_MAX as usize * BLOCK_SIZE - HEADER_BYTES - 4;

/// More blocks at the end of a log than a device can lack that an uberblock lists as in service. It gets none after it
/// failed, and such a block lets no other be written before a commit. That of the group open at the failure may list the
/// device, the next does not: it lacks two at most.
const NOT_EVERYWHERE_MAX: usize = 4;

/// Says how far the log must be durable for a caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(u64);

impl Ticket {
    /// Its number, at least 1.
    pub fn number(self) -> u64 {
        self.0
    }

    /// From its number.
    pub fn from_number(number: u64) -> Ticket {
        Ticket(number)
    }
}

/// Where the log stood when a transaction group was closed.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// For [`IntentLog::reclaim`].
    pub position: u64,
    /// For the uberblock.
    pub start: LogStart,
    appended: u64,
}

struct State {
    /// The entries of each call.
    queue: Vec<Vec<Vec<u8>>>,
    appended: u64,
    durable: u64,
    /// Tickets up to here are durable through a commit.
    satisfied: u64,
    /// Entries up to this ticket were dropped: the ring was full, or a device did not take them. Until a commit that contains them all, nothing is
    /// acknowledged by the log: a later entry must not survive an earlier one.
    dropped: u64,
    writing: bool,
    position: u64,
    sequence: u64,
    reclaimed: u64,
    generation: u64,
    /// The newest transaction group that is durable.
    committed: u64,
    segments: Vec<Arc<Group>>,
    failed: Option<String>,
    /// The blocks replayed last: their positions and sequence numbers.
    replayed: VecDeque<(u64, u64, Arc<Block>)>,
}

/// What a replay found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replayed {
    /// Blocks handed out.
    pub blocks: u64,
    /// The log went on, behind the commit of this transaction group, which the caller does not have.
    pub missing: Option<u64>,
}

/// The log of a pool.
pub struct IntentLog {
    space: Arc<Space>,
    pool_id: u128,
    state: Mutex<State>,
    changed: Condvar,
    blocks_written: AtomicU64,
}

pub(super) fn segment_rows(space: &Space) -> u64 {
    u64::from(space.zone_rows())
}

impl IntentLog {
    /// An empty log over these groups that starts at `start`.
    pub fn new(space: Arc<Space>, pool_id: u128, segments: Vec<Arc<Group>>, start: LogStart) -> IntentLog {
        let position = u64::from(start.segment) * segment_rows(&space) + u64::from(start.row);
        IntentLog {
            space,
            pool_id,
            state: Mutex::new(State {
                queue: Vec::new(),
                appended: 0,
                durable: 0,
                satisfied: 0,
                dropped: 0,
                writing: false,
                position,
                sequence: start.sequence,
                reclaimed: position,
                generation: start.generation,
                committed: start.base_txg,
                segments,
                failed: None,
                replayed: VecDeque::new(),
            }),
            changed: Condvar::new(),
            blocks_written: AtomicU64::new(0),
        }
    }

    /// Groups of the log, in ring order.
    pub fn segments(&self) -> Vec<Arc<Group>> {
        self.state.lock().segments.clone()
    }

    /// Blocks written since the pool was opened.
    pub fn blocks_written(&self) -> u64 {
        self.blocks_written.load(Ordering::Relaxed)
    }

    fn start_at(&self, state: &State, position: u64, base_txg: u64) -> LogStart {
        let rows = segment_rows(&self.space);
        let n = state.segments.len().max(1) as u64;
        LogStart {
            generation: state.generation,
            segment: ((position / rows) % n) as u32,
            row: (position % rows) as u32,
            sequence: state.sequence,
            base_txg,
        }
    }

    /// Marks the log while transaction group `txg` is closed: entries of later groups lie behind the mark, and everything
    /// appended before it is in the root of `txg`.
    pub fn mark(&self, txg: u64) -> Mark {
        let state = self.state.lock();
        Mark { position: state.position, start: self.start_at(&state, state.position, txg), appended: state.appended }
    }

    /// After the commit of a marked transaction group: everything appended before the mark is durable.
    pub fn committed(&self, mark: &Mark) {
        let mut state = self.state.lock();
        state.satisfied = state.satisfied.max(mark.appended);
        state.committed = state.committed.max(mark.start.base_txg);
        self.changed.notify_all();
    }

    /// Everything before a marked position may be overwritten.
    pub fn reclaim(&self, position: u64) {
        let mut state = self.state.lock();
        state.reclaimed = state.reclaimed.max(position);
        self.changed.notify_all();
    }

    /// Share of the ring in use, percent.
    pub fn fill_percent(&self) -> u64 {
        let state = self.state.lock();
        let size = segment_rows(&self.space) * state.segments.len().max(1) as u64;
        (state.position - state.reclaimed) * 100 / size
    }

    /// Queues entries, in order. They become durable together if one block has room for them, which it has for all that is
    /// logged of one object at once, and else in order.
    ///
    /// # Errors
    /// `Suspended` when the log cannot be written any more.
    pub fn append(&self, entries: Vec<Vec<u8>>) -> Result<Ticket> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.failed {
            fail!(Suspended, "the intent log cannot be written: {reason}");
        }
        assert!(entries.iter().all(|entry| entry.len() <= ENTRY_BYTES_MAX));
        state.queue.push(entries);
        state.appended += 1;
        Ok(Ticket(state.appended))
    }

    /// Waits until everything up to the ticket is durable, writing it if nobody else does.
    ///
    /// # Errors
    /// `NoSpace` when the ring is full, or lacks a device that import would use: only a commit makes room, or says that the
    /// device failed, and it makes the entries durable by itself.
    /// `Suspended` when no column can be written.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if state.satisfied >= ticket.0 {
                return Ok(());
            }
            if state.dropped > state.satisfied {
                fail!(NoSpace, "the intent log takes nothing more before a commit");
            }
            if state.durable >= ticket.0 {
                return Ok(());
            }
            if let Some(reason) = &state.failed {
                fail!(Suspended, "the intent log cannot be written: {reason}");
            }
            if state.writing {
                waits::announce();
                self.changed.wait(&mut state);
                continue;
            }
            // become the writer of everything queued so far
            state.writing = true;
            let target = state.appended;
            let queue = std::mem::take(&mut state.queue);
            drop(state);
            let result = self.write_blocks(queue);
            state = self.state.lock();
            state.writing = false;
            match result {
                Ok(()) => state.durable = state.durable.max(target),
                Err(e) if e.kind() == ErrorKind::NoSpace => state.dropped = state.dropped.max(target),
                Err(e) => state.failed = Some(e.to_string()),
            }
            self.changed.notify_all();
        }
    }

    fn write_blocks(&self, queue: Vec<Vec<Vec<u8>>>) -> Result<()> {
        let fits = |len: usize| HEADER_BYTES + len <= BLOCK_ROWS_MAX as usize * BLOCK_SIZE;
        let mut payload: Vec<u8> = Vec::new();
        for call in queue {
            // An atomic write with a hole punched into it is several entries: a crash leaves all or none.
            let together = call.iter().map(|entry| entry.len() + 4).sum::<usize>();
            if !payload.is_empty() && fits(together) && !fits(payload.len() + together) {
                self.write_block(&payload)?;
                payload.clear();
            }
            for entry in call {
                if !payload.is_empty() && !fits(payload.len() + 4 + entry.len()) {
                    self.write_block(&payload)?;
                    payload.clear();
                }
                payload.extend_from_slice(&(entry.len() as u32).to_le_bytes());
                payload.extend_from_slice(&entry);
            }
        }
        if payload.is_empty() { Ok(()) } else { self.write_block(&payload) }
    }

    /// Writes one block to all columns of its segment. Only the current writer calls this.
    fn write_block(&self, payload: &[u8]) -> Result<()> {
        let rows = ((HEADER_BYTES + payload.len()).div_ceil(BLOCK_SIZE)) as u64;
        let (group, row, block) = {
            let mut state = self.state.lock();
            let per_segment = segment_rows(&self.space);
            let n = state.segments.len() as u64;
            if n == 0 {
                fail!(NoSpace, "the pool has no intent log");
            }
            let in_segment = state.position % per_segment;
            let position = if in_segment + rows > per_segment {
                state.position + (per_segment - in_segment)
            } else {
                state.position
            };
            if position + rows - state.reclaimed > n * per_segment {
                fail!(NoSpace, "the intent log is full");
            }
            let group = state.segments[((position / per_segment) % n) as usize].clone();
            let header = block::header(self.pool_id, state.generation, state.sequence, state.committed, payload);
            state.position = position + rows;
            state.sequence += 1;
            (group, (position % per_segment) as u32, (header, payload))
        };
        let (written, lacking) = self.send(&group, row, block, |_| true);
        if written == 0 {
            fail!(Suspended, "no device of the intent log could be written");
        }
        self.blocks_written.fetch_add(1, Ordering::Relaxed);
        if lacking {
            fail!(NoSpace, "a device that the uberblock lists as in service has left the intent log");
        }
        Ok(())
    }

    /// Writes a block (header and payload) to places of its segment, durably. Who does not take it is out of service.
    /// Returns how many took it, and whether one that an import may find listed did not.
    fn send(
        &self,
        group: &Group,
        row: u32,
        (header, payload): ([u8; HEADER_BYTES], &[u8]),
        wanted: impl Fn(ZoneRef) -> bool,
    ) -> (usize, bool) {
        let rows = (HEADER_BYTES + payload.len()).div_ceil(BLOCK_SIZE);
        let mut buf = AlignedBuf::zeroed(rows * BLOCK_SIZE);
        buf[..HEADER_BYTES].copy_from_slice(&header);
        buf[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let slice = BufSlice::whole(Arc::new(buf));
        let mut batch = IoBatch::new();
        let mut owners = Vec::new();
        let mut lacking = false;
        let _io = group.io.read();
        for column in group.columns.read().iter() {
            for place in std::iter::once(column.place).chain(column.previous).filter(|place| wanted(*place)) {
                let Some(member) = self.space.member(place.device) else { continue };
                let Some(device) = member.device() else {
                    lacking |= member.is_listed();
                    continue;
                };
                let offset = self.space.offset(place, row);
                batch.push(&device, Request::Write { offset, slices: vec![slice.clone()], durable: true });
                owners.push(member);
            }
        }
        let mut written = 0;
        for (outcome, member) in batch.wait(WRITE_DEADLINE).into_iter().zip(owners) {
            let reason = match outcome {
                Outcome::Done(_) => {
                    written += 1;
                    continue;
                }
                Outcome::Failed(error) => format!("intent log write failed: {error}"),
                Outcome::TimedOut => "an intent log write was not answered in time".to_owned(),
            };
            lacking = true;
            member.count(&member.write_errors);
            member.fail(&reason);
        }
        (written, lacking)
    }

    /// Acknowledges nothing more before a commit: the columns change, and the durable root names those that were. (The
    /// commit of nothing new may leave that to the one after it.)
    pub fn pause_until_commit(&self) {
        let mut state = self.state.lock();
        state.dropped = state.dropped.max(state.appended + 1);
        self.changed.notify_all();
    }

    /// Starts anew behind everything ever written, as `generation` (after a replay or at import).
    pub fn restart(&self, generation: u64) {
        let mut state = self.state.lock();
        state.generation = generation;
        state.reclaimed = state.position;
        state.replayed.clear();
    }

    /// Gives the blocks replayed last to the columns that lack them. To be called before a commit in the middle of a replay
    /// makes effects of them durable: an import without the devices that have such a block would find a part of its effects
    /// under a log that ends before it. In order, so that what a device has stays the beginning of the log. Who does not take
    /// a block is out of service, which the same commit says.
    pub fn spread_replayed(&self) {
        let (blocks, generation, segments) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.replayed), state.generation, state.segments.clone())
        };
        let per_segment = segment_rows(&self.space);
        let mut reader = LogReader::new(&self.space, self.pool_id);
        for (position, sequence, block) in blocks {
            let group = &segments[((position / per_segment) % segments.len() as u64) as usize];
            let row = (position % per_segment) as u32;
            let places: Vec<ZoneRef> = group.columns.read().iter().map(|c| reader.source(c)).collect();
            let mut lacking = Vec::new();
            for (column, place) in places.into_iter().enumerate() {
                if reader.holds(group, column, row, generation, sequence) == Some(false) {
                    lacking.push(place);
                }
            }
            if !lacking.is_empty() {
                let (committed, payload) = &*block;
                let header = block::header(self.pool_id, generation, sequence, *committed, payload);
                self.send(group, row, (header, payload), |place| lacking.contains(&place));
            }
        }
    }

    /// Reads the log from its start, handing every valid entry's bytes out in order, and leaves the log positioned behind
    /// the last valid block. `root_txg` is the newest group that the caller has: a block that was written when a later one
    /// was durable ends the log. Devices have lost what they acknowledged, then, and the entries behind that build upon it.
    ///
    /// # Errors
    /// Those of `each`; `Io` when whether the log goes on cannot be known today; `Corrupt` for entries that do not parse although their block's checksum is right.
    pub fn replay(&self, root_txg: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<Replayed> {
        let mut blocks = 0;
        let mut reader = LogReader::new(&self.space, self.pool_id);
        loop {
            let (position, sequence, generation, segments) = {
                let s = self.state.lock();
                (s.position, s.sequence, s.generation, s.segments.clone())
            };
            if segments.is_empty() {
                return Ok(Replayed { blocks, missing: None });
            }
            let per_segment = segment_rows(&self.space);
            let here = reader.block(&segments, position, generation, sequence)?;
            let (position, (committed, payload)) = match here {
                Some(block) => (position, block),
                None => {
                    // the writer may have skipped to the next segment
                    let next = position.next_multiple_of(per_segment);
                    if next == position {
                        return Ok(Replayed { blocks, missing: None });
                    }
                    match reader.block(&segments, next, generation, sequence)? {
                        Some(block) => (next, block),
                        None => return Ok(Replayed { blocks, missing: None }),
                    }
                }
            };
            if committed > root_txg {
                return Ok(Replayed { blocks, missing: Some(committed) });
            }
            let rows = ((HEADER_BYTES + payload.len()).div_ceil(BLOCK_SIZE)) as u64;
            let block = Arc::new((committed, payload));
            {
                let mut state = self.state.lock();
                state.replayed.push_back((position, sequence, block.clone()));
                if state.replayed.len() > NOT_EVERYWHERE_MAX {
                    state.replayed.pop_front();
                }
            }
            for entry in block::entries(&block.1) {
                each(entry?)?;
            }
            let mut state = self.state.lock();
            state.position = position + rows;
            state.sequence = sequence + 1;
            blocks += 1;
        }
    }
}

/// Whether an error of [`IntentLog::wait`] means "commit instead".
pub fn is_full(error: &Error) -> bool {
    error.kind() == ErrorKind::NoSpace
}
