//! Bodies of requests and answers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::names::FsName;
use crate::units::parse_bytes;

/// Facts about the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Version of the daemon.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the epoch.
    pub started_unix_s: i64,
    /// Pools are imported and mounts restored, as far as possible.
    pub ready: bool,
    /// Where its state lies.
    pub state_dir: PathBuf,
    /// Memory the engine may use, bytes.
    pub memory_limit_bytes: u64,
}

/// A number of data and parity columns, as text `K+M`: `2+2`, `8+3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Geometry {
    /// Data columns, at least 1.
    pub data: u8,
    /// Parity columns: how many devices may fail.
    pub parity: u8,
}

impl FromStr for Geometry {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Geometry, ApiError> {
        let parsed = text.split_once('+').and_then(|(k, m)| {
            let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            (digits(k) && digits(m)).then_some(())?;
            Some(Geometry { data: k.parse().ok()?, parity: m.parse().ok()? })
        });
        match parsed {
            Some(g) if g.data >= 1 && u16::from(g.data) + u16::from(g.parity) <= 255 => Ok(g),
            _ => Err(ApiError::invalid(format!("geometry {text:?} is not valid")).with_hint(
                "write DATA+PARITY such as 2+2 or 8+3, with at least one data column and at most 255 together",
            )),
        }
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl TryFrom<String> for Geometry {
    type Error = ApiError;

    fn try_from(text: String) -> Result<Geometry, ApiError> {
        text.parse()
    }
}

impl From<Geometry> for String {
    fn from(geometry: Geometry) -> String {
        geometry.to_string()
    }
}

/// A device to build on, as text `PATH` or `PATH:SIZE`. With a size, a sparse file of that size is made at the path. With
/// `vhdx:` before the path, it is a VHDX container; with a size, a dynamic one is made.
///
/// Paths may hold colons (`/dev/disk/by-path/pci-0000:00:1f.2-ata-1`): only a last part that is a number with a unit
/// (`10G`, `512MiB`), or a plain number of at least 1 MiB, is a size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceSpec {
    /// Path of a block device or file.
    pub path: PathBuf,
    /// A VHDX container.
    pub vhdx: bool,
    /// Size of the sparse file, or of the disk in the container, to make, bytes.
    pub size_bytes: Option<u64>,
}

impl FromStr for DeviceSpec {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<DeviceSpec, ApiError> {
        const PLAIN_SIZE_MIN: u64 = 1 << 20;
        let (vhdx, text) = text.strip_prefix("vhdx:").map_or((false, text), |rest| (true, rest));
        let sized = text.rsplit_once(':').and_then(|(path, size)| {
            let bytes = parse_bytes(size)?;
            let has_unit = !size.bytes().all(|b| b.is_ascii_digit());
            (has_unit || bytes >= PLAIN_SIZE_MIN).then_some((path, bytes))
        });
        let (path, size_bytes) = match sized {
            Some((path, bytes)) => (path, Some(bytes)),
            None => (text, None),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(ApiError::invalid(format!("device {text:?} has no path")).with_hint("write PATH or PATH:SIZE"));
        }
        if size_bytes == Some(0) {
            return Err(ApiError::invalid(format!("device {text:?} has a size of 0"))
                .with_hint("write a size such as 10G after the colon"));
        }
        Ok(DeviceSpec { path: PathBuf::from(path), vhdx, size_bytes })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.vhdx { "vhdx:" } else { "" }, self.path.display())?;
        if let Some(size) = self.size_bytes {
            write!(f, ":{size}B")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = ApiError;

    fn try_from(text: String) -> Result<DeviceSpec, ApiError> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> String {
        spec.to_string()
    }
}

/// `pool create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatePool {
    /// Name.
    pub name: String,
    /// Geometry; without one the engine chooses by the number of devices.
    #[serde(default)]
    pub geometry: Option<Geometry>,
    /// Devices, in order.
    pub devices: Vec<DeviceSpec>,
    /// Overwrite what is on the devices.
    #[serde(default)]
    pub force: bool,
}

/// `pool import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportPools {
    /// Directories (or single devices) to look in besides the daemon's own list.
    #[serde(default)]
    pub search: Vec<PathBuf>,
    /// Only this pool, by its name or its id; without, every pool found that is not imported. Of several with one name that are
    /// whole, none is imported by it.
    #[serde(default)]
    pub name: Option<String>,
    /// Has no effect: there is nothing that it could override. Nothing keeps two machines from importing one pool at once.
    #[serde(default)]
    pub force: bool,
}

/// What `pool import` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportResult {
    /// Pools imported by this request.
    pub imported: Vec<PoolSummary>,
    /// Pools found that could not be imported, and mounts that could not be restored: name and why.
    #[serde(default)]
    pub failed: Vec<Failure>,
}

/// A thing that failed within a request that did others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Pool or mount.
    pub name: String,
    /// Why.
    pub error: ApiError,
}

/// A device of a pool or of the system: a path, or, within a pool, its index or id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRef {
    /// Path, index or id.
    pub device: String,
}

/// `pool replace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceDevice {
    /// The device to replace: path, index or id.
    pub old: String,
    /// Its successor.
    pub new: DeviceSpec,
    /// Overwrite what is on the successor.
    #[serde(default)]
    pub force: bool,
}

/// What to do with a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubAction {
    /// Starts one, or goes on with a paused one.
    Start,
    /// Pauses it where it is.
    Pause,
    /// Ends it.
    Stop,
}

/// `pool scrub`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubRequest {
    /// What to do.
    pub action: ScrubAction,
}

/// `check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Read all data too, not only the metadata.
    #[serde(default)]
    pub deep: bool,
}

/// Declares a state whose unknown values decode, with its name as people see it.
macro_rules! state {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $text)] $variant,)*
            /// A state this program is too old to know.
            #[serde(rename = "UNKNOWN", other)]
            Unknown,
        }

        impl $name {
            /// The state as it is written in tables and in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                    $name::Unknown => "UNKNOWN",
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

state! {
    /// State of a pool.
    PoolState {
        /// All devices work, all data has full redundancy.
        Online = "ONLINE",
        /// Works, but devices are missing or data lacks redundancy.
        Degraded = "DEGRADED",
        /// Not usable: it could not be imported.
        Faulted = "FAULTED",
        /// Imported, but stopped writing: a commit failed, as when too many devices do.
        Suspended = "SUSPENDED",
    }
}

state! {
    /// State of a device.
    DeviceState {
        /// Works.
        Online = "ONLINE",
        /// Works with errors.
        Degraded = "DEGRADED",
        /// Taken out by the administrator.
        Offline = "OFFLINE",
        /// Taken out because of errors.
        Faulted = "FAULTED",
        /// Not there.
        Missing = "MISSING",
        /// Being filled.
        Rebuilding = "REBUILDING",
    }
}

state! {
    /// What a job does.
    JobKind {
        /// Reads and verifies everything, repairs what is wrong.
        Scrub = "scrub",
        /// Fills a replaced or returned device.
        Rebuild = "rebuild",
        /// Compares every structure with every other, changes nothing.
        Check = "check",
    }
}

state! {
    /// How far a job is.
    JobState {
        /// Under way.
        Running = "running",
        /// Paused; goes on when started again.
        Paused = "paused",
        /// Reached its end. Says nothing about what it found.
        Finished = "finished",
        /// Stopped on request.
        Stopped = "stopped",
        /// Could not go on; `message` says why.
        Failed = "failed",
    }
}

impl JobState {
    /// Whether it will not change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Finished | JobState::Stopped | JobState::Failed)
    }
}

/// One line of `pool list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSummary {
    /// Name.
    pub name: String,
    /// Id as hexadecimal digits; empty when not known.
    #[serde(default)]
    pub id: String,
    /// State.
    pub state: PoolState,
    /// Geometry as `K+M`; empty when not known.
    #[serde(default)]
    pub geometry: String,
    /// Bytes on all devices, redundancy included.
    #[serde(default)]
    pub raw_bytes: u64,
    /// Bytes a user could store in the empty pool.
    #[serde(default)]
    pub usable_bytes: u64,
    /// Of the usable bytes, used.
    #[serde(default)]
    pub used_bytes: u64,
    /// Of the usable bytes, free.
    #[serde(default)]
    pub free_bytes: u64,
    /// Why the state is what it is; empty when `ONLINE`.
    #[serde(default)]
    pub message: String,
}

/// `pool status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// What `pool list` shows, too.
    #[serde(flatten)]
    pub summary: PoolSummary,
    /// Newest durable transaction group.
    #[serde(default)]
    pub txg: u64,
    /// How many more devices may fail without loss of any data, counted for the data with the least redundancy.
    #[serde(default)]
    pub more_failures_survived: u32,
    /// Bytes of user data that have some, but less than full redundancy. Includes `bytes_without_redundancy`.
    #[serde(default)]
    pub bytes_degraded: u64,
    /// Bytes of user data that the loss of one more device would destroy, or that have no redundancy by geometry.
    #[serde(default)]
    pub bytes_without_redundancy: u64,
    /// Bytes of user data known to be lost.
    #[serde(default)]
    pub bytes_lost: u64,
    /// Devices by index.
    #[serde(default)]
    pub devices: Vec<DeviceStatus>,
    /// The scrub under way or paused.
    #[serde(default)]
    pub scrub: Option<JobInfo>,
    /// The rebuild under way.
    #[serde(default)]
    pub rebuild: Option<JobInfo>,
    /// The last rebuild, if it failed and what it should have filled still waits for it. The next import begins another.
    #[serde(default)]
    pub failed_rebuild: Option<JobInfo>,
    /// The last scrub that ended.
    #[serde(default)]
    pub last_scrub: Option<JobInfo>,
    /// Files with damage beyond repair: paths from the root of the pool, `FS:/path`.
    #[serde(default)]
    pub damaged_files: Vec<String>,
    /// What the administrator should know, one line each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Index in the pool.
    pub index: u32,
    /// Id as hexadecimal digits.
    pub id: String,
    /// Where it is, or was last.
    pub path: PathBuf,
    /// State.
    pub state: DeviceState,
    /// Reads that failed.
    #[serde(default)]
    pub read_errors: u64,
    /// Writes and flushes that failed.
    #[serde(default)]
    pub write_errors: u64,
    /// Reads that succeeded with wrong contents.
    #[serde(default)]
    pub checksum_errors: u64,
    /// Of these errors, repaired by rewriting from the other devices.
    #[serde(default)]
    pub repaired: u64,
    /// Size, bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// Bytes given to zones with data.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// What backs it, while it is present: `block`, `file`, `vhdx`.
    #[serde(default)]
    pub kind: String,
    /// Of a device that grows: bytes it takes of the filesystem under it.
    #[serde(default)]
    pub host_taken_bytes: Option<u64>,
    /// Of a device that grows: bytes the filesystem under it has left.
    #[serde(default)]
    pub host_free_bytes: Option<u64>,
    /// Why the state is what it is; empty when `ONLINE`.
    #[serde(default)]
    pub message: String,
}

/// A long job. Jobs belong to the daemon and go on when the client is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Id, unique in one run of the daemon: letters, digits and `-`.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// Pool.
    pub pool: String,
    /// How far it is.
    pub state: JobState,
    /// Bytes dealt with so far.
    #[serde(default)]
    pub done_bytes: u64,
    /// Bytes to deal with, as far as known; 0 when unknown.
    #[serde(default)]
    pub total_bytes: u64,
    /// Current rate, bytes per second.
    #[serde(default)]
    pub rate_bytes_per_s: u64,
    /// Time left, seconds; `None` when unknown.
    #[serde(default)]
    pub eta_s: Option<u64>,
    /// Errors found so far.
    #[serde(default)]
    pub errors_found: u64,
    /// Of these, repaired. Of a rebuild 0: what it cannot read in one place it computes from others.
    #[serde(default)]
    pub repaired: u64,
    /// Units lost for good.
    #[serde(default)]
    pub lost: u64,
    /// Start, seconds since the epoch.
    #[serde(default)]
    pub started_unix_s: i64,
    /// End, seconds since the epoch.
    #[serde(default)]
    pub finished_unix_s: Option<i64>,
    /// What it is doing, or why it failed.
    #[serde(default)]
    pub message: String,
    /// What a check found, once finished.
    #[serde(default)]
    pub report: Option<CheckReport>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Inconsistencies, one line each. Empty when all is consistent.
    pub problems: Vec<String>,
    /// How many of which things were looked at.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
}

/// `fs create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateFs {
    /// Name within the pool.
    pub name: String,
    /// Properties to begin with.
    #[serde(default)]
    pub properties: Vec<SetProperty>,
}

/// One line of `fs list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsInfo {
    /// `POOL` or `POOL/FS`.
    pub name: FsName,
    /// Bytes used by it, before redundancy.
    #[serde(default)]
    pub used_bytes: u64,
    /// Bytes it may still store.
    #[serde(default)]
    pub available_bytes: u64,
    /// Where it is mounted; filled in by the daemon.
    #[serde(default)]
    pub mountpoints: Vec<PathBuf>,
}

/// `volume create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Name within the pool.
    pub name: String,
    /// Size.
    pub size_bytes: u64,
    /// Logical block: 512 or 4096.
    #[serde(default = "block_bytes_default")]
    pub block_bytes: u32,
    /// Largest record: a power of two from 4 KiB to 1 MiB.
    #[serde(default = "record_bytes_default")]
    pub record_bytes: u32,
    /// Set room for all of it aside, instead of taking it as it is written.
    #[serde(default)]
    pub reserve: bool,
}

fn block_bytes_default() -> u32 {
    512
}

fn record_bytes_default() -> u32 {
    16 << 10
}

/// `volume resize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeVolume {
    /// The new size.
    pub size_bytes: u64,
    /// Also smaller than it is, which loses what is behind the new end.
    #[serde(default)]
    pub force: bool,
}

/// One line of `volume list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// `POOL/VOL`.
    pub name: FsName,
    /// Size.
    pub size_bytes: u64,
    /// Logical block.
    #[serde(default)]
    pub block_bytes: u32,
    /// Largest record.
    #[serde(default)]
    pub record_bytes: u32,
    /// Room for all of it is set aside.
    #[serde(default)]
    pub reserve: bool,
    /// Data it holds, before redundancy.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// What it may still take.
    #[serde(default)]
    pub available_bytes: u64,
    /// What names it for good: 32 hexadecimal digits.
    #[serde(default)]
    pub id: String,
    /// Its SCSI name: an NAA identifier of 16 hexadecimal digits.
    #[serde(default)]
    pub naa: String,
    /// When it was made.
    #[serde(default)]
    pub created_unix_s: i64,
    /// Somebody may be writing to it: a target has it as a logical unit, its file in `.volumes` is open, or it is being filled.
    #[serde(default)]
    pub in_use: bool,
}

/// Where a volume holds data, from some place on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeExtents {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Runs with data, in order; what is between them reads as zeros.
    pub data: Vec<ByteRange>,
    /// How far this tells; the size when there is no more.
    pub next_bytes: u64,
}

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset_bytes: u64,
    /// How many.
    pub length_bytes: u64,
}

/// What filling a volume did. All of it is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFilled {
    /// Bytes written; everything else reads as zeros.
    pub written_bytes: u64,
}

/// A property of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// Name.
    pub key: String,
    /// Value as text.
    pub value: String,
    /// Cannot be set.
    #[serde(default)]
    pub read_only: bool,
}

/// `fs set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetProperty {
    /// Name.
    pub key: String,
    /// Value as text.
    pub value: String,
}

impl FromStr for SetProperty {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<SetProperty, ApiError> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(SetProperty { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(ApiError::invalid(format!("{text:?} does not set a property")).with_hint("write KEY=VALUE")),
        }
    }
}

/// `mount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// What.
    pub source: FsName,
    /// Where: an absolute path of an existing directory.
    pub mountpoint: PathBuf,
    /// Mount options as after `-o`, one per element: `ro`, `noatime`, `threads=8`. Options for other programs (`x-*`,
    /// `_netdev`, `nofail`, ...) are left out by the client.
    #[serde(default)]
    pub options: Vec<String>,
}

/// Changes a mount that serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateMount {
    /// The options it is to have from now on, and after a restart: all of them, as in [`MountRequest`].
    #[serde(default)]
    pub options: Vec<String>,
}

state! {
    /// State of a mount.
    MountState {
        /// Serves.
        Mounted = "mounted",
        /// Unmounted, but still used by open files, a bind mount or a container. Ends with them; no restart brings it back.
        Detached = "detached",
        /// Should exist, but does not: its pool is not imported or mounting failed.
        Waiting = "waiting",
    }
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// Id, unique in one run of the daemon.
    pub id: u64,
    /// What.
    pub source: FsName,
    /// Where.
    pub mountpoint: PathBuf,
    /// Mount options.
    #[serde(default)]
    pub options: Vec<String>,
    /// State.
    pub state: MountState,
    /// Why it is waiting, or what keeps it from ending.
    #[serde(default)]
    pub message: String,
}

state! {
    /// What a fragment holds.
    FragmentRole {
        /// Data as it is in the file, if not compressed.
        Data = "data",
        /// Parity over the data fragments.
        Parity = "parity",
        /// One of several copies.
        Copy = "copy",
    }
}

/// One piece of a file on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Offset in the file of the record the fragment belongs to, bytes.
    pub file_offset: u64,
    /// Length of that record, bytes.
    pub length: u64,
    /// Column in the record's stripe.
    pub column: u32,
    /// What it holds.
    pub role: FragmentRole,
    /// Device.
    pub device: PathBuf,
    /// Offset on the device, bytes.
    pub device_offset: u64,
    /// Length on the device, bytes.
    pub device_length: u64,
}

/// One structure on a device, decoded for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugEntry {
    /// What it is: `label 0`, `uberblock 17`.
    pub title: String,
    /// Offset on the device, bytes.
    pub offset: u64,
    /// Magic, version and checksum are right.
    pub valid: bool,
    /// What is wrong with it.
    #[serde(default)]
    pub problem: String,
    /// Fields in on-disk order, name and value.
    #[serde(default)]
    pub fields: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn geometries() {
        assert_eq!("8+3".parse::<Geometry>().unwrap(), Geometry { data: 8, parity: 3 });
        assert_eq!("1+0".parse::<Geometry>().unwrap().to_string(), "1+0");
        for bad in ["", "+", "2", "2+", "+2", "0+2", "200+100", "256+1", "2+2+2", "-1+2", " 2+2", "++2", "2++2"] {
            assert!(bad.parse::<Geometry>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn device_specs() {
        for (text, path, size) in [
            ("/dev/sda", "/dev/sda", None),
            ("/tmp/a.img:1G", "/tmp/a.img", Some(1 << 30)),
            ("/tmp/a.img:67108864", "/tmp/a.img", Some(64 << 20)),
            ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1", None),
            ("/dev/disk/by-path/scsi-0:0:0:0", "/dev/disk/by-path/scsi-0:0:0:0", None),
            ("/a:b:1.5GiB", "/a:b", Some(3 << 29)),
            ("vhdx:/tmp/a.vhdx:4T", "/tmp/a.vhdx", Some(4 << 40)),
            ("vhdx:/tmp/a.vhdx", "/tmp/a.vhdx", None),
        ] {
            let spec: DeviceSpec = text.parse().unwrap();
            assert_eq!((spec.path.to_str().unwrap(), spec.size_bytes), (path, size));
            assert_eq!(spec.vhdx, text.starts_with("vhdx:"));
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
        }
        for bad in ["", "vhdx:", "vhdx::1G", ":1G", "/a:0K", "/a\0b"] {
            assert!(bad.parse::<DeviceSpec>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_states_and_fields_decode() {
        let summary: PoolSummary = serde_json::from_str(r#"{"name":"t","state":"HIBERNATING","color":"red"}"#).unwrap();
        assert_eq!(summary.state, PoolState::Unknown);
        let status: PoolStatus = serde_json::from_str(r#"{"name":"t","state":"SUSPENDED"}"#).unwrap();
        assert_eq!(status.summary.state, PoolState::Suspended);
    }

    proptest! {
        #[test]
        fn device_specs_round_trip(
            path in "/[a-z:0-9.]{0,20}", vhdx in any::<bool>(), size in proptest::option::of(1u64..),
        ) {
            // A path that itself ends like a size, be it one of 0, can only be named together with a size.
            let spec = DeviceSpec { path: PathBuf::from(&path), vhdx, size_bytes: size };
            match spec.to_string().parse::<DeviceSpec>() {
                Ok(read) if size.is_some() || read.size_bytes.is_none() => prop_assert_eq!(read, spec),
                Ok(_) => {}
                Err(error) => prop_assert!(size.is_none() && error.message.contains("a size of 0"), "{error:?}"),
            }
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<DeviceSpec>();
            let _ = text.parse::<Geometry>();
            let _ = text.parse::<SetProperty>();
        }
    }
}
