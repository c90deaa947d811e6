//! What is fuzzed.

mod api;
mod iscsi;
mod items;
mod pool;
mod scsi;
mod tgt;
mod tree;
mod vhdx;
mod vhdx_image;

use crate::Target;

/// All targets.
pub const TARGETS: &[Target] = &[
    pool::LABEL,
    pool::UBERBLOCK,
    pool::ENTRIES,
    tree::NODE,
    tree::POINTER,
    items::INTENT_LOG,
    items::ITEMS,
    api::REQUESTS,
    api::WORDS,
    vhdx::STRUCTURES,
    vhdx::LOG,
    vhdx_image::IMAGE,
    iscsi::PDUS,
    iscsi::TEXT,
    iscsi::LOGIN,
    scsi::COMMANDS,
    tgt::REQUEST,
    tgt::TGTADM,
    tgt::CONF,
];

/// Most memory that a parser of one structure may allocate for one input: 64 MiB.
const MEMORY_MAX: u64 = 64 << 20;

/// Takes values from the front of an input, zeros when it is at its end. For targets that run a sequence of steps.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        front
    }

    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}
