//! A mounted filesystem: mounting, serving, unmounting, and the end of it.
//!
//! `mount` makes the kernel mount, answers INIT, and starts a supervisor thread which runs the session threads. The session
//! ends when the kernel closes the connection (an unmount from whichever side, or an abort). Then, in this order: the last
//! request is answered, opens left over are released, everything is made durable, a dead mount is taken away, callbacks
//! run, and waiters go on.
//!
//! Never call [`Mount::unmount`] or [`Mount::wait`] from within an operation: both wait for operations to end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use qrvsa_core::fs::claims::Tell;
use qrvsa_core::fs::ops::{Ino, Operations};
use qrvsa_core::{Error, ErrorKind, Result, fail};

use crate::adapter::Adapter;
use crate::atimes::Atimes;
use crate::mountinfo::{self, Identity};
use crate::options::MountOptions;
use crate::seats::Seats;
use crate::{target, users};

/// How long an unmounted filesystem may take to be let go of everywhere: mounts in other namespaces go with it, but not all in
/// the same call.
pub const DETACH_PATIENCE: Duration = Duration::from_secs(2);
/// How long a mount may be seen after its connection was closed. `umount -f` closes that first.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(2);

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Fails with `Busy` while a file is open or a process works in it. Returns when everything is durable. Also `Busy`
    /// when it is out of the tree, but the filesystem still shown elsewhere, by a bind mount or in a container: it serves on
    /// there ([`Mount::is_detached`]; [`Mount::users`] says where).
    Normal,
    /// Takes the mount out of the tree now; what is open goes on until it is closed. Does not wait for that.
    Lazy,
    /// Fails every request under way and to come (`ENOTCONN`), then unmounts. Returns when everything is durable.
    Force,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Unmounted, from here or from outside.
    Unmounted,
    /// Something failed; the sentence says what.
    Failed(String),
}

type ExitCallback = Box<dyn FnOnce(&Exit) + Send>;

/// Where a session is in its life. Shared between the handle and the supervisor.
#[derive(Default)]
struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The adapter has done its last work.
    destroyed: bool,
    /// Why not everything is durable, then.
    lost: Option<Errno>,
    /// We aborted the connection ourselves.
    forced: bool,
    /// How the session ended, when it has.
    exit: Option<Exit>,
    callbacks: Vec<ExitCallback>,
    /// Keeps `/dev/fuse` open, so it goes with the session.
    notifier: Option<Notifier>,
    /// A duplicate of the session's, to see whether the kernel has closed the connection. Goes with the session.
    device: Option<Arc<OwnedFd>>,
}

impl Lifecycle {
    fn set_destroyed(&self, synced: std::result::Result<(), Errno>) {
        let mut state = self.state.lock();
        state.destroyed = true;
        state.lost = synced.err();
        drop(state);
        self.changed.notify_all();
    }

    fn wait_destroyed(&self) {
        let mut state = self.state.lock();
        while !state.destroyed {
            self.changed.wait(&mut state);
        }
    }

    /// Runs the callbacks, then lets waiters go on.
    fn finish(&self, exit: Exit) {
        loop {
            let callbacks = {
                let mut state = self.state.lock();
                (state.notifier, state.device) = (None, None);
                if state.callbacks.is_empty() {
                    state.exit = Some(exit);
                    break;
                }
                std::mem::take(&mut state.callbacks)
            };
            for callback in callbacks {
                let call = std::panic::AssertUnwindSafe(|| callback(&exit));
                if std::panic::catch_unwind(call).is_err() {
                    tracing::error!("a callback at the end of a mount panicked");
                }
            }
        }
        self.changed.notify_all();
    }
}

/// A mounted filesystem. Dropping it detaches the mount lazily.
pub struct Mount {
    mount_point: PathBuf,
    fs_name: String,
    identity: Identity,
    /// Mounted by mount(2), not through the set-user-id helper.
    privileged: bool,
    lifecycle: Arc<Lifecycle>,
}

/// Mounts `ops` at `mount_point`. Returns when the mount serves.
///
/// # Errors
/// `NotFound`, `Invalid`: the mount point or `/dev/fuse` is missing or not what it must be; an option makes no sense.
/// `Busy`: something is mounted there already. `Posix`: what mount(2) says.
pub fn mount(ops: Arc<dyn Operations>, mount_point: &Path, options: &MountOptions) -> Result<Mount> {
    options.check()?;
    let path = target::prepare(mount_point, &options.fs_name)?;
    let lifecycle = Arc::new(Lifecycle::default());
    let seats = Arc::new(Seats::default());
    let operations = ops.clone();
    let adapter = Adapter::new(ops, options, seats.clone(), {
        let lifecycle = lifecycle.clone();
        move |synced| lifecycle.set_destroyed(synced)
    });
    let mut config = Config::default();
    config.n_threads = Some(options.threads);
    let (session, privileged) = match target::mount_device(&path, options)? {
        Some(device) => {
            // Who may use the mount is the kernel's business here.
            let session = Session::from_fd(adapter, device, SessionACL::All, config).map_err(|error| {
                let _ = target::detach(&path, MntFlags::MNT_DETACH);
                session_error(&path, &error)
            })?;
            (session, true)
        }
        None => (mount_by_helper(adapter, &path, options, config)?, false),
    };
    match session.as_fd().try_clone_to_owned() {
        Ok(device) => seats.open(device),
        Err(error) => tracing::debug!(%error, "all session threads wait at the device"),
    }
    {
        let mut state = lifecycle.state.lock();
        state.notifier = Some(session.notifier());
        state.device = session.as_fd().try_clone_to_owned().ok().map(Arc::new);
    }
    operations.on_change(forget_attributes(&lifecycle));
    let identity = match mountinfo::topmost_at(&path) {
        Ok(Some(entry)) if entry.is_ours(&options.fs_name) => entry.identity,
        other => {
            drop(session);
            let _ = target::detach(&path, MntFlags::MNT_DETACH);
            other?;
            fail!(Busy, "{}: something else was mounted there in between", path.display());
        }
    };
    let atimes = Arc::new(Atimes::new(options));
    atimes.watch(identity);
    operations.on_read({
        let atimes = Arc::downgrade(&atimes);
        Arc::new(move || atimes.upgrade().map(|atimes| atimes.ask()).unwrap_or_default())
    });
    target::set_readahead(identity, options.readahead_kib);
    let fs_name = options.fs_name.clone();
    let mount = Mount { mount_point: path, fs_name, identity, privileged, lifecycle: lifecycle.clone() };
    let (path, fs_name) = (mount.mount_point.clone(), mount.fs_name.clone());
    thread::Builder::new()
        .name("fuse-supervisor".into())
        .spawn(move || {
            let _until_the_end = atimes;
            supervise(session, &lifecycle, &path, &fs_name, identity);
        })
        .map_err(|error| session_error(&mount.mount_point, &error))?;
    tracing::info!(mount_point = %mount.mount_point.display(), filesystem = mount.fs_name, "mounted");
    Ok(mount)
}

/// Makes the kernel forget the attributes of an inode, as long as the session lasts. Contents stay: to drop them, the kernel
/// waits for reads of them that are under way, and with them for this process; killed then, it would wait for ever.
fn forget_attributes(lifecycle: &Arc<Lifecycle>) -> Tell {
    const ATTRIBUTES_ONLY: i64 = -1;
    let lifecycle = Arc::downgrade(lifecycle);
    Arc::new(move |ino| {
        let notifier = lifecycle.upgrade().and_then(|lifecycle| lifecycle.state.lock().notifier.clone());
        if let Some(notifier) = notifier
            && let Err(error) = notifier.inval_inode(fuser::INodeNo(ino), ATTRIBUTES_ONLY, 0)
        {
            tracing::debug!(ino, %error, "the kernel was not told of a change");
        }
    })
}

fn session_error(path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(raw) => ErrorKind::Posix(Errno::from_raw(raw)),
        None => ErrorKind::Io,
    };
    Error::new(kind, format!("mounting at {}: {error}", path.display()))
}

/// Mounts through the set-user-id `fusermount3`, for a daemon that does not run as root.
fn mount_by_helper(
    adapter: Adapter,
    path: &Path,
    options: &MountOptions,
    mut config: Config,
) -> Result<Session<Adapter>> {
    let escaped = options.fs_name.replace('\\', "\\\\").replace(',', "\\,");
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.mount_options = vec![
        MountOption::FSName(escaped),
        MountOption::Subtype("qrvsa".into()),
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    if options.noexec {
        config.mount_options.push(MountOption::NoExec);
    }
    if options.sync {
        config.mount_options.push(MountOption::Sync);
    }
    Session::new(adapter, path, &config).map_err(|error| session_error(path, &error))
}

fn supervise(session: Session<Adapter>, lifecycle: &Lifecycle, path: &Path, fs_name: &str, identity: Identity) {
    set_io_flusher();
    let result = session.run();
    // The session may have failed while some of its threads still serve.
    lifecycle.wait_destroyed();
    // Aborted rather than unmounted: nobody will ever answer here again.
    let aborted = !is_unmounted_within(identity, fs_name, UNMOUNT_PATIENCE);
    if is_mounted(path, identity, fs_name)
        && let Err(error) = target::detach(path, MntFlags::MNT_DETACH)
    {
        tracing::warn!(mount_point = %path.display(), %error, "a dead mount stays");
    }
    let exit = match result {
        Ok(()) if aborted && !lifecycle.state.lock().forced => {
            Exit::Failed("the connection to the kernel was aborted".to_owned())
        }
        Ok(()) => Exit::Unmounted,
        Err(error) => Exit::Failed(error.to_string()),
    };
    tracing::info!(mount_point = %path.display(), filesystem = fs_name, ?exit, "mount ended");
    lifecycle.finish(exit);
}

/// Whether that very mount is nowhere in the tree, now or a little later.
fn is_unmounted_within(identity: Identity, fs_name: &str, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if is_in_tree(identity, fs_name).is_ok_and(|there| !there) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether that very mount is in the tree of this process.
fn is_in_tree(identity: Identity, fs_name: &str) -> Result<bool> {
    Ok(mountinfo::read()?.iter().any(|e| e.is_that(identity, fs_name)))
}

/// Whether the kernel has closed the connection, or does so soon.
fn is_closed(device: Option<&OwnedFd>, patience: Duration) -> bool {
    let Some(device) = device else { return true };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Whether that very mount is topmost at `path`.
fn is_mounted(path: &Path, identity: Identity, fs_name: &str) -> bool {
    mountinfo::topmost_at(path).is_ok_and(|entry| entry.is_some_and(|e| e.is_that(identity, fs_name)))
}

/// Tells the kernel that this thread, and those it starts, write out memory for others: their allocations do not wait for
/// write-back, which could wait for this very mount.
fn set_io_flusher() {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    const ZERO: libc::c_ulong = 0;
    // SAFETY: prctl with integer arguments only, each as wide as the kernel reads it.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1 as libc::c_ulong, ZERO, ZERO, ZERO) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "session threads are not marked as I/O flushers");
    }
}

impl Mount {
    /// The canonical path of the mount point.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The name shown as the source.
    pub fn fs_name(&self) -> &str {
        &self.fs_name
    }

    /// Whether the session still serves, in the tree or detached from it.
    pub fn is_alive(&self) -> bool {
        self.lifecycle.state.lock().exit.is_none()
    }

    /// Waits for the end of the session; everything is durable then.
    pub fn wait(&self) -> Exit {
        let mut state = self.lifecycle.state.lock();
        loop {
            if let Some(exit) = &state.exit {
                return exit.clone();
            }
            self.lifecycle.changed.wait(&mut state);
        }
    }

    /// Calls `callback` once when the session has ended (unmounted here or from outside, or failed), on the session's own
    /// thread; at once if it has ended already. It must not wait for this mount.
    pub fn on_exit(&self, callback: impl FnOnce(&Exit) + Send + 'static) {
        let mut state = self.lifecycle.state.lock();
        match state.exit.clone() {
            None => state.callbacks.push(Box::new(callback)),
            Some(exit) => {
                drop(state);
                callback(&exit);
            }
        }
    }

    /// Whether it is out of the tree, but still used by open files, a bind mount or a container.
    pub fn is_detached(&self) -> bool {
        let device = self.lifecycle.state.lock().device.clone();
        let ends = is_closed(device.as_deref(), Duration::ZERO);
        self.is_alive() && !ends && is_in_tree(self.identity, &self.fs_name).is_ok_and(|there| !there)
    }

    /// Whether it is topmost at its place.
    fn is_at_its_place(&self) -> bool {
        is_mounted(&self.mount_point, self.identity, &self.fs_name)
    }

    /// Who uses it, as far as that can be seen, to be put after "it is still". Looks at the open files of every process.
    pub fn users(&self) -> String {
        users::describe(self.identity)
    }

    /// Why not everything was made durable at the end of the session; the log has the details.
    pub fn lost(&self) -> Option<Errno> {
        self.lifecycle.state.lock().lost
    }

    /// What an unmount that is through answers.
    fn outcome(&self) -> Result<()> {
        match self.lost() {
            None => Ok(()),
            Some(errno) => {
                let at = self.mount_point.display();
                let context = format!("{at}: unmounted, but what was written last could not be made durable");
                Err(Error::new(ErrorKind::Posix(errno), context))
            }
        }
    }

    /// As [`Mount::wait`] for a limited time.
    fn wait_for(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.lifecycle.state.lock();
        while state.exit.is_none() {
            if self.lifecycle.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    /// Unmounts. Nothing to do if the session has ended.
    ///
    /// # Errors
    /// `Busy`: in use, or something else is mounted on top. `Posix`: what umount(2) says. Any, with the mount gone
    /// ([`Mount::lost`]): not everything could be made durable.
    pub fn unmount(&self, how: Unmount) -> Result<()> {
        self.unmount_within(how, DETACH_PATIENCE)
    }

    /// As [`Mount::unmount`]; `patience`: how long `Normal` waits, once it is out of the tree, for being let go of everywhere.
    ///
    /// # Errors
    /// Those of [`Mount::unmount`].
    pub fn unmount_within(&self, how: Unmount, patience: Duration) -> Result<()> {
        if !self.is_alive() {
            return self.outcome();
        }
        let device = self.lifecycle.state.lock().device.clone();
        if !self.is_at_its_place() {
            return self.unmount_hidden(how, device.as_deref());
        }
        match how {
            Unmount::Normal => {
                self.detach(MntFlags::empty())?;
                if !is_closed(device.as_deref(), patience) {
                    let at = self.mount_point.display();
                    fail!(Busy, "{at}: detached, but its filesystem is still shown elsewhere or in use");
                }
            }
            Unmount::Lazy => {
                self.detach(MntFlags::MNT_DETACH)?;
                if is_closed(device.as_deref(), Duration::ZERO) {
                    // nobody used it
                    self.wait_for(DETACH_PATIENCE);
                }
                return Ok(());
            }
            Unmount::Force => {
                self.lifecycle.state.lock().forced = true;
                // Aborts the connection, and mostly fails as busy; the mount itself goes next.
                let _ = self.detach(MntFlags::MNT_FORCE);
                if self.is_at_its_place() {
                    let detached = self.detach(MntFlags::MNT_DETACH);
                    // The end of the session detaches it, too.
                    if self.is_at_its_place() {
                        detached?;
                    }
                }
            }
        }
        self.wait();
        self.outcome()
    }

    /// Unmounts a mount that is not at its place: detached lazily but still open, or below another mount.
    fn unmount_hidden(&self, how: Unmount, device: Option<&OwnedFd>) -> Result<()> {
        if is_in_tree(self.identity, &self.fs_name)? {
            fail!(Busy, "{}: something else is mounted on top", self.mount_point.display());
        }
        match how {
            Unmount::Normal if is_closed(device, Duration::ZERO) => {
                self.wait();
                self.outcome()
            }
            Unmount::Normal => {
                let at = self.mount_point.display();
                fail!(Busy, "{at}: detached already, but its filesystem is still in use");
            }
            Unmount::Lazy => Ok(()),
            Unmount::Force => {
                self.lifecycle.state.lock().forced = true;
                let (_, minor) = self.identity.device;
                let file = format!("/sys/fs/fuse/connections/{minor}/abort");
                if let Err(error) = std::fs::write(&file, "1")
                    && self.is_alive()
                {
                    fail!(Busy, "{}: cannot abort the connection: {file}: {error}", self.mount_point.display());
                }
                self.wait();
                self.outcome()
            }
        }
    }

    fn detach(&self, flags: MntFlags) -> Result<()> {
        if self.privileged {
            return target::detach(&self.mount_point, flags);
        }
        let mut command = Command::new("fusermount3");
        command.arg("-u");
        if flags.contains(MntFlags::MNT_DETACH) || flags.contains(MntFlags::MNT_FORCE) {
            command.arg("-z");
        }
        match command.arg("--").arg(&self.mount_point).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => fail!(Busy, "fusermount3: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => fail!(Io, "fusermount3: {error}"),
        }
    }

    /// Makes the kernel forget what it caches of an inode: for changes that do not come through this mount. Must not be
    /// called from within an operation on that inode. Waits for reads of it that are under way, and with them for this process: it
    /// cannot be killed meanwhile.
    ///
    /// # Errors
    /// `Posix`: the kernel refused.
    pub fn invalidate(&self, ino: Ino) -> Result<()> {
        let Some(notifier) = self.lifecycle.state.lock().notifier.clone() else {
            return Ok(());
        };
        notifier.inval_inode(fuser::INodeNo(ino), 0, 0).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
            Error::new(ErrorKind::Posix(errno), format!("invalidating inode {ino}"))
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_alive() && self.is_at_its_place() {
            let _ = self.detach(MntFlags::MNT_DETACH);
        }
    }
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mount({} at {})", self.fs_name, self.mount_point.display())
    }
}
