//! Reading records: the units that are needed, from the fewest devices, verified before a byte is returned.
//!
//! Pieces that lie side by side on a device are read in one request. What is missing or wrong goes to `recover`.

use std::sync::Arc;

use super::checksum::checksum;
use super::pointer::{Pointer, UNIT_BLOCKS};
use super::recover::{Trouble, Wanted};
use super::store::{READ_DEADLINE, RecordStore, UnitKey, WHOLE};
use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::device::{Device, IoBatch, Outcome, Request};
use crate::error::Result;
use crate::fail;
use crate::pool::format::entries::ColumnEntry;
use crate::pool::group::Group;
use crate::pool::member::Member;

/// Blocks of one record, and where they go.
pub struct ReadRequest<'a> {
    /// The record.
    pub pointer: &'a Pointer,
    /// First block of it.
    pub first_block: u16,
    /// Destination: whole blocks, within the record.
    pub out: &'a mut [u8],
}

/// A run of units of one column that is read from a device.
struct Piece {
    request: usize,
    group: Arc<Group>,
    column: u32,
    unit: u32,
    units: u32,
    member: Arc<Member>,
    device: Arc<dyn Device>,
    offset: u64,
    len: usize,
}

impl RecordStore {
    /// The member and device offset of a row of a column, if it can be read there.
    pub(crate) fn locate(
        &self,
        column: &ColumnEntry,
        row: u32,
        trust_stale: bool,
    ) -> Option<(Arc<Member>, Arc<dyn Device>, u64)> {
        let at = |place| {
            let member = self.space.member(place)?;
            let device = member.device()?;
            Some((member, device))
        };
        if (!column.stale || trust_stale)
            && let Some((member, device)) = at(column.place.device)
        {
            return Some((member, device, self.space.offset(column.place, row)));
        }
        let previous = column.previous?;
        let (member, device) = at(previous.device)?;
        Some((member, device, self.space.offset(previous, row)))
    }

    fn check_pointer(&self, pointer: &Pointer, group: &Group) -> Result<()> {
        if group.width != pointer.width
            || pointer.parity != group.parity
            || u64::from(pointer.row) + u64::from(pointer.rows()) > u64::from(group.zone_rows())
        {
            fail!(
                Corrupt,
                "a pointer to rows {}+{} of block group {} does not fit the group",
                pointer.row,
                pointer.rows(),
                pointer.group
            );
        }
        Ok(())
    }

    /// Reads parts of records. The caller holds a pin since before it looked the pointers up. What is read goes into the
    /// cache if it is at most `kept_bytes_max` bytes together.
    ///
    /// # Errors
    /// `Corrupt` when a record is damaged beyond repair, `Io` when too few devices have answered in time; nothing can be
    /// said of the destinations then.
    pub fn read(&self, requests: &mut [ReadRequest<'_>], kept_bytes_max: usize) -> Result<()> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut wanted: Vec<Wanted> = Vec::new();
        for (index, request) in requests.iter_mut().enumerate() {
            let pointer = request.pointer;
            let group = self.space.group(pointer.group)?;
            self.check_pointer(pointer, &group)?;
            let count = (request.out.len() / BLOCK_SIZE) as u32;
            let first = u32::from(request.first_block);
            assert!(request.out.len() % BLOCK_SIZE == 0 && first + count <= u32::from(pointer.blocks));
            let rows = pointer.rows();
            let from = first as usize * BLOCK_SIZE;
            if let Some(record) = self.kept(pointer)
                && let Some(bytes) = record.get(from..from + request.out.len())
            {
                request.out.copy_from_slice(bytes);
                continue;
            }
            let columns = group.columns.read();
            let mut block = first;
            while block < first + count {
                let column = block / rows;
                let (r0, r1) = (block % rows, (first + count - column * rows).min(rows));
                let mut unit = r0 / UNIT_BLOCKS;
                let end = r1.div_ceil(UNIT_BLOCKS);
                while unit < end {
                    if let Some(bytes) = self.cache.get(&unit_key(pointer, column, unit)) {
                        copy_out(request, column, unit, &bytes);
                        unit += 1;
                        continue;
                    }
                    let start = unit;
                    while unit < end && (unit == start || !self.cache.contains_key(&unit_key(pointer, column, unit))) {
                        unit += 1;
                    }
                    self.plan_piece(index, pointer, &group, &columns, column, start..unit, &mut pieces, &mut wanted);
                }
                block = (column + 1) * rows;
            }
        }
        if !pieces.is_empty() {
            let keep = requests.iter().map(|r| r.out.len()).sum::<usize>() <= kept_bytes_max;
            self.read_pieces(pieces, requests, keep, &mut wanted);
        }
        if wanted.is_empty() { Ok(()) } else { self.recover(wanted, requests) }
    }

    #[allow(clippy::too_many_arguments, reason = "one step of read, split out for its length")]
    fn plan_piece(
        &self,
        request: usize,
        pointer: &Pointer,
        group: &Arc<Group>,
        columns: &[ColumnEntry],
        column: u32,
        units: std::ops::Range<u32>,
        pieces: &mut Vec<Piece>,
        wanted: &mut Vec<Wanted>,
    ) {
        let row = pointer.row + units.start * UNIT_BLOCKS;
        let found = if pointer.width == 1 {
            // any copy will do: spread by place
            let n = columns.len() as u32;
            let turn = pointer.row / UNIT_BLOCKS;
            (0..n).map(|i| (turn + i) % n).find_map(|c| Some((c, self.locate(&columns[c as usize], row, false)?)))
        } else {
            self.locate(&columns[column as usize], row, false).map(|l| (column, l))
        };
        let Some((column, (member, device, offset))) = found else {
            wanted.extend(units.map(|unit| Wanted { request, column, unit, trouble: Trouble::Absent }));
            return;
        };
        let end = (units.end * UNIT_BLOCKS).min(pointer.rows());
        let len = (end - units.start * UNIT_BLOCKS) as usize * BLOCK_SIZE;
        pieces.push(Piece {
            request,
            group: group.clone(),
            column,
            unit: units.start,
            units: units.end - units.start,
            member,
            device,
            offset,
            len,
        });
    }

    fn read_pieces(
        &self,
        mut pieces: Vec<Piece>,
        requests: &mut [ReadRequest<'_>],
        keep: bool,
        wanted: &mut Vec<Wanted>,
    ) {
        pieces.sort_by_key(|p| (p.member.index, p.offset));
        let mut batch = IoBatch::new();
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        let mut at = 0;
        while at < pieces.len() {
            let start = at;
            let mut bufs = Vec::new();
            let mut end_offset = pieces[start].offset;
            while at < pieces.len()
                && pieces[at].member.index == pieces[start].member.index
                && pieces[at].offset == end_offset
                && bufs.len() < 512
            {
                bufs.push(AlignedBuf::spare(pieces[at].len));
                end_offset += pieces[at].len as u64;
                at += 1;
            }
            batch.push(&pieces[start].device, Request::Read { offset: pieces[start].offset, bufs });
            runs.push(start..at);
        }
        for (outcome, run) in batch.wait(READ_DEADLINE).into_iter().zip(runs) {
            if let Some(first) = pieces.get(run.start)
                && !matches!(outcome, Outcome::TimedOut)
            {
                first.member.answered();
            }
            match outcome {
                Outcome::Done(bufs) => {
                    for (piece, buf) in pieces[run].iter().zip(bufs) {
                        self.accept(piece, &buf, &mut requests[piece.request], keep, wanted);
                        buf.keep();
                    }
                }
                Outcome::Failed(error) => {
                    for piece in &pieces[run] {
                        piece.member.count(&piece.member.read_errors);
                        tracing::warn!(
                            device = %piece.member.path(),
                            offset = piece.offset,
                            object = %self.object_name(),
                            "read failed: {error}"
                        );
                        want_all(piece, Trouble::Bad, wanted);
                    }
                }
                Outcome::TimedOut => {
                    for piece in &pieces[run] {
                        piece.member.count(&piece.member.read_errors);
                        tracing::warn!(device = %piece.member.path(), offset = piece.offset, "read not answered in time");
                        want_all(piece, Trouble::Late, wanted);
                    }
                }
            }
        }
    }

    /// Verifies what a device returned and hands it out, unit by unit.
    fn accept(
        &self,
        piece: &Piece,
        buf: &AlignedBuf,
        request: &mut ReadRequest<'_>,
        keep: bool,
        wanted: &mut Vec<Wanted>,
    ) {
        let unit_bytes = UNIT_BLOCKS as usize * BLOCK_SIZE;
        for (i, bytes) in buf.chunks(unit_bytes).enumerate() {
            let unit = piece.unit + i as u32;
            if checksum(bytes) == request.pointer.checksum(piece.column, unit) {
                copy_out(request, piece.column, unit, bytes);
                if keep {
                    self.keep_unit(request.pointer, piece.column, unit, bytes);
                }
            } else {
                piece.member.count(&piece.member.checksum_errors);
                tracing::warn!(
                    device = %piece.member.path(),
                    offset = piece.offset + (i * unit_bytes) as u64,
                    group = piece.group.id,
                    object = %self.object_name(),
                    "checksum mismatch"
                );
                wanted.push(Wanted { request: piece.request, column: piece.column, unit, trouble: Trouble::Bad });
            }
        }
    }
}

fn want_all(piece: &Piece, trouble: Trouble, wanted: &mut Vec<Wanted>) {
    for unit in piece.unit..piece.unit + piece.units {
        wanted.push(Wanted { request: piece.request, column: piece.column, unit, trouble });
    }
}

pub(crate) fn record_key(pointer: &Pointer) -> UnitKey {
    UnitKey { group: pointer.group, row: pointer.row, column: WHOLE, birth: pointer.birth }
}

pub(crate) fn unit_key(pointer: &Pointer, column: u32, unit: u32) -> UnitKey {
    let column = if pointer.width == 1 { 0 } else { column as u8 };
    UnitKey { group: pointer.group, row: pointer.row + unit * UNIT_BLOCKS, column, birth: pointer.birth }
}

/// Copies the part of a unit that a request asks for.
pub(crate) fn copy_out(request: &mut ReadRequest<'_>, column: u32, unit: u32, bytes: &[u8]) {
    let column = if request.pointer.width == 1 { 0 } else { column };
    let base = column * request.pointer.rows() + unit * UNIT_BLOCKS;
    let first = u32::from(request.first_block);
    let last = first + (request.out.len() / BLOCK_SIZE) as u32;
    let from = base.max(first);
    let to = (base + (bytes.len() / BLOCK_SIZE) as u32).min(last);
    if from >= to {
        return;
    }
    let source = (from - base) as usize * BLOCK_SIZE..(to - base) as usize * BLOCK_SIZE;
    let target = (from - first) as usize * BLOCK_SIZE..(to - first) as usize * BLOCK_SIZE;
    request.out[target].copy_from_slice(&bytes[source]);
}
