//! What a simulated disk was asked to do: counters, and a trace to compare two runs.

use xxhash_rust::xxh3::Xxh3Default;

use super::super::Request;
use super::super::batch::Outcome;

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// A read.
    Read,
    /// A write, durable or not.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
}

impl Operation {
    pub(super) fn of(request: &Request) -> Operation {
        match request {
            Request::Read { .. } => Operation::Read,
            Request::Write { .. } => Operation::Write,
            Request::Flush => Operation::Flush,
            Request::Discard { .. } => Operation::Discard,
        }
    }
}

/// Requests the disk has answered with success.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
}

/// A request that reached the disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceEntry {
    /// What it was.
    pub operation: Operation,
    /// First byte; 0 for a flush.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// For a write, a hash of its data and of whether it was durable; else 0.
    pub digest: u64,
}

#[derive(Default)]
pub(super) struct Trace {
    pub counters: Counters,
    pub entries: Option<Vec<TraceEntry>>,
}

impl Trace {
    pub fn record(&mut self, operation: Operation, request: &Request, len: u64) {
        let Some(entries) = &mut self.entries else { return };
        let digest = match request {
            Request::Write { slices, durable, .. } => {
                let mut hash = Xxh3Default::new();
                hash.update(&[u8::from(*durable)]);
                slices.iter().for_each(|s| hash.update(s));
                hash.digest()
            }
            _ => 0,
        };
        entries.push(TraceEntry { operation, offset: request.offset(), len, digest });
    }

    pub fn count(&mut self, operation: Operation, len: u64, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Done(_)) {
            return;
        }
        let counters = &mut self.counters;
        match operation {
            Operation::Read => (counters.reads, counters.read_bytes) = (counters.reads + 1, counters.read_bytes + len),
            Operation::Write => {
                (counters.writes, counters.written_bytes) = (counters.writes + 1, counters.written_bytes + len);
            }
            Operation::Flush => counters.flushes += 1,
            Operation::Discard => counters.discards += 1,
        }
    }
}
