//! EXTENDED COPY (SPC-4 6.3, 6.4): block to block segments between units named by designators.

use std::sync::Arc;

use super::engine::{self, Side};
use super::results::{Kind, Report};
use super::{COPY_BYTES_MAX, CSCD_MAX, DESCRIPTOR_BYTES_MAX, SEGMENTS_MAX};
use crate::scsi::bytes::{be16, be32, be64, byte};
use crate::scsi::call::{Call, Outcome, Refusal};
use crate::scsi::sense::Sense;
use crate::scsi::unit::Unit;

const COPY_ABORTED: Sense = Sense::new(0x0a, 0x00, 0x00);
const UNREACHABLE: Sense = Sense::new(0x0a, 0x08, 0x04);
const NOT_REACHABLE_DEVICE: Sense = Sense::new(0x0a, 0x0d, 0x02);

/// Where the parts of a parameter list are.
struct Layout<'a> {
    list_id: u32,
    keep: bool,
    cscds: &'a [u8],
    segments: &'a [u8],
    /// Offset of the first descriptor.
    at: usize,
}

pub(crate) fn extended_copy_lid1(call: &Call) -> Outcome {
    let list = parameter_list(call)?;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < 16 {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    let cscds = usize::from(be16(list, 2));
    let segments = usize::try_from(be32(list, 8)).unwrap_or(usize::MAX);
    let inline = usize::try_from(be32(list, 12)).unwrap_or(usize::MAX);
    let usage = byte(list, 1) >> 3 & 3;
    let id = u32::from(byte(list, 0));
    run(call, Kind::Short, layout(list, 16, cscds, segments, inline, id, usage)?)
}

pub(crate) fn extended_copy_lid4(call: &Call) -> Outcome {
    let list = parameter_list(call)?;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < 48 {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    if byte(list, 0) != 1 {
        return Err(Sense::parameter_field(0).into());
    }
    if byte(list, 16) != 0xff || be16(list, 2) != 0x20 {
        return Err(Sense::parameter_field(2).into());
    }
    let (cscds, segments, inline) = (be16(list, 42), be16(list, 44), be16(list, 46));
    let usage = byte(list, 1) >> 3 & 3;
    let layout = layout(list, 48, cscds.into(), segments.into(), inline.into(), be32(list, 20), usage)?;
    run(call, Kind::Long, layout)
}

fn parameter_list<'a>(call: &Call<'a>) -> Result<&'a [u8], Refusal> {
    let length = usize::try_from(be32(call.cdb, 10)).unwrap_or(usize::MAX);
    call.data.get(..length).ok_or_else(|| Sense::PARAMETER_LENGTH.into())
}

fn layout(
    list: &[u8],
    header: usize,
    cscds: usize,
    segments: usize,
    inline: usize,
    list_id: u32,
    usage: u8,
) -> Result<Layout<'_>, Refusal> {
    let descriptors = cscds.saturating_add(segments);
    if header.saturating_add(descriptors).saturating_add(inline) != list.len() {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    if descriptors > usize::try_from(DESCRIPTOR_BYTES_MAX).unwrap_or(0) {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    if inline > 0 {
        // INLINE DATA LENGTH EXCEEDED
        return Err(Sense::new(5, 0x26, 0x0b).into());
    }
    if usage == 1 {
        return Err(Sense::parameter_field(1).into());
    }
    Ok(Layout {
        list_id,
        keep: usage != 3,
        cscds: list.get(header..header + cscds).unwrap_or_default(),
        segments: list.get(header + cscds..header + descriptors).unwrap_or_default(),
        at: header,
    })
}

fn run(call: &Call, kind: Kind, layout: Layout<'_>) -> Outcome {
    if !layout.cscds.len().is_multiple_of(32) {
        return Err(Sense::parameter_field(2).into());
    }
    if layout.cscds.len() / 32 > usize::from(CSCD_MAX) {
        return Err(Sense::new(5, 0x26, 0x06).into());
    }
    let mut units = Vec::new();
    for descriptor in layout.cscds.chunks_exact(32) {
        units.push(find_unit(call, descriptor)?);
    }
    let segments = parse_segments(&layout)?;
    let mut report = Report { kind, list_id: layout.list_id, service: call.cdb[1] & 0x1f, ..Report::default() };
    let mut result = Ok(());
    for segment in &segments {
        result = copy_segment(call, &units, segment).map(|bytes| report.bytes += bytes);
        if result.is_err() {
            break;
        }
        report.segments += 1;
    }
    // what was aborted says how far it came
    let done = u32::from(report.segments);
    let result = result.map_err(|refusal| match refusal {
        Refusal::Sense(sense) if sense.key == 0x0a => Refusal::Sense(Sense { command: Some(done), ..sense }),
        Refusal::Sense(sense) => Refusal::Sense(Sense { key: 0x0a, command: Some(done), ..sense }),
        other => other,
    });
    report.failure = match &result {
        Err(Refusal::Sense(sense)) => Some(*sense),
        Err(_) => Some(COPY_ABORTED),
        Ok(()) => None,
    };
    if layout.keep {
        call.units.copy_results().put(call.nexus.tsih, report);
    }
    result.map(|()| Vec::new())
}

/// The unit that a descriptor of type E4h names; `None`: none that is known here. LU ID TYPE and NUL are obsolete.
fn find_unit(call: &Call, descriptor: &[u8]) -> Result<Option<Arc<Unit>>, Refusal> {
    if byte(descriptor, 0) != 0xe4 {
        // UNSUPPORTED TARGET DESCRIPTOR TYPE CODE
        return Err(Sense::new(5, 0x26, 0x07).into());
    }
    let kind = byte(descriptor, 5) & 0x0f;
    let length = usize::from(byte(descriptor, 7)).min(20);
    let designator = descriptor.get(8..8 + length).unwrap_or_default();
    Ok(call.units.all_units().values().find(|unit| names(unit, kind, designator)).cloned())
}

fn names(unit: &Unit, kind: u8, designator: &[u8]) -> bool {
    let shape = unit.shape();
    if !shape.is_disk() || designator.is_empty() {
        return false;
    }
    match kind {
        3 => designator == shape.ident.naa,
        1 => {
            let mut own = Vec::new();
            crate::scsi::bytes::put_ascii(&mut own, &shape.config.vendor, 8);
            own.extend(shape.ident.vendor_specific.as_bytes());
            own.truncate(20);
            designator == own
        }
        _ => false,
    }
}

struct Segment {
    from: usize,
    to: usize,
    blocks: u16,
    of_destination: bool,
    lba: u64,
    to_lba: u64,
}

fn parse_segments(layout: &Layout<'_>) -> Result<Vec<Segment>, Refusal> {
    let mut segments = Vec::new();
    let mut rest = layout.segments;
    while !rest.is_empty() {
        let at = layout.at + layout.cscds.len() + layout.segments.len() - rest.len();
        if byte(rest, 0) != 0x02 {
            // UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE
            return Err(Sense::new(5, 0x26, 0x09).into());
        }
        if be16(rest, 2) != 0x18 || rest.len() < 28 {
            return Err(Sense::parameter_field(at + 2).into());
        }
        if segments.len() == usize::from(SEGMENTS_MAX) {
            return Err(Sense::new(5, 0x26, 0x08).into());
        }
        segments.push(Segment {
            from: be16(rest, 4).into(),
            to: be16(rest, 6).into(),
            blocks: be16(rest, 10),
            of_destination: byte(rest, 1) & 2 != 0,
            lba: be64(rest, 12),
            to_lba: be64(rest, 20),
        });
        rest = rest.get(28..).unwrap_or_default();
    }
    Ok(segments)
}

/// Copies one segment; answers the bytes.
fn copy_segment(call: &Call, units: &[Option<Arc<Unit>>], segment: &Segment) -> Result<u64, Refusal> {
    let side = |index: usize| match units.get(index) {
        Some(Some(unit)) => Ok(Side::new(unit)),
        Some(None) => Err(NOT_REACHABLE_DEVICE),
        None => Err(UNREACHABLE),
    };
    let (from, to) = (side(segment.from)?, side(segment.to)?);
    let bytes = u64::from(segment.blocks) * if segment.of_destination { to.block() } else { from.block() };
    let (Some(at), Some(to_at)) = (segment.lba.checked_mul(from.block()), segment.to_lba.checked_mul(to.block()))
    else {
        return Err(COPY_ABORTED.into());
    };
    let whole = bytes.is_multiple_of(from.block()) && bytes.is_multiple_of(to.block());
    if !from.has(at, bytes) || !to.has(to_at, bytes) || !whole || bytes > COPY_BYTES_MAX {
        return Err(COPY_ABORTED.into());
    }
    engine::copy(call, &from, at, &to, to_at, bytes)?;
    Ok(bytes)
}
