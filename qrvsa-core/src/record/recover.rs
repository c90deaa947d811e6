//! Recovery: units that a device did not return, or returned wrong, are decoded from the other columns, checked, handed
//! out, and written back where the device is in service and answers. Where the other columns are not enough, devices that have only
//! not answered in time are asked again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::checksum::checksum;
use super::erasure::Codec;
use super::pointer::{Pointer, UNIT_BLOCKS};
use super::reader::{ReadRequest, copy_out, unit_key};
use super::store::{LAST_READ_DEADLINE, READ_DEADLINE, RecordStore, WRITE_DEADLINE};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::device::{IoBatch, Outcome, Request};
use crate::error::{ErrorKind, Result};
use crate::fail;
use crate::pool::group::Group;
use crate::pool::member::Member;

/// Why a unit was not returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// There is no device to ask.
    Absent,
    /// It was wrong, or the device reported an error; it is to be rewritten.
    Bad,
    /// The device has not answered in time. A scrub rewrites it, too, unless it answers later; a read does not.
    Late,
}

/// Columns of a unit, and what is the matter with each.
type Columns = Vec<(u32, Trouble)>;

/// A unit of a data column that must be had another way.
pub(crate) struct Wanted {
    /// Index of the request it belongs to.
    pub request: usize,
    /// The column.
    pub column: u32,
    /// The unit of the column.
    pub unit: u32,
    /// What is the matter with it.
    pub trouble: Trouble,
}

/// What is known of one unit over all columns of a record.
struct UnitState {
    good: Vec<Option<AlignedBuf>>,
    /// Columns to be rewritten.
    bad: Vec<u32>,
    /// Of those, the ones that may be right and have not answered.
    late: Vec<u32>,
    tried: Vec<bool>,
}

impl UnitState {
    /// Of a record with so many columns, of which nothing is known.
    fn new(columns: usize) -> UnitState {
        let good = std::iter::repeat_with(|| None).take(columns).collect();
        UnitState { good, bad: Vec::new(), late: Vec::new(), tried: vec![false; columns] }
    }

    /// A column has been asked for.
    fn has(&mut self, column: u32, trouble: Trouble) {
        if trouble != Trouble::Absent {
            self.tried[column as usize] = true;
            self.bad.push(column);
        }
        if trouble == Trouble::Late {
            self.late.push(column);
        }
    }

    /// A column is there after all.
    fn came(&mut self, column: u32, bytes: AlignedBuf) {
        self.bad.retain(|c| *c != column);
        self.late.retain(|c| *c != column);
        self.good[column as usize] = Some(bytes);
    }

    /// How many columns are there.
    fn have(&self) -> usize {
        self.good.iter().filter(|g| g.is_some()).count()
    }
}

/// What verifying a whole record found.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Units that were wrong or unreadable.
    pub errors: u64,
    /// Of those, rewritten.
    pub repaired: u64,
    /// Units that cannot be had any more.
    pub lost: u64,
    /// Units that cannot be had now, since too few devices have answered in time: nothing is known of them.
    pub unanswered: u64,
    /// Bytes read from devices.
    pub bytes: u64,
}

impl RecordStore {
    fn unit_blocks(pointer: &Pointer, unit: u32) -> u32 {
        (pointer.rows() - unit * UNIT_BLOCKS).min(UNIT_BLOCKS)
    }

    /// Decodes the wanted units.
    pub(crate) fn recover(&self, wanted: Vec<Wanted>, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        // several wanted columns of the same unit are decoded together
        let mut units: Vec<(usize, u32, Columns)> = Vec::new();
        for w in wanted {
            match units.iter_mut().find(|u| u.0 == w.request && u.1 == w.unit) {
                Some(unit) => unit.2.push((w.column, w.trouble)),
                None => units.push((w.request, w.unit, vec![(w.column, w.trouble)])),
            }
        }
        let mut failed = None;
        for chunk in units.chunks(64) {
            let mut states: Vec<(Arc<Group>, UnitState)> = Vec::new();
            for (request, _, columns) in chunk {
                let group = self.space.group(requests[*request].pointer.group)?;
                let mut state = UnitState::new(group.column_count() as usize);
                columns.iter().for_each(|(column, trouble)| state.has(*column, *trouble));
                states.push((group, state));
            }
            let items: Vec<(&Pointer, u32)> = chunk.iter().map(|(r, u, _)| (requests[*r].pointer, *u)).collect();
            self.gather(&items, &mut states);
            for ((request, unit, columns), (group, state)) in chunk.iter().zip(&mut states) {
                let pointer = requests[*request].pointer;
                let mut want: Vec<u32> = columns.iter().map(|(column, _)| *column).collect();
                want.extend(&state.bad);
                if let Err(e) = self.restore(pointer, *unit, group, state, &want) {
                    tracing::error!(object = %self.object_name(), "{e}");
                    if e.kind() != ErrorKind::Io {
                        self.report_damage(pointer);
                    }
                    if failed != Some(ErrorKind::Io) {
                        failed = Some(e.kind());
                    }
                    continue;
                }
                for (column, _) in columns {
                    let bytes = state.good[*column as usize].as_ref().expect("restored");
                    copy_out(&mut requests[*request], *column, *unit, bytes);
                }
                // who is asleep would keep the reader waiting for the write, too
                let late = std::mem::take(&mut state.late);
                state.bad.retain(|column| !late.contains(column));
                self.heal(requests[*request].pointer, *unit, group, state);
            }
        }
        match failed {
            None => Ok(()),
            Some(ErrorKind::Io) => fail!(Io, "more devices have not answered in time than parity covers"),
            Some(_) => fail!(Corrupt, "more columns of a record are damaged than its parity covers"),
        }
    }

    /// Reads columns of units until each has as many good ones as it needs, or nothing is left to try.
    fn gather(&self, items: &[(&Pointer, u32)], states: &mut [(Arc<Group>, UnitState)]) {
        self.gather_once(items, states);
        self.ask_again(items, states);
    }

    /// Gives columns that have not answered in time another chance, where they are needed.
    fn ask_again(&self, items: &[(&Pointer, u32)], states: &mut [(Arc<Group>, UnitState)]) {
        let mut batch = IoBatch::new();
        let mut owners: Vec<(usize, u32, Arc<Member>)> = Vec::new();
        for (i, ((pointer, unit), (group, state))) in items.iter().zip(states.iter_mut()).enumerate() {
            if state.have() >= usize::from(pointer.width) {
                continue;
            }
            let columns = group.columns.read();
            let row = pointer.row + unit * UNIT_BLOCKS;
            let len = Self::unit_blocks(pointer, *unit) as usize * BLOCK_SIZE;
            for column in &state.late {
                if let Some((member, device, offset)) = self.locate(&columns[*column as usize], row, false)
                    && !member.is_silent()
                {
                    batch.push(&device, Request::Read { offset, bufs: vec![AlignedBuf::zeroed(len)] });
                    owners.push((i, *column, member));
                }
            }
        }
        if owners.is_empty() {
            return;
        }
        tracing::warn!("too few devices have answered in time; those that have not are asked again");
        for (outcome, (i, column, member)) in batch.wait(LAST_READ_DEADLINE).into_iter().zip(owners) {
            let (pointer, unit) = items[i];
            let state = &mut states[i].1;
            match outcome {
                Outcome::Done(mut bufs) => {
                    member.answered();
                    let buf = bufs.pop().expect("one buffer was given");
                    if checksum(&buf) == pointer.checksum(column, unit) {
                        state.came(column, buf);
                        continue;
                    }
                    state.late.retain(|c| *c != column);
                    member.count(&member.checksum_errors);
                    tracing::warn!(device = %member.path(), group = pointer.group, row = pointer.row, column, object = %self.object_name(), "checksum mismatch");
                }
                Outcome::Failed(error) => {
                    member.answered();
                    state.late.retain(|c| *c != column);
                    member.count(&member.read_errors);
                    tracing::warn!(device = %member.path(), "read failed: {error}");
                }
                Outcome::TimedOut => {
                    member.did_not_answer();
                    member.count(&member.read_errors);
                    tracing::warn!(device = %member.path(), "read not answered in time, again");
                }
            }
        }
    }

    /// Reads columns of units, each of them once, until each unit has as many good ones as it needs.
    fn gather_once(&self, items: &[(&Pointer, u32)], states: &mut [(Arc<Group>, UnitState)]) {
        for trust_stale in [false, true] {
            loop {
                let mut batch = IoBatch::new();
                let mut owners: Vec<(usize, u32, Arc<Member>)> = Vec::new();
                for (i, ((pointer, unit), (group, state))) in items.iter().zip(states.iter_mut()).enumerate() {
                    let need = usize::from(pointer.width);
                    let mut missing = need.saturating_sub(state.have());
                    let columns = group.columns.read();
                    for column in 0..pointer.columns() {
                        if missing == 0 {
                            break;
                        }
                        if state.tried[column as usize] {
                            continue;
                        }
                        let row = pointer.row + unit * UNIT_BLOCKS;
                        let Some((member, device, offset)) = self.locate(&columns[column as usize], row, trust_stale)
                        else {
                            continue;
                        };
                        let len = Self::unit_blocks(pointer, *unit) as usize * BLOCK_SIZE;
                        batch.push(&device, Request::Read { offset, bufs: vec![AlignedBuf::zeroed(len)] });
                        owners.push((i, column, member));
                        state.tried[column as usize] = true;
                        missing -= 1;
                    }
                }
                if owners.is_empty() {
                    break;
                }
                for (outcome, (i, column, member)) in batch.wait(READ_DEADLINE).into_iter().zip(owners) {
                    let (pointer, unit) = items[i];
                    let state = &mut states[i].1;
                    if !matches!(outcome, Outcome::TimedOut) {
                        member.answered();
                    }
                    let trouble = match outcome {
                        Outcome::Done(mut bufs) => {
                            let buf = bufs.pop().expect("one buffer was given");
                            if checksum(&buf) == pointer.checksum(column, unit) {
                                state.good[column as usize] = Some(buf);
                                continue;
                            }
                            // a stale column is expected to be wrong
                            if !trust_stale {
                                member.count(&member.checksum_errors);
                                tracing::warn!(device = %member.path(), group = pointer.group, row = pointer.row, column, object = %self.object_name(), "checksum mismatch");
                            }
                            Trouble::Bad
                        }
                        Outcome::Failed(error) => {
                            member.count(&member.read_errors);
                            tracing::warn!(device = %member.path(), "read failed: {error}");
                            Trouble::Bad
                        }
                        Outcome::TimedOut => {
                            member.count(&member.read_errors);
                            Trouble::Late
                        }
                    };
                    if !trust_stale {
                        state.has(column, trouble);
                    }
                }
            }
        }
    }

    /// Computes the columns of the unit that are wanted and not there from those that are.
    ///
    /// # Errors
    /// `Corrupt`: too few are good. `Io`: too few have answered in time, with those that have not it may be there.
    fn restore(&self, pointer: &Pointer, unit: u32, group: &Group, state: &mut UnitState, want: &[u32]) -> Result<()> {
        let len = Self::unit_blocks(pointer, unit) as usize * BLOCK_SIZE;
        let width = usize::from(pointer.width);
        let have = state.have();
        if have < width && have + state.late.len() >= width {
            fail!(
                Io,
                "rows {}+{} of block group {}: only {have} of the {width} columns needed have been answered for in time",
                pointer.row + unit * UNIT_BLOCKS,
                Self::unit_blocks(pointer, unit),
                group.id
            );
        }
        if have < width {
            fail!(
                Corrupt,
                "rows {}+{} of block group {}: only {have} of the {width} columns needed are good",
                pointer.row + unit * UNIT_BLOCKS,
                Self::unit_blocks(pointer, unit),
                group.id
            );
        }
        let want: Vec<usize> =
            (0..state.good.len()).filter(|c| state.good[*c].is_none() && want.contains(&(*c as u32))).collect();
        let mut outs: Vec<AlignedBuf> = want.iter().map(|_| AlignedBuf::zeroed(len)).collect();
        {
            let present: Vec<(u8, &[u8])> =
                state.good.iter().enumerate().filter_map(|(c, g)| Some((c as u8, g.as_deref()?))).take(width).collect();
            let mut slots: Vec<(u8, &mut [u8])> =
                want.iter().zip(&mut outs).map(|(c, o)| (*c as u8, &mut **o)).collect();
            Codec::get(pointer.width, pointer.parity).reconstruct(&present, &mut slots)?;
        }
        for (column, out) in want.into_iter().zip(outs) {
            if checksum(&out) != pointer.checksum(column as u32, unit) {
                fail!(Corrupt, "block group {}: a decoded column does not match its checksum", group.id);
            }
            state.good[column] = Some(out);
        }
        Ok(())
    }

    /// Rewrites the columns that were wrong. Returns how many are right again.
    fn heal(&self, pointer: &Pointer, unit: u32, group: &Group, state: &mut UnitState) -> u64 {
        state.bad.sort_unstable();
        state.bad.dedup();
        let mut batch = IoBatch::new();
        let mut owners = Vec::new();
        let io = group.io.read();
        let columns = group.columns.read().clone();
        for column in &state.bad {
            let Some(bytes) = state.good[*column as usize].take() else { continue };
            let slice = BufSlice::whole(Arc::new(bytes));
            let entry = &columns[*column as usize];
            // a column that is being moved is read at its previous place, and copied from there
            for place in std::iter::once(entry.place).chain(entry.previous) {
                let Some(member) = self.space.member(place.device) else { continue };
                let Some(device) = member.device() else { continue };
                let offset = self.space.offset(place, pointer.row + unit * UNIT_BLOCKS);
                batch.push(&device, Request::Write { offset, slices: vec![slice.clone()], durable: true });
                owners.push((member, offset, *column));
            }
        }
        let outcomes = batch.wait(WRITE_DEADLINE);
        // naming the object for the log may read, and heal, in this very group
        drop(io);
        let mut healed = BTreeSet::new();
        for (outcome, (member, offset, column)) in outcomes.into_iter().zip(owners) {
            match outcome {
                Outcome::Done(_) => {
                    member.count(&member.repaired);
                    self.cache.remove(&unit_key(pointer, column, unit));
                    healed.insert(column);
                    tracing::info!(device = %member.path(), offset, object = %self.object_name(), "repaired");
                }
                Outcome::Failed(error) => {
                    member.count(&member.write_errors);
                    member.fail(&format!("a repair could not be written: {error}"));
                }
                Outcome::TimedOut => {
                    member.count(&member.write_errors);
                    member.fail("a repair was not answered in time");
                }
            }
        }
        healed.len() as u64
    }

    /// Reads every column of a record, verifies it, and repairs what is wrong if asked to. The caller holds a pin.
    ///
    /// # Errors
    /// When the pointer itself makes no sense.
    pub fn verify(&self, pointer: &Pointer, repair: bool) -> Result<Verdict> {
        let group = self.space.group(pointer.group)?;
        let n = pointer.columns() as usize;
        if group.column_count() as usize != n {
            fail!(Corrupt, "a pointer does not fit block group {}", group.id);
        }
        let mut verdict = Verdict::default();
        let columns = group.columns.read().clone();
        let len = pointer.rows() as usize * BLOCK_SIZE;
        let units = pointer.units_per_column();
        let mut wrong: Vec<Columns> = vec![Vec::new(); units as usize];
        let mut ask: Vec<u32> = (0..pointer.columns()).collect();
        for deadline in [READ_DEADLINE, LAST_READ_DEADLINE] {
            let mut batch = IoBatch::new();
            let mut owners = Vec::new();
            for c in std::mem::take(&mut ask) {
                if let Some((member, device, offset)) = self.locate(&columns[c as usize], pointer.row, false) {
                    batch.push(&device, Request::Read { offset, bufs: vec![AlignedBuf::zeroed(len)] });
                    owners.push((c, member));
                }
            }
            for (outcome, (c, member)) in batch.wait(deadline).into_iter().zip(owners) {
                if !matches!(outcome, Outcome::TimedOut) {
                    member.answered();
                }
                match outcome {
                    Outcome::Done(bufs) => {
                        verdict.bytes += len as u64;
                        for (unit, bytes) in bufs[0].chunks(UNIT_BLOCKS as usize * BLOCK_SIZE).enumerate() {
                            if checksum(bytes) != pointer.checksum(c, unit as u32) {
                                member.count(&member.checksum_errors);
                                tracing::warn!(device = %member.path(), group = group.id, row = pointer.row, column = c, object = %self.object_name(), "scrub: checksum mismatch");
                                wrong[unit].push((c, Trouble::Bad));
                            }
                        }
                    }
                    Outcome::Failed(error) => {
                        member.count(&member.read_errors);
                        tracing::warn!(device = %member.path(), "scrub: read failed: {error}");
                        wrong.iter_mut().for_each(|w| w.push((c, Trouble::Bad)));
                    }
                    // a disk that wakes up is not wrong
                    Outcome::TimedOut if deadline < LAST_READ_DEADLINE && !member.is_silent() => ask.push(c),
                    Outcome::TimedOut => {
                        member.did_not_answer();
                        member.count(&member.read_errors);
                        tracing::warn!(device = %member.path(), "scrub: read not answered in time");
                        wrong.iter_mut().for_each(|w| w.push((c, Trouble::Late)));
                    }
                }
            }
        }
        for (unit, bad) in wrong.into_iter().enumerate() {
            let unit = unit as u32;
            if bad.is_empty() {
                continue;
            }
            verdict.errors += bad.len() as u64;
            let mut state = UnitState::new(n);
            bad.iter().for_each(|(column, trouble)| state.has(*column, *trouble));
            let mut states = [(group.clone(), state)];
            self.gather(&[(pointer, unit)], &mut states);
            let state = &mut states[0].1;
            let want = state.bad.clone();
            match self.restore(pointer, unit, &group, state, &want) {
                Ok(()) if repair => verdict.repaired += self.heal(pointer, unit, &group, state),
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Io => {
                    verdict.unanswered += 1;
                    tracing::error!(object = %self.object_name(), "{e}");
                }
                Err(e) => {
                    verdict.lost += 1;
                    self.report_damage(pointer);
                    tracing::error!(object = %self.object_name(), "{e}");
                }
            }
        }
        Ok(verdict)
    }
}
