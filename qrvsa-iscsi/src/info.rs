//! What the service tells about targets, sessions and their work.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::TargetConfig;

/// Buckets of a latency histogram: bucket 0 counts what took less than 1 us, bucket n what took less than 2^n us and not
/// less than 2^(n-1) us; the last bucket has no upper end.
pub const LATENCY_BUCKETS: usize = 28;

/// Commands and the bytes they moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Commands.
    pub commands: u64,
    /// Bytes: as asked for where work begins, as moved where it is done.
    pub bytes: u64,
}

/// Counts of one LUN, of a session or of all of its target's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Commands that expect data, as they came.
    pub reads_begun: Transfers,
    /// Those of them that were answered.
    pub reads_done: Transfers,
    /// Commands that bring data, as they came.
    pub writes_begun: Transfers,
    /// Those of them that were answered.
    pub writes_done: Transfers,
    /// Answered commands without data.
    pub others_done: u64,
    /// Answers with CHECK CONDITION and a sense key other than UNIT ATTENTION, or with another failing status.
    pub errors: u64,
    /// Time from the command's last byte of data-out to its answer.
    pub latency: [u64; LATENCY_BUCKETS],
    /// Sum of all these times in nanoseconds.
    pub latency_ns: u64,
}

impl Metrics {
    /// Adds the counts of another.
    pub fn add(&mut self, other: &Metrics) {
        let sum = |a: &mut Transfers, b: Transfers| {
            a.commands = a.commands.wrapping_add(b.commands);
            a.bytes = a.bytes.wrapping_add(b.bytes);
        };
        sum(&mut self.reads_begun, other.reads_begun);
        sum(&mut self.reads_done, other.reads_done);
        sum(&mut self.writes_begun, other.writes_begun);
        sum(&mut self.writes_done, other.writes_done);
        self.others_done = self.others_done.wrapping_add(other.others_done);
        self.errors = self.errors.wrapping_add(other.errors);
        self.latency_ns = self.latency_ns.wrapping_add(other.latency_ns);
        for (a, b) in self.latency.iter_mut().zip(other.latency) {
            *a = a.wrapping_add(b);
        }
    }
}

/// Counts of one LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunMetrics {
    /// Logical unit number; [`OTHER_LUNS`] stands for all that a session addressed beyond its first 256.
    pub lun: u64,
    /// The counts.
    pub metrics: Metrics,
}

/// See [`LunMetrics::lun`].
pub const OTHER_LUNS: u64 = u64::MAX;

/// A TCP connection of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Connection identifier, given by the initiator.
    pub cid: u16,
    /// Where the initiator is.
    pub initiator_address: SocketAddr,
    /// Where it reached us.
    pub target_address: SocketAddr,
    /// In words: `logged in`, `logging out`.
    pub state: &'static str,
    /// Commands that are not answered.
    pub commands_outstanding: u64,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its number: the TSIH.
    pub sid: u64,
    /// Initiator name.
    pub initiator_name: String,
    /// Initiator alias; empty for none.
    pub initiator_alias: String,
    /// Initiator session identifier.
    pub isid: [u8; 6],
    /// Tag of the portal group it came through.
    pub portal_group_tag: u16,
    /// Its connections; none while it waits for its initiator to come back.
    pub connections: Vec<ConnectionInfo>,
    /// Keys and values agreed on.
    pub negotiated: Vec<(&'static str, String)>,
    /// Seconds since the login.
    pub age_seconds: u64,
    /// Counts by LUN.
    pub luns: Vec<LunMetrics>,
}

/// A target.
#[derive(Clone, Debug)]
pub struct TargetInfo {
    /// Its configuration now.
    pub config: Arc<TargetConfig>,
    /// Sessions now.
    pub sessions: usize,
    /// Counts by LUN since the target was made, sessions that ended included.
    pub luns: Vec<LunMetrics>,
}

/// A portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalInfo {
    /// Where it listens.
    pub address: SocketAddr,
    /// Target portal group tag.
    pub group_tag: u16,
}
