//! The commands: one table, from which dispatch, reservations, readiness and REPORT SUPPORTED OPERATION CODES are driven.

use std::sync::OnceLock;

use super::bytes::{be16, be32};
use super::call::{Blocks, Call, Outcome};
use super::limits::Limits;
use super::reserve::{self, Allowed};
use super::unit::Shape;
use super::{alua, atomic, capacity, copy, inquiry, log, medium, mode, rsoc, rw, sanitize, thin};

/// What a command does to the unit, as reservations and access states see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Allowed whatever is reserved.
    Free,
    /// TEST UNIT READY: like `Free`, but not past a reservation of SPC-2.
    Ready,
    /// READ CAPACITY and other facts of the medium: past reservations of both kinds.
    Facts,
    /// Reads the medium or the unit's state.
    Read,
    /// Changes the medium or the unit's state.
    Write,
    /// PERSISTENT RESERVE OUT and IN: look for themselves, except at SPC-2.
    Persistent,
    /// RESERVE and RELEASE.
    Legacy,
    /// START STOP UNIT: starting is free.
    StartStop,
    /// PREVENT ALLOW MEDIUM REMOVAL: allowing is free.
    PreventAllow,
}

impl Access {
    /// What a persistent reservation of somebody else lets through (SPC-4 table 69, SBC-3 table 6).
    pub(crate) fn under_persistent(self, cdb: &[u8; 16]) -> Allowed {
        match self {
            Self::Free | Self::Ready | Self::Facts | Self::Persistent | Self::Legacy => Allowed::Always,
            Self::Read => Allowed::Reading,
            Self::Write => Allowed::Never,
            Self::StartStop if cdb[4] & 0xf3 == 1 => Allowed::Always,
            Self::PreventAllow if cdb[4] & 3 == 0 => Allowed::Always,
            Self::StartStop | Self::PreventAllow => Allowed::Never,
        }
    }

    /// What a reservation of SPC-2 of somebody else lets through.
    pub(crate) fn under_legacy(self, cdb: &[u8; 16]) -> bool {
        match self {
            Self::Free | Self::Facts | Self::Legacy => true,
            Self::StartStop => cdb[4] & 0xf3 == 1,
            Self::PreventAllow => cdb[4] & 3 == 0,
            Self::Ready | Self::Read | Self::Write | Self::Persistent => false,
        }
    }

    pub(crate) const fn in_standby(self) -> bool {
        matches!(self, Self::Free | Self::Persistent | Self::Legacy)
    }

    pub(crate) const fn in_unavailable(self) -> bool {
        matches!(self, Self::Free)
    }
}

/// Which units have a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    All,
    Disk,
    ThinDisk,
    AtomicDisk,
    ExplicitAlua,
}

/// Data-out that a command takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DataOut {
    None,
    /// The blocks of the CDB.
    Blocks,
    /// A parameter list whose length is at this byte of the CDB, of 1, 2 or 4 bytes.
    Byte(usize),
    Short(usize),
    Long(usize),
    /// Otherwise, by CDB and block length.
    Fn(fn(&[u8; 16], u64) -> u64),
}

/// One command.
#[derive(Debug)]
pub(crate) struct Entry {
    pub opcode: u8,
    pub action: Option<u16>,
    pub access: Access,
    pub on: On,
    pub flags: u8,
    pub data_out: DataOut,
    /// CDB usage map (SPC-4 6.35.3), without operation code and service action.
    pub usage: &'static [u8],
    pub run: fn(&Call) -> Outcome,
}

/// Needs a medium that is ready.
pub(crate) const MEDIUM: u8 = 1;
/// Refused on a write-protected medium.
pub(crate) const WRITES: u8 = 2;
/// Can run on the session's thread: takes no data-out and does not wait for the backing.
pub(crate) const NOW: u8 = 4;
/// Runs with a unit attention pending, which stays.
pub(crate) const PAST_ATTENTION: u8 = 8;

impl Entry {
    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it runs on a unit without storage: what asks for names and facts of the unit itself.
    pub(crate) fn needs_no_storage(&self) -> bool {
        matches!(self.access, Access::Free) || matches!(self.opcode, 0x1a | 0x5a | 0xa3)
    }

    pub(crate) fn data_out_bytes(&self, cdb: &[u8; 16], block: u64) -> u64 {
        match self.data_out {
            DataOut::None => 0,
            DataOut::Blocks => Blocks::of(cdb).count.saturating_mul(block),
            DataOut::Byte(at) => u64::from(cdb[at]),
            DataOut::Short(at) => u64::from(be16(cdb, at)),
            DataOut::Long(at) => u64::from(be32(cdb, at)),
            DataOut::Fn(f) => f(cdb, block),
        }
    }
}

/// Whether a unit has this command.
pub(crate) fn supports(entry: &Entry, shape: &Shape, explicit_alua: bool) -> bool {
    match entry.on {
        On::All => true,
        On::ExplicitAlua => explicit_alua,
        On::Disk => shape.is_disk(),
        On::ThinDisk => shape.is_disk() && shape.thin,
        On::AtomicDisk => shape.is_disk() && Limits::of(shape).atomic > 0,
    }
}

/// The usage map as reported: with the service action where the CDB has it.
pub(crate) fn usage_of(entry: &Entry) -> Vec<u8> {
    let mut usage = entry.usage.to_vec();
    if let Some(opcode) = usage.first_mut() {
        *opcode = entry.opcode;
    }
    if let (Some(action), Some(byte)) = (entry.action, usage.get_mut(1)) {
        *byte = *byte & 0xe0 | action.to_be_bytes()[1] & 0x1f;
    }
    usage
}

const fn entry(
    opcode: u8,
    access: Access,
    on: On,
    flags: u8,
    data_out: DataOut,
    usage: &'static [u8],
    run: fn(&Call) -> Outcome,
) -> Entry {
    Entry { opcode, action: None, access, on, flags, data_out, usage, run }
}

const fn with_action(action: u16, entry: Entry) -> Entry {
    Entry { action: Some(action), ..entry }
}

const READS: u8 = MEDIUM;
const CHANGES: u8 = MEDIUM | WRITES;

use Access::{Facts, Free, Legacy, Persistent, PreventAllow, Read, Ready, StartStop, Write};
use DataOut::{Byte, Long, Short};
use On::{All, AtomicDisk, Disk, ExplicitAlua, ThinDisk};

const RW6: &[u8] = &[0, 0x1f, 0xff, 0xff, 0xff, 0x04];
const RW10: &[u8] = &[0, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04];
const RW12: &[u8] = &[0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04];
const RW16: &[u8] = &[0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04];
const VERIFY10: &[u8] = &[0, 0x16, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04];
const VERIFY12: &[u8] = &[0, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04];
const VERIFY16: &[u8] = &[0, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04];
const CACHE10: &[u8] = &[0, 0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04];
const CACHE16: &[u8] = &[0, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04];
const ALLOCATION12: &[u8] = &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04];
const RESERVE_OUT: &[u8] = &[0, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x04];
const RESERVE_IN: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04];
const SANITIZE: &[u8] = &[0, 0xa0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04];
const LBA_ALLOCATION16: &[u8] =
    &[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04];
const CAPACITY16: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04];
const COPY_OUT: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04];
const TOKEN_OUT: &[u8] = &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04];
const COPY_IN: &[u8] = &[0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04];
const COPY_IN_LONG: &[u8] = &[0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04];
const MODE10: &[u8] = &[0, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04];

fn format_bytes(cdb: &[u8; 16], _: u64) -> u64 {
    match (cdb[1] & 0x10, cdb[1] & 0x20) {
        (0, _) => 0,
        (_, 0) => 4,
        _ => 8,
    }
}

/// All commands, by operation code.
pub(crate) static COMMANDS: &[Entry] = &[
    entry(0x00, Ready, All, MEDIUM | NOW, DataOut::None, &[0, 0, 0, 0, 0, 0x04], capacity::ready),
    entry(0x03, Free, All, PAST_ATTENTION | NOW, DataOut::None, &[0, 0x01, 0, 0, 0xff, 0x04], capacity::request_sense),
    entry(0x04, Write, Disk, 0, DataOut::Fn(format_bytes), &[0, 0xff, 0, 0, 0, 0x04], sanitize::format),
    entry(0x08, Read, Disk, READS | NOW, DataOut::None, RW6, rw::read),
    entry(0x0a, Write, Disk, CHANGES, DataOut::Blocks, RW6, rw::write),
    entry(0x12, Free, All, PAST_ATTENTION | NOW, DataOut::None, &[0, 0x01, 0xff, 0xff, 0xff, 0x04], inquiry::inquiry),
    entry(0x15, Write, All, 0, Byte(4), &[0, 0x11, 0, 0, 0xff, 0x04], mode::mode_select),
    entry(0x16, Legacy, Disk, NOW, DataOut::None, &[0, 0, 0, 0, 0, 0x04], reserve::legacy_reserve),
    entry(0x17, Legacy, Disk, NOW, DataOut::None, &[0, 0, 0, 0, 0, 0x04], reserve::legacy_release),
    entry(0x1a, Read, All, NOW, DataOut::None, &[0, 0x08, 0xff, 0xff, 0xff, 0x04], mode::mode_sense),
    entry(0x1b, StartStop, Disk, 0, DataOut::None, &[0, 0x01, 0, 0x0f, 0xf7, 0x04], medium::start_stop),
    entry(0x1c, Read, All, NOW, DataOut::None, &[0, 0x01, 0xff, 0xff, 0xff, 0x04], log::receive_diagnostic),
    entry(0x1d, Write, All, 0, Short(3), &[0, 0xff, 0, 0xff, 0xff, 0x04], log::send_diagnostic),
    entry(0x1e, PreventAllow, Disk, NOW, DataOut::None, &[0, 0, 0, 0, 0x03, 0x04], medium::prevent_allow),
    entry(0x25, Facts, Disk, MEDIUM | NOW, DataOut::None, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x04], capacity::capacity10),
    entry(0x28, Read, Disk, READS | NOW, DataOut::None, RW10, rw::read),
    entry(0x2a, Write, Disk, CHANGES, DataOut::Blocks, RW10, rw::write),
    entry(0x2e, Write, Disk, CHANGES, DataOut::Blocks, VERIFY10, rw::write_and_verify),
    entry(0x2f, Read, Disk, READS, DataOut::Fn(rw::verify_bytes), VERIFY10, rw::verify),
    entry(0x34, Read, Disk, READS | NOW, DataOut::None, CACHE10, rw::prefetch),
    entry(0x35, Write, Disk, MEDIUM, DataOut::None, CACHE10, rw::synchronize),
    entry(0x37, Read, Disk, MEDIUM | NOW, DataOut::None, &[0, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x04], rw::read_defects),
    entry(
        0x41,
        Write,
        Disk,
        CHANGES,
        DataOut::Fn(thin::write_same_bytes),
        &[0, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
        thin::write_same,
    ),
    entry(0x42, Write, ThinDisk, CHANGES, Short(7), &[0, 0x01, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0x04], thin::unmap),
    with_action(1, entry(0x48, Write, Disk, 0, Short(7), SANITIZE, sanitize::overwrite)),
    with_action(2, entry(0x48, Write, Disk, 0, Short(7), SANITIZE, sanitize::block_erase)),
    with_action(0x1f, entry(0x48, Write, Disk, 0, Short(7), SANITIZE, sanitize::exit_failure)),
    entry(
        0x4d,
        Free,
        Disk,
        NOW,
        DataOut::None,
        &[0, 0x01, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0x04],
        log::log_sense,
    ),
    entry(0x55, Write, All, 0, Short(7), &[0, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04], mode::mode_select),
    entry(0x56, Legacy, Disk, NOW, DataOut::None, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x04], reserve::legacy_reserve),
    entry(0x57, Legacy, Disk, NOW, DataOut::None, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x04], reserve::legacy_release),
    entry(0x5a, Read, All, NOW, DataOut::None, MODE10, mode::mode_sense),
    with_action(0, entry(0x5e, Persistent, Disk, NOW, DataOut::None, RESERVE_IN, reserve::persistent_in)),
    with_action(1, entry(0x5e, Persistent, Disk, NOW, DataOut::None, RESERVE_IN, reserve::persistent_in)),
    with_action(2, entry(0x5e, Persistent, Disk, NOW, DataOut::None, RESERVE_IN, reserve::report_capabilities)),
    with_action(3, entry(0x5e, Persistent, Disk, NOW, DataOut::None, RESERVE_IN, reserve::read_full_status)),
    with_action(0, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(1, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(2, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(3, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(4, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(5, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(6, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(7, entry(0x5f, Persistent, Disk, 0, Long(5), RESERVE_OUT, reserve::persistent_out)),
    with_action(0, entry(0x83, Write, Disk, MEDIUM, Long(10), COPY_OUT, copy::extended_copy_lid1)),
    with_action(1, entry(0x83, Write, Disk, MEDIUM, Long(10), COPY_OUT, copy::extended_copy_lid4)),
    with_action(0x10, entry(0x83, Write, Disk, MEDIUM, Long(10), TOKEN_OUT, copy::populate)),
    with_action(0x11, entry(0x83, Write, Disk, CHANGES, Long(10), TOKEN_OUT, copy::write_using)),
    with_action(0, entry(0x84, Read, Disk, NOW, DataOut::None, COPY_IN, copy::copy_status)),
    with_action(3, entry(0x84, Read, Disk, NOW, DataOut::None, COPY_IN, copy::operating_parameters)),
    with_action(5, entry(0x84, Read, Disk, NOW, DataOut::None, COPY_IN_LONG, copy::copy_status_lid4)),
    with_action(7, entry(0x84, Read, Disk, NOW, DataOut::None, COPY_IN_LONG, copy::token_information)),
    entry(0x88, Read, Disk, READS | NOW, DataOut::None, RW16, rw::read),
    entry(
        0x89,
        Write,
        Disk,
        CHANGES,
        DataOut::Fn(|cdb, block| atomic::compare_blocks(cdb).count * 2 * block),
        &[0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x1f, 0x04],
        atomic::compare_and_write,
    ),
    entry(0x8a, Write, Disk, CHANGES, DataOut::Blocks, RW16, rw::write),
    entry(0x8b, Write, Disk, CHANGES, DataOut::Blocks, RW16, atomic::or_write),
    entry(0x8e, Write, Disk, CHANGES, DataOut::Blocks, VERIFY16, rw::write_and_verify),
    entry(0x8f, Read, Disk, READS, DataOut::Fn(rw::verify_bytes), VERIFY16, rw::verify),
    entry(0x90, Read, Disk, READS | NOW, DataOut::None, CACHE16, rw::prefetch),
    entry(0x91, Write, Disk, MEDIUM, DataOut::None, CACHE16, rw::synchronize),
    entry(
        0x93,
        Write,
        Disk,
        CHANGES,
        DataOut::Fn(thin::write_same_bytes),
        &[0, 0x19, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04],
        thin::write_same,
    ),
    entry(
        0x9c,
        Write,
        AtomicDisk,
        CHANGES,
        DataOut::Fn(|cdb, block| atomic::atomic_blocks(cdb).count * block),
        &[0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04],
        atomic::write_atomic,
    ),
    with_action(0x10, entry(0x9e, Facts, Disk, MEDIUM | NOW, DataOut::None, CAPACITY16, capacity::capacity16)),
    with_action(0x12, entry(0x9e, Read, Disk, MEDIUM, DataOut::None, LBA_ALLOCATION16, thin::lba_status)),
    entry(
        0xa0,
        Free,
        All,
        PAST_ATTENTION | NOW,
        DataOut::None,
        &[0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
        |call| call.units.report_luns(call.cdb).map_err(Into::into),
    ),
    with_action(
        0x0a,
        entry(
            0xa3,
            Free,
            All,
            NOW,
            DataOut::None,
            &[0, 0xe0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
            alua::report,
        ),
    ),
    with_action(
        0x0c,
        entry(
            0xa3,
            Read,
            All,
            NOW,
            DataOut::None,
            &[0, 0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
            rsoc::supported_opcodes,
        ),
    ),
    with_action(
        0x0d,
        entry(
            0xa3,
            Read,
            All,
            NOW,
            DataOut::None,
            &[0, 0, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
            rsoc::supported_management,
        ),
    ),
    with_action(0x0a, entry(0xa4, Write, ExplicitAlua, 0, Long(6), ALLOCATION12, alua::set)),
    entry(0xa8, Read, Disk, READS | NOW, DataOut::None, RW12, rw::read),
    entry(0xaa, Write, Disk, CHANGES, DataOut::Blocks, RW12, rw::write),
    entry(0xae, Write, Disk, CHANGES, DataOut::Blocks, VERIFY12, rw::write_and_verify),
    entry(0xaf, Read, Disk, READS, DataOut::Fn(rw::verify_bytes), VERIFY12, rw::verify),
    entry(
        0xb7,
        Read,
        Disk,
        MEDIUM | NOW,
        DataOut::None,
        &[0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
        rw::read_defects,
    ),
];

/// Why there is no command for a CDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    Opcode,
    Action,
}

/// First entry of each operation code, plus 1.
fn index() -> &'static [u8; 256] {
    static INDEX: OnceLock<[u8; 256]> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut index = [0; 256];
        for (n, entry) in COMMANDS.iter().enumerate().rev() {
            index[usize::from(entry.opcode)] = u8::try_from(n + 1).unwrap_or(0);
        }
        index
    })
}

/// The command of a CDB.
pub(crate) fn find(cdb: &[u8; 16]) -> Result<&'static Entry, Unknown> {
    let first = usize::from(index()[usize::from(cdb[0])]);
    let mut entries = COMMANDS.get(first.wrapping_sub(1)..).unwrap_or_default().iter();
    let front = entries.next().ok_or(Unknown::Opcode)?;
    if front.action.is_none() {
        return Ok(front);
    }
    let action = Some(u16::from(cdb[1] & 0x1f));
    std::iter::once(front)
        .chain(entries.take_while(|e| e.opcode == cdb[0]))
        .find(|e| e.action == action)
        .ok_or(Unknown::Action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_maps_have_the_length_of_their_cdb() {
        assert!(COMMANDS.len() < 255);
        for pair in COMMANDS.windows(2) {
            assert!((pair[0].opcode, pair[0].action) < (pair[1].opcode, pair[1].action), "{:?}", pair[1]);
            assert_eq!(pair[0].opcode == pair[1].opcode, pair[1].action.is_some() && pair[0].opcode == pair[1].opcode);
        }
        for entry in COMMANDS {
            let length = match entry.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                5 => 12,
                _ => 16,
            };
            assert_eq!(entry.usage.len(), length, "{entry:?}");
            assert_eq!(entry.usage[0], 0, "the operation code is filled in when it is reported");
        }
    }

    #[test]
    fn every_command_is_found_by_its_cdb() {
        for entry in COMMANDS {
            let mut cdb = [0; 16];
            cdb[0] = entry.opcode;
            cdb[1] = entry.action.map_or(0, |a| a.to_be_bytes()[1]);
            assert!(std::ptr::eq(find(&cdb).expect("there"), entry));
        }
        assert_eq!(find(&[0xff; 16]).map(|e| e.opcode), Err(Unknown::Opcode));
        assert_eq!(find(&[0x9e; 16]).map(|e| e.opcode), Err(Unknown::Action));
    }
}
