//! Reading blocks of the intent log back: from the first column that has one, with those last that kept others waiting.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::device::{IoBatch, Outcome, Request};
use crate::error::Result;
use crate::fail;
use crate::pool::format::entries::{ColumnEntry, ZoneRef};
use crate::pool::group::Group;
use crate::pool::member::Member;
use crate::pool::space::Space;
use crate::record::store::{LAST_READ_DEADLINE, READ_DEADLINE};
use crate::txg::block::{self, BLOCK_ROWS_MAX, HEADER_BYTES};
use crate::txg::log::segment_rows;

/// Rows read ahead where nothing was read before: most logs are short.
const FIRST_ROWS: u32 = 32;
/// Rows read ahead after that.
const CHUNK_ROWS: u32 = 512;

/// The group that was durable when a block was written, and the block's payload.
pub(super) type Block = (u64, Vec<u8>);

/// Rows of a column of the log.
enum Rows {
    /// What they hold.
    Bytes(Vec<u8>),
    /// The device reported an error.
    Failed,
    /// The device did not answer in time.
    Late,
    /// The device is not there, or there are no such rows.
    Absent,
}

/// What a column has where a block may be.
enum Found {
    /// The block.
    Block(Block),
    /// Something else.
    Other,
    /// See [`Rows`].
    Failed,
    /// See [`Rows`].
    Late,
    /// See [`Rows`].
    Absent,
}

/// Reads the log of a pool once, forwards.
pub(super) struct LogReader<'a> {
    space: &'a Space,
    pool_id: u128,
    /// What was read ahead, by group and column: its first row and the bytes.
    chunks: HashMap<(u32, usize), (u32, AlignedBuf)>,
    /// Devices that have not answered in time.
    late: BTreeSet<u16>,
}

impl<'a> LogReader<'a> {
    /// Nothing is read yet.
    pub fn new(space: &'a Space, pool_id: u128) -> LogReader<'a> {
        LogReader { space, pool_id, chunks: HashMap::new(), late: BTreeSet::new() }
    }

    /// The block at a position, from the first column where it is valid; `None` when a column that can be read shows that
    /// there is none: each column of a device that the pool uses has all that was acknowledged. Columns that are late get
    /// much time before the log is said to end.
    ///
    /// # Errors
    /// `Io` when no column can be read: whether the log ends here is not known then, and what was acknowledged must not
    /// be dropped for a device that is slow today.
    pub fn block(
        &mut self,
        segments: &[Arc<Group>],
        position: u64,
        generation: u64,
        sequence: u64,
    ) -> Result<Option<Block>> {
        let per_segment = segment_rows(self.space);
        let group = &segments[((position / per_segment) % segments.len() as u64) as usize];
        let row = (position % per_segment) as u32;
        let owners: Vec<Option<Arc<Member>>> =
            group.columns.read().iter().map(|c| self.space.member(self.source(c).device)).collect();
        let (mut readable, mut troubles, mut waiting) = (false, Vec::new(), Vec::new());
        for (column, member) in owners.iter().enumerate() {
            let Some(member) = member else { continue };
            if self.late.contains(&member.index) {
                waiting.push((column, member));
                continue;
            }
            match self.look(group, column, row, generation, sequence, READ_DEADLINE) {
                Found::Block(block) => return Ok(Some(block)),
                Found::Other => readable = true,
                Found::Failed => troubles.push(format!("{} failed", member.path())),
                Found::Late => {
                    member.count(&member.read_errors);
                    self.late.insert(member.index);
                    waiting.push((column, member));
                }
                Found::Absent => {}
            }
        }
        for (column, member) in waiting {
            // it has been waited for already
            if member.is_silent() {
                troubles.push(format!("{} has not answered", member.path()));
                continue;
            }
            tracing::warn!(device = %member.path(), "the intent log was not answered for in time; asked again");
            let found = self.look(group, column, row, generation, sequence, LAST_READ_DEADLINE);
            if !matches!(found, Found::Late) {
                self.late.remove(&member.index);
                member.answered();
            }
            match found {
                Found::Block(block) => return Ok(Some(block)),
                Found::Other => readable = true,
                Found::Failed => troubles.push(format!("{} failed", member.path())),
                Found::Late => {
                    member.did_not_answer();
                    troubles.push(format!("{} has not answered", member.path()));
                }
                Found::Absent => {}
            }
        }
        if troubles.is_empty() && readable {
            return Ok(None);
        }
        if troubles.is_empty() {
            troubles.push("none of its devices is there".to_owned());
        }
        let troubles = troubles.join(", ");
        if !readable {
            fail!(
                Io,
                "the intent log cannot be read: {troubles}; what it has is not given up: import again when one of them answers"
            );
        }
        tracing::warn!("the end of the intent log is where the other devices have it: {troubles}");
        Ok(None)
    }

    /// Where a column is read: at its place, or at its previous one if the device of that is not there any more. While a
    /// column has both, the log is written to both.
    pub fn source(&self, column: &ColumnEntry) -> ZoneRef {
        let is_there = |place: &ZoneRef| self.space.member(place.device).is_some_and(|m| m.device().is_some());
        if is_there(&column.place) { column.place } else { column.previous.filter(is_there).unwrap_or(column.place) }
    }

    /// Whether a column has a block where others have it, as far as can be told; `None`: its device is not there.
    pub fn holds(&mut self, group: &Group, column: usize, row: u32, generation: u64, sequence: u64) -> Option<bool> {
        match self.look(group, column, row, generation, sequence, READ_DEADLINE) {
            Found::Block(_) => Some(true),
            Found::Other | Found::Failed | Found::Late => Some(false),
            Found::Absent => None,
        }
    }

    fn look(
        &mut self,
        group: &Group,
        column: usize,
        row: u32,
        generation: u64,
        sequence: u64,
        deadline: Duration,
    ) -> Found {
        let first = match self.read(group, column, row, 1, deadline) {
            Rows::Bytes(bytes) => bytes,
            Rows::Failed => return Found::Failed,
            Rows::Late => return Found::Late,
            Rows::Absent => return Found::Absent,
        };
        let header = block::parse_header(&first, self.pool_id, generation, sequence);
        let Some(block::Header { len, sum, committed }) = header else { return Found::Other };
        let rows = (HEADER_BYTES + len).div_ceil(BLOCK_SIZE) as u32;
        if u64::from(rows) > BLOCK_ROWS_MAX || row + rows > group.zone_rows() {
            return Found::Other;
        }
        match self.read(group, column, row, rows, deadline) {
            Rows::Bytes(block) => {
                let payload = &block[HEADER_BYTES..HEADER_BYTES + len];
                if block::sum(&block[..HEADER_BYTES], payload) == sum {
                    Found::Block((committed, payload.to_vec()))
                } else {
                    Found::Other
                }
            }
            Rows::Failed => Found::Failed,
            Rows::Late => Found::Late,
            Rows::Absent => Found::Absent,
        }
    }

    fn read(&mut self, group: &Group, column: usize, row: u32, rows: u32, deadline: Duration) -> Rows {
        let zone_rows = group.zone_rows();
        if row + rows > zone_rows {
            return Rows::Absent;
        }
        let place = self.source(&group.columns.read()[column]);
        let Some(device) = self.space.member(place.device).and_then(|m| m.device()) else { return Rows::Absent };
        let offset = self.space.offset(place, row);
        let fetch = |count: u32| {
            let mut batch = IoBatch::new();
            batch.push(&device, Request::Read { offset, bufs: vec![AlignedBuf::spare(count as usize * BLOCK_SIZE)] });
            batch.wait(deadline).pop().unwrap_or(Outcome::TimedOut)
        };
        let key = (group.id, column);
        let hit = self
            .chunks
            .get(&key)
            .is_some_and(|(first, buf)| *first <= row && row + rows <= first + (buf.len() / BLOCK_SIZE) as u32);
        if !hit {
            self.chunks.retain(|(id, _), _| *id == group.id);
            let ahead = if self.chunks.remove(&key).is_some() { CHUNK_ROWS } else { FIRST_ROWS };
            match fetch(ahead.max(rows).min(zone_rows - row)) {
                Outcome::Done(mut bufs) => {
                    self.chunks.insert(key, (row, bufs.pop().expect("one buffer was given")));
                }
                Outcome::TimedOut => return Rows::Late,
                // somewhere in the long read is a bad sector: just what is needed may be fine
                Outcome::Failed(_) => {
                    return match fetch(rows) {
                        Outcome::Done(mut bufs) => Rows::Bytes(bufs.pop().expect("one buffer was given").to_vec()),
                        Outcome::TimedOut => Rows::Late,
                        Outcome::Failed(_) => Rows::Failed,
                    };
                }
            }
        }
        let (first, buf) = &self.chunks[&key];
        let start = (row - first) as usize * BLOCK_SIZE;
        Rows::Bytes(buf[start..start + rows as usize * BLOCK_SIZE].to_vec())
    }
}
