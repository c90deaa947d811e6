//! What the daemon needs from the FUSE front end, and from the mount table of the system.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qrvsa_core::Result;
use qrvsa_core::fs::ops::Operations;

use crate::host;

/// How long an unmounted filesystem usually may take to be let go of everywhere.
pub const DETACH_PATIENCE: Duration = qrvsa_fuse::DETACH_PATIENCE;

/// What to mount where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec<'a> {
    /// What `/proc/mounts` shows as the source: `POOL` or `POOL/FS`.
    pub source: &'a str,
    /// An existing directory.
    pub mountpoint: &'a Path,
    /// Options as after `-o`, one per element.
    pub options: &'a [String],
    /// Threads that serve the mount; `None` for the front end's own choice.
    pub threads: Option<usize>,
}

/// Why the session of a mount ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// Unmounted, by the daemon or by somebody else.
    Unmounted,
    /// Something failed; the sentence says what.
    Failed(String),
}

/// Called once when the session of a mount ended, for whatever reason, from any thread. Returns fast, and waits neither
/// for the mount nor for its thread.
pub type OnExit = Box<dyn FnOnce(SessionEnd) + Send>;

/// Makes mounts.
#[allow(clippy::missing_errors_doc, reason = "what the system call or FUSE says")]
pub trait Mounter: Send + Sync + 'static {
    /// Mounts; returns when the mount serves. The kernel caches as if a filesystem had one mount only: the caller sees to
    /// that. `Invalid` for an option that does not exist.
    fn mount(&self, ops: Arc<dyn Operations>, spec: &MountSpec<'_>, on_exit: OnExit) -> Result<Arc<dyn ActiveMount>>;

    /// Gives a mount that serves the options of `spec`; `before` are those it has. `Invalid` for an option that does not exist,
    /// or that only a new mount can have; `Busy` to make it read-only while files are open for writing.
    fn remount(&self, spec: &MountSpec<'_>, before: &[String]) -> Result<()>;

    /// Whether a mount is there whose server is gone ("Transport endpoint is not connected").
    fn is_stale(&self, mountpoint: &Path) -> bool {
        host::is_stale_mount(mountpoint)
    }

    /// Detaches stale mounts from the directory; returns whether there were any.
    fn detach_stale(&self, mountpoint: &Path) -> Result<bool> {
        host::detach_stale_mounts(mountpoint)
    }

    /// Whether anything is mounted exactly there.
    fn is_mountpoint(&self, mountpoint: &Path) -> bool {
        host::is_mountpoint(mountpoint)
    }

    /// Whether the whole system is going down, in which case unmounting by others is not an administrator's wish.
    fn system_is_stopping(&self) -> bool {
        host::system_is_stopping()
    }
}

/// A mount that serves. Dropping the last handle ends it.
#[allow(clippy::missing_errors_doc, reason = "what the system call says")]
pub trait ActiveMount: Send + Sync {
    /// Unmounts, and returns when the session has ended; `Busy` while files are open, and when it is out of the tree but
    /// still used ([`ActiveMount::is_detached`]) after `patience`. `lazy`: takes it out of the tree at once; the session ends
    /// when nothing uses it any more.
    fn unmount(&self, lazy: bool, patience: Duration) -> Result<()>;

    /// Whether the session still serves.
    fn is_alive(&self) -> bool;

    /// Whether the session serves, but is not in the tree: its filesystem is shown elsewhere (a bind mount, a container), or
    /// files are open.
    fn is_detached(&self) -> bool;

    /// By whom it is used, to be put after "still". May take a while.
    fn users(&self) -> String;

    /// Why not everything was made durable at the end of the session.
    fn lost(&self) -> Option<String>;
}
