//! What can go wrong, what it hits, and how often it did.

use std::collections::BTreeMap;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Kind {
    /// Only some sectors of a write arrive.
    Torn,
    /// A crash drops some of the unflushed writes.
    Lost,
    /// A write lands in another place of the device, or a read comes from there.
    Misdirected,
    /// A write is acknowledged and dropped.
    Dropped,
    /// A bit changes: at rest, on the way in or on the way out.
    Flip,
    /// A request fails with `EIO`.
    Eio,
    /// A flush is acknowledged, and what it covers stays volatile.
    FlushLie,
    /// A request takes long, or is never answered.
    Slow,
    /// The device is gone, and later back with what it had.
    Vanished,
    /// The device is exchanged for another: blank, a copy of a sister, or its own past.
    Swapped,
    /// A write fails with `ENOSPC`, or the pool is full.
    Full,
    /// Everything stops while a request is on its way.
    Crash,
}

/// All kinds, in the order of the table.
pub const KINDS: [Kind; 12] = [
    Kind::Torn,
    Kind::Lost,
    Kind::Misdirected,
    Kind::Dropped,
    Kind::Flip,
    Kind::Eio,
    Kind::FlushLie,
    Kind::Slow,
    Kind::Vanished,
    Kind::Swapped,
    Kind::Full,
    Kind::Crash,
];

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Torn => "torn write",
            Kind::Lost => "unflushed write lost",
            Kind::Misdirected => "misdirected",
            Kind::Dropped => "write dropped",
            Kind::Flip => "bit flip",
            Kind::Eio => "EIO",
            Kind::FlushLie => "flush lies",
            Kind::Slow => "slow or hung",
            Kind::Vanished => "device vanished, back old",
            Kind::Swapped => "device swapped",
            Kind::Full => "device full, pool full",
            Kind::Crash => "crash",
        }
    }
}

/// What a fault hits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Target {
    /// Data columns.
    Data,
    /// Parity columns and copies.
    Parity,
    /// Tree nodes.
    Metadata,
    /// Labels and uberblocks.
    Label,
    /// The intent log.
    Log,
}

/// All targets, in the order of the table.
pub const TARGETS: [Target; 5] = [Target::Data, Target::Parity, Target::Metadata, Target::Label, Target::Log];

/// How the pool is when it is hit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum PoolState {
    /// All members serve.
    Healthy,
    /// One member is out, and one more may go.
    OneLost,
    /// As many are out as the geometry survives.
    AllLost,
    /// A rebuild is running.
    Rebuilding,
    /// The data is being moved to another geometry.
    Recoding,
    /// An import is running.
    Importing,
}

/// All states, in the order of the table.
pub const STATES: [PoolState; 6] = [
    PoolState::Healthy,
    PoolState::OneLost,
    PoolState::AllLost,
    PoolState::Rebuilding,
    PoolState::Recoding,
    PoolState::Importing,
];

/// How often each cell was reached.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Table(pub BTreeMap<(Kind, Target, PoolState), u64>);

impl Table {
    /// One more.
    pub fn count(&mut self, kind: Kind, target: Target, state: PoolState) {
        *self.0.entry((kind, target, state)).or_default() += 1;
    }

    /// Adds another table.
    pub fn add(&mut self, other: &Table) {
        for (cell, n) in &other.0 {
            *self.0.entry(*cell).or_default() += n;
        }
    }

    /// The cells that were never reached, those of what is not built yet left out.
    pub fn empty_cells(&self) -> Vec<(Kind, Target, PoolState)> {
        let mut empty = Vec::new();
        for kind in KINDS {
            for target in TARGETS {
                for state in STATES.into_iter().filter(|s| *s != PoolState::Recoding) {
                    if self.reason(kind, target, state).is_none() && !self.0.contains_key(&(kind, target, state)) {
                        empty.push((kind, target, state));
                    }
                }
            }
        }
        empty
    }

    /// Why a cell cannot be reached.
    fn reason(&self, kind: Kind, target: Target, state: PoolState) -> Option<&'static str> {
        if state == PoolState::Recoding {
            return Some("a");
        }
        // faults of writes, where nothing is written: an import reads the log and begins a new one with the first fsync
        let of_writes =
            matches!(kind, Kind::Torn | Kind::Lost | Kind::Dropped | Kind::FlushLie | Kind::Full | Kind::Crash);
        if state == PoolState::Importing && target == Target::Log && of_writes {
            return Some("b");
        }
        None
    }

    /// The table of the documentation.
    pub fn markdown(&self) -> String {
        use std::fmt::Write;
        let mut out = String::from(
            "| fault | hits | healthy | one lost | m lost | rebuilding | re-coding | importing |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
        );
        for kind in KINDS {
            for target in TARGETS {
                let name = match target {
                    Target::Data => "data",
                    Target::Parity => "parity",
                    Target::Metadata => "metadata",
                    Target::Label => "label, uberblock",
                    Target::Log => "intent log",
                };
                let _ = write!(out, "| {} | {name} |", kind.name());
                for state in STATES {
                    let n = self.0.get(&(kind, target, state)).copied().unwrap_or(0);
                    let _ = match (n, self.reason(kind, target, state)) {
                        (0, Some(why)) => write!(out, " {why} |"),
                        _ => write!(out, " {n} |"),
                    };
                }
                out.push('\n');
            }
        }
        out
    }
}
