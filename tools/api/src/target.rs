//! iSCSI targets: bodies of requests and answers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::names::FsName;

/// What a logical unit keeps its bytes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LunSource {
    /// A volume of a pool, `POOL/VOL`.
    Volume(FsName),
    /// A plain file or block device.
    File(PathBuf),
    /// A VHDX file.
    Vhdx(PathBuf),
    /// Nothing: writes vanish, reads give zeroes. The size in bytes.
    Null(u64),
    /// A removable unit without medium.
    Empty,
}

impl fmt::Display for LunSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LunSource::Volume(name) => write!(f, "volume {name}"),
            LunSource::File(path) => write!(f, "file {}", path.display()),
            LunSource::Vhdx(path) => write!(f, "vhdx {}", path.display()),
            LunSource::Null(_) => f.write_str("null"),
            LunSource::Empty => f.write_str("no medium"),
        }
    }
}

/// How a logical unit shows itself. What is not given is as the storage says, or a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LunOptions {
    /// Thin provisioned: shows UNMAP, and space comes back with it.
    pub thin: Option<bool>,
    /// Takes no writes.
    pub read_only: bool,
    /// Its medium can be ejected.
    pub removable: bool,
    /// Logical block, bytes: 512 or 4096.
    pub block_bytes: Option<u32>,
    /// Logical blocks per physical block, as an exponent of two.
    pub physical_block_exponent: Option<u8>,
    /// Lowest aligned block.
    pub lowest_aligned: Option<u16>,
    /// T10 vendor, at most 8 characters.
    pub vendor: Option<String>,
    /// Product, at most 16 characters.
    pub product: Option<String>,
    /// Product revision, at most 4 characters.
    pub revision: Option<String>,
    /// Identifier in the unit's designators.
    pub scsi_id: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Not ready.
    pub offline: bool,
    /// Every write is durable when it completes.
    pub write_through: bool,
    /// Sense data in descriptor format.
    pub descriptor_sense: bool,
    /// Best transfer granularity, blocks.
    pub optimal_granularity: Option<u16>,
    /// Best transfer length, blocks.
    pub optimal_blocks: Option<u32>,
    /// Rotation rate: 1 for none.
    pub rotation_rate: Option<u16>,
    /// Mode pages in the place of the built-in ones, as tgt writes them: `page:subpage:length:byte:byte...`.
    pub mode_pages: Vec<String>,
}

/// `target create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTarget {
    /// iSCSI name.
    pub iqn: String,
    /// Its number; without one, the first free one.
    #[serde(default)]
    pub tid: Option<u32>,
    /// Where it is served; empty: the daemon's default portals.
    #[serde(default)]
    pub portals: Vec<String>,
    /// What discovery tells instead of the portals' own addresses.
    #[serde(default)]
    pub advertise: Vec<String>,
}

/// `target lun add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddLun {
    /// Its number; without one, the first free one from 1.
    #[serde(default)]
    pub lun: Option<u64>,
    /// Storage.
    pub source: LunSource,
    /// How it shows itself.
    #[serde(default)]
    pub options: LunOptions,
}

/// A line of an access list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AclRule {
    /// Everybody.
    All,
    /// An address or a block of addresses.
    Address(String),
    /// An initiator by its name.
    Initiator(String),
}

impl fmt::Display for AclRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AclRule::All => f.write_str("ALL"),
            AclRule::Address(text) | AclRule::Initiator(text) => f.write_str(text),
        }
    }
}

/// `target user ... add` and `remove`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRequest {
    /// CHAP name.
    pub name: String,
    /// Its secret; only to add.
    #[serde(default)]
    pub secret: String,
    /// The target proves itself with it to the initiator, instead of the initiator to the target.
    #[serde(default)]
    pub mutual: bool,
    /// It holds for discovery sessions, of all targets, instead of the target's own.
    #[serde(default)]
    pub discovery: bool,
}

impl fmt::Debug for UserRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserRequest({:?}, ..)", self.name)
    }
}

/// Changes to a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateTarget {
    /// Takes no new logins.
    pub offline: Option<bool>,
    /// Session parameters by their RFC 7143 names.
    pub parameters: BTreeMap<String, String>,
}

/// A user of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetUser {
    /// CHAP name.
    pub name: String,
    /// See [`UserRequest::mutual`].
    #[serde(default)]
    pub mutual: bool,
}

/// Commands and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Commands.
    pub commands: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Counts since the target was made, or since a session's login. They only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Reads that began; bytes as asked for.
    pub reads_begun: Traffic,
    /// Reads answered; bytes as moved.
    pub reads: Traffic,
    /// Writes that began.
    pub writes_begun: Traffic,
    /// Writes answered.
    pub writes: Traffic,
    /// Other commands answered.
    pub others: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Answers by the time they took: entry n counts those of less than 2^n us that entry n-1 does not count; the last one
    /// has no upper end.
    pub latency: Vec<u64>,
    /// Sum of these times, nanoseconds.
    pub latency_ns: u64,
}

state! {
    /// State of a logical unit.
    LunState {
        /// Serves.
        Online = "online",
        /// Switched off, or without its medium.
        Offline = "offline",
        /// Its storage is not there.
        Unavailable = "unavailable",
    }
}

/// A logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunInfo {
    /// Its number.
    pub lun: u64,
    /// Storage.
    pub source: LunSource,
    /// State.
    pub state: LunState,
    /// Why it does not serve, where there is more to say than its state.
    #[serde(default)]
    pub message: String,
    /// Size, bytes; 0 while unavailable.
    #[serde(default)]
    pub size_bytes: u64,
    /// Logical block, bytes.
    #[serde(default)]
    pub block_bytes: u32,
    /// Shows thin provisioning.
    #[serde(default)]
    pub thin: bool,
    /// An initiator prevents the removal of its medium.
    #[serde(default)]
    pub removal_prevented: bool,
    /// An initiator has write-protected it.
    #[serde(default)]
    pub write_protected: bool,
    /// As set.
    #[serde(default)]
    pub options: LunOptions,
    /// Counts.
    #[serde(default)]
    pub counters: Counters,
}

/// A portal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortalInfo {
    /// `ADDR:PORT`.
    pub address: String,
    /// Why it does not listen; empty when it does.
    #[serde(default)]
    pub error: String,
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// iSCSI name.
    pub iqn: String,
    /// Its number, as tgt counts them.
    pub tid: u32,
    /// Takes no new logins.
    #[serde(default)]
    pub offline: bool,
    /// Where it is served.
    #[serde(default)]
    pub portals: Vec<PortalInfo>,
    /// What discovery tells instead.
    #[serde(default)]
    pub advertise: Vec<String>,
    /// Who is let in; nobody when empty.
    #[serde(default)]
    pub acl: Vec<AclRule>,
    /// CHAP users.
    #[serde(default)]
    pub users: Vec<TargetUser>,
    /// Logical units, by number.
    #[serde(default)]
    pub luns: Vec<LunInfo>,
    /// Session parameters offered.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Sessions now.
    #[serde(default)]
    pub sessions: u64,
}

/// A connection of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Its id.
    pub cid: u16,
    /// Where the initiator is.
    pub initiator_address: String,
    /// Where it reached the target.
    pub target_address: String,
    /// In words.
    #[serde(default)]
    pub state: String,
    /// Commands that are not answered.
    #[serde(default)]
    pub commands_outstanding: u64,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its number.
    pub sid: u64,
    /// Initiator name.
    pub initiator: String,
    /// Initiator alias.
    #[serde(default)]
    pub alias: String,
    /// Seconds since the login.
    #[serde(default)]
    pub age_s: u64,
    /// Its connections.
    #[serde(default)]
    pub connections: Vec<ConnectionInfo>,
    /// Keys and values agreed on.
    #[serde(default)]
    pub negotiated: BTreeMap<String, String>,
    /// Counts by LUN.
    #[serde(default)]
    pub luns: BTreeMap<String, Counters>,
}

/// Where tgt's programs reach the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TgtSocket {
    /// The path for `TGT_IPC_SOCKET`, without the number that tgt's programs append.
    pub path: PathBuf,
}
