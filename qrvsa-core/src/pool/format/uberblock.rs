//! The uberblock: the one write that makes a transaction group durable.

use super::entries::{GroupEntry, MemberState};
use super::layout::SLOT_BYTES;
use super::{FORMAT_VERSION, open, seal};
use crate::bytes::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"QRVSAUBR";

/// A member as the uberblock sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UberMember {
    /// Its number.
    pub index: u16,
    /// Its identity.
    pub device_id: u128,
    /// State at this transaction group.
    pub state: MemberState,
}

impl UberMember {
    /// Whether it took part in this transaction group.
    pub fn in_service(&self) -> bool {
        self.state.in_service()
    }
}

/// Where the intent log to replay on this root begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogStart {
    /// Generation (import counter) that wrote the log.
    pub generation: u64,
    /// Index in the list of log groups.
    pub segment: u32,
    /// Row of the first block.
    pub row: u32,
    /// Sequence number of the first block.
    pub sequence: u64,
    /// Records of this transaction group and earlier ones are in the root already.
    pub base_txg: u64,
}

/// A validated uberblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uberblock {
    /// The pool.
    pub pool_id: u128,
    /// The member this copy was written to.
    pub device_id: u128,
    /// Transaction group.
    pub txg: u64,
    /// Import counter.
    pub generation: u64,
    /// Wall time of the commit, nanoseconds since the epoch.
    pub time_ns: i64,
    /// Root of the pool tree, as `tree::Root` encodes it.
    pub root: Vec<u8>,
    /// All members.
    pub members: Vec<UberMember>,
    /// Groups of the pool tree.
    pub system_groups: Vec<GroupEntry>,
    /// Groups of the intent log, in ring order.
    pub log_groups: Vec<GroupEntry>,
    /// The log.
    pub log: LogStart,
    /// Whether the pool was exported in order (nothing to replay).
    pub clean: bool,
}

impl Uberblock {
    /// The slot's bytes.
    ///
    /// # Errors
    /// `Invalid` when the lists do not fit a slot.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut w = Writer::new();
        w.raw(MAGIC).u32(FORMAT_VERSION).u32(u32::from(self.clean));
        w.u128(self.pool_id).u128(self.device_id).u64(self.txg).u64(self.generation).i64(self.time_ns);
        w.u64(self.log.generation)
            .u32(self.log.segment)
            .u32(self.log.row)
            .u64(self.log.sequence)
            .u64(self.log.base_txg);
        w.short_bytes(&self.root);
        w.u16(self.members.len() as u16);
        for m in &self.members {
            w.u16(m.index).u8(m.state.code()).u8(0).u128(m.device_id);
        }
        for list in [&self.system_groups, &self.log_groups] {
            w.u16(list.len() as u16);
            for g in list {
                g.encode(&mut w);
            }
        }
        if w.len() + 8 > SLOT_BYTES {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the uberblock does not hold so many members and system groups",
            ));
        }
        Ok(seal(w.finish(), SLOT_BYTES))
    }

    /// Validates a slot.
    ///
    /// # Errors
    /// `NotFound` for an empty slot, `Corrupt`, `Unsupported`.
    pub fn decode(slot: &[u8]) -> Result<Uberblock> {
        if slot.get(..8) != Some(MAGIC.as_slice()) {
            return Err(Error::new(ErrorKind::NotFound, "empty uberblock slot"));
        }
        let mut r = Reader::new(open(slot, "uberblock")?, "uberblock");
        r.raw(8)?;
        let (version, flags) = (r.u32()?, r.u32()?);
        if version != FORMAT_VERSION {
            return Err(Error::new(ErrorKind::Unsupported, format!("uberblock format {version} is not known here")));
        }
        let (pool_id, device_id, txg, generation, time_ns) = (r.u128()?, r.u128()?, r.u64()?, r.u64()?, r.i64()?);
        let log =
            LogStart { generation: r.u64()?, segment: r.u32()?, row: r.u32()?, sequence: r.u64()?, base_txg: r.u64()? };
        let root = r.short_bytes()?.to_vec();
        let mut members = Vec::new();
        for _ in 0..r.u16()? {
            let (index, state, _) = (r.u16()?, r.u8()?, r.u8()?);
            let state = MemberState::from_code(state).ok_or_else(|| r.bad("unknown member state"))?;
            members.push(UberMember { index, device_id: r.u128()?, state });
        }
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            for _ in 0..r.u16()? {
                list.push(GroupEntry::decode(&mut r)?);
            }
        }
        let [system_groups, log_groups] = lists;
        Ok(Uberblock {
            pool_id,
            device_id,
            txg,
            generation,
            time_ns,
            root,
            members,
            system_groups,
            log_groups,
            log,
            clean: flags & 1 != 0,
        })
    }
}
