//! What the daemon needs from the storage engine.
//!
//! The daemon owns one [`Engine`] for its life. All methods may be called from any thread, may block on devices, and are
//! called from threads that may. [`Engine::list`], [`Engine::status`] and [`Engine::jobs`] answer from memory: they
//! must not wait for devices or for other calls, because they are how an administrator finds out what is stuck.
//!
//! Arguments are checked for form before they arrive (names, geometries); whether they make sense is the engine's part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qrvsa_api::names::FsName;
use qrvsa_api::{
    CheckReport, CreateFs, CreatePool, CreateVolume, DebugEntry, Fragment, FsInfo, JobInfo, PoolStatus, PoolSummary,
    Property, ReplaceDevice, ScrubAction, SetProperty, VolumeInfo,
};
use qrvsa_core::Result;
use qrvsa_core::fs::ops::Operations;
use qrvsa_core::vhdx::ImageFile;
use qrvsa_core::volume::Volume;

/// What an engine is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Memory for dirty data and caches over all pools, bytes.
    pub memory_limit_bytes: u64,
    /// Longest time between two transaction groups while something is dirty.
    pub sync_interval: Duration,
    /// Most bytes per second a scrub may read from one pool; `None` for no limit.
    pub scrub_rate_bytes_per_s: Option<u64>,
}

/// Which pools to import, and where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportRequest {
    /// Devices the pool was last seen on; tried first. Some may be gone or hold something else by now.
    pub devices: Vec<PathBuf>,
    /// Directories, or single devices, to look in for what `devices` did not give.
    pub search: Vec<PathBuf>,
    /// Only the pool of this name; else every pool found that is not imported yet.
    pub name: Option<String>,
    /// Only the pool of this id (hexadecimal digits); another pool of the same name is not taken for it.
    pub id: Option<String>,
    /// Ids of pools by name: another pool of such a name is not imported.
    pub known: BTreeMap<String, String>,
}

/// What an import did.
#[derive(Debug, Default)]
pub struct ImportOutcome {
    /// Names of the pools imported.
    pub imported: Vec<String>,
    /// Pools found that could not be imported, and why. Not with a name in the request: then the import fails.
    pub failed: Vec<(String, qrvsa_core::Error)>,
    /// Pools found that were left alone because their name belongs to another, and why.
    pub namesakes: Vec<(String, qrvsa_core::Error)>,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Bytes looked at.
    pub done_bytes: u64,
    /// Bytes to look at, as far as known; 0 when unknown.
    pub total_bytes: u64,
    /// Problems found so far.
    pub problems: u64,
}

/// What identifies a file of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Different for every file there ever was, in any pool.
    pub id: String,
    /// The filesystem, by a number that no other one has, and the inode.
    pub identity: (u64, u64),
    /// Path from the root of the filesystem, as far as known.
    pub path: Option<PathBuf>,
}

/// The storage engine.
#[allow(clippy::missing_errors_doc, reason = "NotFound for what is not there, and what each method says")]
pub trait Engine: Send + Sync + 'static {
    /// Makes a pool, imports it, and gives it its root filesystem. Devices with a size are made as sparse files, mode 0600.
    /// `NeedsForce` when a device holds anything (a pool, a partition table, a filesystem, a non-empty file) or a file
    /// to be made exists; nothing is written then. On any error nothing is left behind.
    fn create_pool(&self, request: &CreatePool) -> Result<()>;

    /// The imported pools, by name.
    fn list(&self) -> Result<Vec<PoolSummary>>;

    /// One imported pool. `devices` holds those being replaced and their successors too.
    fn status(&self, pool: &str) -> Result<PoolStatus>;

    /// Imports. With a name: `NotFound` when it is nowhere, `Exists` when it is imported already, `Degraded` when too few
    /// of its devices are there, `Busy` when one of them is in use on this machine. Nothing keeps two machines from
    /// importing one pool at once.
    fn import(&self, request: &ImportRequest) -> Result<ImportOutcome>;

    /// Makes everything durable, marks the pool as cleanly exported and lets go of its devices. Filesystem handles that
    /// are still held ([`Engine::open_fs`]) fail from then on. Jobs of the pool stop and go on after the next import.
    fn export(&self, pool: &str) -> Result<()>;

    /// Makes the pool impossible to import again and lets go of its devices. Confirmed by the caller.
    fn destroy(&self, pool: &str) -> Result<()>;

    /// Takes a device (path, index or id) out of service. `Degraded` when data would become unreachable.
    fn offline(&self, pool: &str, device: &str) -> Result<()>;

    /// Brings a device (path, index or id) back; what it missed is rebuilt in the background.
    fn online(&self, pool: &str, device: &str) -> Result<()>;

    /// Replaces a device; returns the id of the job that fills its successor. `NeedsForce` as in `create_pool`.
    fn replace(&self, pool: &str, request: &ReplaceDevice) -> Result<String>;

    /// Starts (or resumes), pauses or stops the scrub; returns the id of its job. `Busy` to start one that runs,
    /// `NotFound` to pause or stop when there is none.
    fn scrub(&self, pool: &str, action: ScrubAction) -> Result<String>;

    /// Makes everything written so far durable.
    fn sync(&self, pool: &str) -> Result<()>;

    /// Makes a filesystem. `Exists`.
    fn fs_create(&self, pool: &str, request: &CreateFs) -> Result<()>;

    /// The filesystems of a pool, the root filesystem first. `mountpoints` stays empty.
    fn fs_list(&self, pool: &str) -> Result<Vec<FsInfo>>;

    /// Destroys a filesystem. Confirmed by the caller, who also sees to it that it is not mounted. The root filesystem
    /// cannot be destroyed: `Invalid`.
    fn fs_destroy(&self, fs: &FsName) -> Result<()>;

    /// All properties of a filesystem.
    fn fs_get(&self, fs: &FsName) -> Result<Vec<Property>>;

    /// Sets a property. `Invalid` for a key or value that does not exist or cannot be set.
    fn fs_set(&self, fs: &FsName, property: &SetProperty) -> Result<()>;

    /// The operations of a filesystem. Several handles of one filesystem are the same filesystem.
    fn open_fs(&self, fs: &FsName) -> Result<Arc<dyn Operations>>;

    /// What identifies a regular file of a filesystem. `Posix(ENOENT)` when there is none with this number.
    fn file_facts(&self, fs: &FsName, ino: u64) -> Result<FileFacts>;

    /// Claims a regular file as a disk, below the front end, and opens it; `user` says in a few words who does, `path` what the
    /// file is called. `Busy` when it is in use.
    fn open_file(&self, fs: &FsName, ino: u64, write: bool, user: &str, path: &Path) -> Result<Arc<dyn ImageFile>>;

    /// Who uses a file of a pool as a disk, or only of this filesystem.
    fn file_user(&self, pool: &str, fs: Option<&FsName>) -> Option<String>;

    /// Makes a volume. `Exists`, `Invalid`; `NoSpace` when the room that a reserved one wants is not there.
    fn volume_create(&self, pool: &str, request: &CreateVolume) -> Result<()>;

    /// The volumes of a pool.
    fn volume_list(&self, pool: &str) -> Result<Vec<VolumeInfo>>;

    /// Changes the size of a volume, in use or not. `NeedsForce` to make it smaller without `force`.
    fn volume_resize(&self, volume: &FsName, size_bytes: u64, force: bool) -> Result<()>;

    /// Destroys a volume. Confirmed by the caller. `Busy` while somebody has it open.
    fn volume_destroy(&self, volume: &FsName) -> Result<()>;

    /// A volume, for whoever serves it. Several handles of one volume are the same volume; while one is held, the volume cannot
    /// be destroyed. After an export it fails from then on.
    fn open_volume(&self, volume: &FsName) -> Result<Arc<Volume>>;

    /// Keeps a small value (at most 5,887 bytes) in a pool under a name of at most 255 bytes; durable at the return.
    fn put_blob(&self, pool: &str, name: &str, bytes: &[u8]) -> Result<()>;

    /// A value kept in a pool.
    fn blob(&self, pool: &str, name: &str) -> Result<Option<Vec<u8>>>;

    /// Forgets a value kept in a pool, if there is one; durable at the return.
    fn remove_blob(&self, pool: &str, name: &str) -> Result<()>;

    /// Checks a pool, read-only, while it is in use. Calls `progress` at least once a second; when it returns false, the
    /// check ends soon. A report is of a check that went through; one that ended early is an error.
    fn check(&self, pool: &str, deep: bool, progress: &mut dyn FnMut(CheckProgress) -> bool) -> Result<CheckReport>;

    /// Where the contents of a file lie, by file offset, then column. What is not on a device yet is left out.
    fn locate(&self, fs: &FsName, ino: u64) -> Result<Vec<Fragment>>;

    /// The labels of a device, imported or not.
    fn labels(&self, device: &Path) -> Result<Vec<DebugEntry>>;

    /// The uberblocks of a device, imported or not, by slot.
    fn uberblocks(&self, device: &Path) -> Result<Vec<DebugEntry>>;

    /// Scrubs and rebuilds of this run of the daemon, ended ones included for a while. Ids are unique in one run, of
    /// letters, digits and `-`, and do not begin with `check-`.
    fn jobs(&self) -> Vec<JobInfo>;
}
