//! The mount table: what is mounted, what should be, and how a mount comes and goes.
//!
//! A filesystem has one mount: the kernel caches names, attributes and contents as if nobody else changed them. Bind mounts
//! show it in more places. That mount lasts as long as its session: unmounted while it is used (lazily, or shown elsewhere),
//! it stays in the table as detached, and keeps others away, until nothing uses it.
//!
//! A mount that an administrator ends with `umount` is known by the end of its session, and leaves the table. So does not
//! a mount whose session ended because the daemon or the whole system is going down, or because it died.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use qrvsa_api::names::FsName;
use qrvsa_api::{ApiError, ErrorKind, Failure, MountInfo, MountRequest, MountState};

use super::{Daemon, need_absolute};
use crate::error::{IntoApi, from_core};
use crate::host;
use crate::mounter::{ActiveMount, DETACH_PATIENCE, MountSpec, SessionEnd};
use crate::state::PersistentMount;
use crate::targets::places::Root;

/// All mounts by id.
#[derive(Default)]
pub struct MountTable {
    last_id: u64,
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    source: FsName,
    mountpoint: PathBuf,
    options: Vec<String>,
    state: State,
    /// Goes into the state file. Not before the mount serves for the first time.
    persistent: bool,
    /// Why it is waiting.
    message: String,
}

enum State {
    /// Should exist, does not.
    Waiting,
    /// Being made. `ended`: its session ended before the maker was back.
    Mounting { ended: bool },
    /// Serves.
    Mounted(Arc<dyn ActiveMount>),
    /// Being ended by the daemon. `ended`: its session has.
    Unmounting { ended: bool },
    /// Not in the tree any more, but something uses it still.
    Detached(Arc<dyn ActiveMount>),
}

impl Entry {
    /// Whether there is a session.
    fn is_there(&self) -> bool {
        !matches!(self.state, State::Waiting)
    }

    /// Whether its directory shows it.
    fn has_place(&self) -> bool {
        self.is_there() && !matches!(self.state, State::Detached(_))
    }

    fn remembered(&self) -> PersistentMount {
        PersistentMount {
            source: self.source.clone(),
            mountpoint: self.mountpoint.clone(),
            options: self.options.clone(),
        }
    }
}

/// The mount a filesystem has.
struct InUse {
    mountpoint: PathBuf,
    detached: Option<Arc<dyn ActiveMount>>,
}

impl InUse {
    /// Why nothing else can be done with the filesystem. Not under a lock.
    fn error(&self, source: &FsName) -> ApiError {
        let at = self.mountpoint.display();
        match &self.detached {
            None => ApiError::busy(format!("filesystem {source} is mounted on {at} already"))
                .with_hint(format!("unmount it there first, or show it in another place with `mount --bind {at} DIR`")),
            Some(mount) => {
                ApiError::busy(format!("filesystem {source} was unmounted from {at}, but is still {}", mount.users()))
                    .with_hint("end that, and repeat the command")
            }
        }
    }
}

impl MountTable {
    /// What goes into the state file.
    pub fn persistent(&self) -> Vec<PersistentMount> {
        self.entries.values().filter(|entry| entry.persistent).map(Entry::remembered).collect()
    }

    fn add(
        &mut self,
        source: FsName,
        mountpoint: PathBuf,
        options: Vec<String>,
        state: State,
        persistent: bool,
    ) -> u64 {
        self.last_id += 1;
        let entry = Entry { source, mountpoint, options, state, persistent, message: String::new() };
        self.entries.insert(self.last_id, entry);
        self.last_id
    }

    /// Adds a mount that should exist.
    pub fn add_waiting(&mut self, mount: PersistentMount, message: &str) -> u64 {
        let id = self.add(mount.source, mount.mountpoint, mount.options, State::Waiting, true);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.message = message.to_owned();
        }
        id
    }

    /// Mounts of a pool that are there, the oldest first, with what is to come back of each: nothing of one that was unmounted
    /// and is still used.
    pub fn of_pool(&self, pool: &str) -> Vec<(u64, Option<PersistentMount>)> {
        let there = self.entries.iter().filter(|(_, e)| e.source.pool == pool && e.is_there());
        there.map(|(id, entry)| (*id, entry.has_place().then(|| entry.remembered()))).collect()
    }

    /// Whether a mount is there, and shown by its directory.
    pub fn has_place(&self, id: u64) -> bool {
        self.entries.get(&id).is_some_and(Entry::has_place)
    }

    /// Where filesystems are mounted, or should be.
    pub fn roots(&self) -> Vec<Root> {
        let serves = |e: &Entry| matches!(e.state, State::Mounted(_));
        let root = |e: &Entry| Root { at: e.mountpoint.clone(), fs: e.source.clone(), serves: serves(e) };
        self.entries.values().filter(|e| !e.is_there() || e.has_place()).map(root).collect()
    }

    /// Where a filesystem is mounted.
    pub fn mountpoints_of(&self, name: &FsName) -> Vec<PathBuf> {
        let there = self.entries.values().filter(|e| e.source == *name && e.has_place());
        there.map(|e| e.mountpoint.clone()).collect()
    }

    /// The mount of a filesystem, one that is detached too.
    fn user_of(&self, name: &FsName) -> Option<InUse> {
        let entry = self.entries.values().find(|e| e.source == *name && e.is_there())?;
        let detached = match &entry.state {
            State::Detached(mount) => Some(Arc::clone(mount)),
            _ => None,
        };
        Some(InUse { mountpoint: entry.mountpoint.clone(), detached })
    }

    /// Forgets mounts that are not in the tree: their filesystems are gone.
    pub fn remove_waiting(&mut self, source: impl Fn(&FsName) -> bool) {
        self.entries.retain(|_, e| e.has_place() || !source(&e.source));
    }

    /// Forgets detached mounts of a pool that is gone: their sessions have nothing to serve any more.
    pub fn forget_detached(&mut self, pool: &str) {
        self.entries.retain(|_, e| !(matches!(e.state, State::Detached(_)) && e.source.pool == pool));
    }

    /// Mounts that serve, newest first: later mounts may lie in earlier ones.
    pub fn active(&self) -> Vec<(u64, PathBuf, Arc<dyn ActiveMount>)> {
        let active = self.entries.iter().rev().filter_map(|(id, e)| match &e.state {
            State::Mounted(mount) => Some((*id, e.mountpoint.clone(), Arc::clone(mount))),
            _ => None,
        });
        active.collect()
    }

    /// Takes an entry from `Waiting` to `Mounting`, unless its filesystem is in use.
    fn begin_waiting(&mut self, id: u64) -> Result<Option<(FsName, InUse)>, ApiError> {
        let source = self.entries.get(&id).map(|entry| entry.source.clone()).ok_or_else(|| no_mount(id))?;
        if let Some(user) = self.user_of(&source) {
            return Ok(Some((source, user)));
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.state = State::Mounting { ended: false };
        }
        Ok(None)
    }

    fn info(&self, id: u64) -> Option<MountInfo> {
        let entry = self.entries.get(&id)?;
        Some(MountInfo {
            id,
            source: entry.source.clone(),
            mountpoint: entry.mountpoint.clone(),
            options: entry.options.clone(),
            state: match entry.state {
                State::Waiting | State::Mounting { .. } => MountState::Waiting,
                State::Mounted(_) | State::Unmounting { .. } => MountState::Mounted,
                State::Detached(_) => MountState::Detached,
            },
            message: match entry.state {
                State::Waiting => entry.message.clone(),
                State::Mounting { .. } => "being mounted".to_owned(),
                State::Mounted(_) | State::Unmounting { .. } => String::new(),
                State::Detached(_) => {
                    "unmounted, but still used by open files, a bind mount or a container; ends with them".to_owned()
                }
            },
        })
    }
}

impl Daemon {
    /// All mounts, those that wait included.
    #[must_use]
    pub fn list_mounts(&self) -> Vec<MountInfo> {
        let mounts = self.mounts.lock();
        mounts.entries.keys().filter_map(|id| mounts.info(*id)).collect()
    }

    /// Mounts; returns when the mount serves and will be restored after a restart.
    ///
    /// # Errors
    /// `NotFound` (pool, filesystem, mount point), `Invalid` (mount point, option), `Busy` (mount point).
    pub fn mount(self: &Arc<Self>, request: &MountRequest) -> Result<MountInfo, ApiError> {
        self.admit_change()?;
        check_options(&request.options)?;
        let lock = self.pool_lock(&request.source.pool);
        let _guard = lock.lock();
        self.need_imported(&request.source.pool)?;
        self.need_fs(&request.source)?;
        let mountpoint = self.check_mountpoint(&request.mountpoint)?;
        let id = {
            let mut mounts = self.mounts.lock();
            if let Some(there) = mounts.entries.values().find(|e| e.mountpoint == mountpoint && e.has_place()) {
                return Err(in_use(&mountpoint, &format!("{} is mounted there", there.source)));
            }
            if let Some(user) = mounts.user_of(&request.source) {
                drop(mounts);
                return Err(user.error(&request.source));
            }
            // One that waits for the same directory is what this mount replaces.
            mounts.entries.retain(|_, e| e.is_there() || e.mountpoint != mountpoint);
            let state = State::Mounting { ended: false };
            mounts.add(request.source.clone(), mountpoint, request.options.clone(), state, false)
        };
        let made = self.start_session(id).and_then(|()| {
            if let Some(entry) = self.mounts.lock().entries.get_mut(&id) {
                entry.persistent = true;
            }
            self.save()
        });
        if let Err(e) = made {
            // Not served, or not remembered: undone as a whole.
            let entry = self.mounts.lock().entries.remove(&id);
            end_unwanted(entry.map(|entry| entry.state), &request.mountpoint);
            self.save_or_log();
            return Err(e);
        }
        let info = self.mounts.lock().info(id);
        info.ok_or_else(|| {
            ApiError::new(ErrorKind::Internal, format!("{} was unmounted at once", request.mountpoint.display()))
        })
    }

    /// Gives a mount that serves other options, now and after a restart.
    ///
    /// # Errors
    /// `NotFound` (mount), `Invalid` (option, or one that only a new mount can have), `Busy` (files are open for writing).
    pub fn change_options(&self, id: u64, options: &[String]) -> Result<MountInfo, ApiError> {
        self.admit_change()?;
        check_options(options)?;
        let pool = self.mounts.lock().entries.get(&id).map(|e| e.source.pool.clone()).ok_or_else(|| no_mount(id))?;
        let lock = self.pool_lock(&pool);
        let _guard = lock.lock();
        let (source, mountpoint, before) = match self.mounts.lock().entries.get(&id) {
            Some(e) if matches!(e.state, State::Mounted(_)) => {
                (e.source.to_string(), e.mountpoint.clone(), e.options.clone())
            }
            Some(e) => {
                return Err(ApiError::not_found(format!("{} is not mounted now", e.mountpoint.display()))
                    .with_hint("`qrvsa mount` shows what is mounted"));
            }
            None => return Err(no_mount(id)),
        };
        let spec = MountSpec { source: &source, mountpoint: &mountpoint, options, threads: self.config.fuse_threads };
        self.mounter.remount(&spec, &before).map_err(|e| {
            let error = from_core(&e);
            let message = format!("{} keeps its options: {}", mountpoint.display(), error.message);
            ApiError::new(error.kind, message).with_hint(error.hint)
        })?;
        tracing::info!("{source} on {}: options {:?}", mountpoint.display(), options.join(","));
        let info = {
            let mut mounts = self.mounts.lock();
            if let Some(entry) = mounts.entries.get_mut(&id) {
                entry.options = options.to_vec();
            }
            mounts.info(id)
        };
        self.save()?;
        info.ok_or_else(|| no_mount(id))
    }

    /// Makes the mounts of a pool that wait for it; returns those that failed.
    pub(super) fn activate_waiting(self: &Arc<Self>, pool: &str) -> Vec<Failure> {
        let waiting: Vec<(u64, PathBuf)> = {
            let mounts = self.mounts.lock();
            let of_pool = |e: &Entry| e.source.pool == pool && matches!(e.state, State::Waiting);
            mounts.entries.iter().filter(|(_, e)| of_pool(e)).map(|(id, e)| (*id, e.mountpoint.clone())).collect()
        };
        let mut failed = Vec::new();
        for (id, mountpoint) in waiting {
            let made = self.check_mountpoint(&mountpoint).and_then(|_| {
                let begun = self.mounts.lock().begin_waiting(id)?;
                begun.map_or(Ok(()), |(source, user)| Err(user.error(&source)))?;
                self.start_session(id)
            });
            if let Err(error) = made {
                tracing::error!("cannot restore the mount on {}: {error}", mountpoint.display());
                let left = self.mounts.lock().entries.get_mut(&id).map(|entry| {
                    entry.message = error.to_string();
                    std::mem::replace(&mut entry.state, State::Waiting)
                });
                end_unwanted(left, &mountpoint);
                failed.push(Failure { name: mountpoint.display().to_string(), error });
            }
        }
        failed
    }

    /// Takes an entry from `Mounting` to `Mounted`. On an error the entry is left as it is, without a session, or with
    /// one when the daemon is stopping.
    fn start_session(self: &Arc<Self>, id: u64) -> Result<(), ApiError> {
        let (source, mountpoint, options) = match self.mounts.lock().entries.get(&id) {
            Some(e) => (e.source.clone(), e.mountpoint.clone(), e.options.clone()),
            None => return Err(no_mount(id)),
        };
        let ops = self.engine.open_fs(&source).api()?;
        let daemon = Arc::downgrade(self);
        let on_exit = Box::new(move |end| {
            if let Some(daemon) = daemon.upgrade() {
                daemon.session_ended(id, end);
            }
        });
        let name = source.to_string();
        let spec =
            MountSpec { source: &name, mountpoint: &mountpoint, options: &options, threads: self.config.fuse_threads };
        let mount = self.mounter.mount(ops, &spec, on_exit).map_err(|e| {
            let error = from_core(&e);
            let message = format!("cannot mount {source} on {}: {}", mountpoint.display(), error.message);
            ApiError::new(error.kind, message).with_hint(error.hint)
        })?;
        let mut mounts = self.mounts.lock();
        match mounts.entries.get_mut(&id) {
            Some(entry) if !matches!(entry.state, State::Mounting { ended: true }) => {
                entry.state = State::Mounted(mount);
                entry.message.clear();
            }
            _ => {
                return Err(ApiError::new(
                    ErrorKind::Internal,
                    format!("{} was unmounted at once", mountpoint.display()),
                )
                .with_hint("see the log of the daemon"));
            }
        }
        drop(mounts);
        tracing::info!("{source} mounted on {}", mountpoint.display());
        if self.stopping.load(Ordering::Acquire) {
            return Err(ApiError::new(ErrorKind::Unavailable, "the daemon is stopping"));
        }
        Ok(())
    }

    /// Whether a dead mount of ours may be there: one that we know of and do not serve, or that does not answer.
    fn may_be_stale(&self, path: &Path, error: Option<&std::io::Error>) -> bool {
        let dead = error.is_some_and(host::is_stale_error);
        let mounts = self.mounts.lock();
        mounts.entries.values().any(|e| e.mountpoint == path && (dead || matches!(e.state, State::Waiting)))
    }

    /// A directory that can be mounted on, in its canonical form.
    fn check_mountpoint(&self, path: &Path) -> Result<PathBuf, ApiError> {
        need_absolute(path)?;
        let at = path.display();
        let metadata = match std::fs::metadata(path) {
            looked if self.may_be_stale(path, looked.as_ref().err()) => {
                if self.mounter.detach_stale(path).api()? {
                    std::fs::metadata(path)
                } else {
                    looked
                }
            }
            looked => looked,
        };
        match metadata {
            Ok(metadata) if !metadata.is_dir() => {
                Err(ApiError::invalid(format!("mount point {at} is not a directory")).with_hint("name a directory"))
            }
            Ok(_) => {
                let path = path.canonicalize().map_err(|e| {
                    ApiError::new(ErrorKind::Internal, format!("mount point {at} cannot be resolved: {e}"))
                })?;
                if path.to_str().is_none() {
                    return Err(ApiError::invalid(format!("mount point {at} is not valid UTF-8"))
                        .with_hint("use a directory with a plain name"));
                }
                let ours = self.mounts.lock().entries.values().any(|e| e.mountpoint == path && e.has_place());
                // The table knows better what of ours is there; the caller looks there next.
                if !ours && self.mounter.is_mountpoint(&path) {
                    return Err(in_use(&path, "something else is mounted there"));
                }
                Ok(path)
            }
            Err(e) if host::is_stale_error(&e) => Err(in_use(path, "a dead FUSE mount is there")
                .with_hint(format!("detach it with `umount -l {at}`, then mount again"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(ApiError::not_found(format!("mount point {at} does not exist"))
                    .with_hint(format!("make it with `mkdir -p {at}`")))
            }
            Err(e) => Err(ApiError::invalid(format!("mount point {at} cannot be used: {e}"))
                .with_hint("choose another directory")),
        }
    }

    /// Unmounts on request.
    ///
    /// # Errors
    /// `NotFound`; `Busy`, also when it is out of the tree but still used. `Io` when it is gone, but not everything was made
    /// durable.
    pub fn unmount(&self, id: u64, lazy: bool) -> Result<(), ApiError> {
        self.admit_change()?;
        let ended = self.end_mount(id, lazy);
        ended.and(self.save())
    }

    /// Whether a filesystem has no mount, not even a detached one.
    pub(super) fn need_unmounted(&self, name: &FsName) -> Result<(), ApiError> {
        let user = self.mounts.lock().user_of(name);
        match user {
            None => Ok(()),
            Some(InUse { mountpoint, detached: None }) => {
                let at = mountpoint.display();
                Err(ApiError::busy(format!("filesystem {name} is mounted on {at}"))
                    .with_hint(format!("`qrvsa umount {at}` first")))
            }
            Some(user) => Err(user.error(name)),
        }
    }

    /// Ends a mount and forgets it, or, while it is still used, keeps it as detached. Does not save.
    pub(super) fn end_mount(&self, id: u64, lazy: bool) -> Result<(), ApiError> {
        let (mount, mountpoint) = {
            let mut mounts = self.mounts.lock();
            let entry = mounts.entries.get_mut(&id).ok_or_else(|| no_mount(id))?;
            match std::mem::replace(&mut entry.state, State::Unmounting { ended: false }) {
                State::Mounted(mount) => (mount, entry.mountpoint.clone()),
                State::Detached(mount) => {
                    // It ends by itself.
                    entry.state = State::Detached(Arc::clone(&mount));
                    let mountpoint = entry.mountpoint.clone();
                    drop(mounts);
                    return if lazy { Ok(()) } else { Err(still_used(&mountpoint, &*mount)) };
                }
                State::Waiting => {
                    let entry = mounts.entries.remove(&id);
                    drop(mounts);
                    if let Some(entry) = entry {
                        // what a daemon that died may have left there
                        self.mounter.detach_stale(&entry.mountpoint).api()?;
                    }
                    return Ok(());
                }
                other => {
                    let mountpoint = entry.mountpoint.clone();
                    entry.state = other;
                    return Err(in_use(&mountpoint, "it is being mounted or unmounted right now"));
                }
            }
        };
        let result = mount.unmount(lazy, DETACH_PATIENCE);
        let at = mountpoint.display();
        let detached = mount.is_detached();
        let mut mounts = self.mounts.lock();
        let entry = mounts.entries.get_mut(&id).filter(|e| !matches!(e.state, State::Unmounting { ended: true }));
        let Some(entry) = entry.filter(|_| mount.is_alive()) else {
            // An error of a session that is gone anyway is no error, but for what it could not store.
            mounts.entries.remove(&id);
            drop(mounts);
            tracing::info!("{at} unmounted");
            return match mount.lost() {
                None => Ok(()),
                Some(why) => Err(ApiError::new(
                    ErrorKind::Io,
                    format!("{at} is unmounted, but what was written last could not be made durable: {why}"),
                )
                .with_hint("`qrvsa pool status` shows what is wrong with the pool")),
            };
        };
        if detached || (lazy && result.is_ok()) {
            entry.state = State::Detached(Arc::clone(&mount));
            entry.persistent = false;
            drop(mounts);
            tracing::info!("{at} detached; it is still used");
            return if lazy { Ok(()) } else { Err(still_used(&mountpoint, &*mount)) };
        }
        entry.state = State::Mounted(mount);
        drop(mounts);
        let Err(e) = result else { return Ok(()) };
        let error = from_core(&e);
        let message = format!("cannot unmount {at}: {}", error.message);
        Err(match error.kind {
            ErrorKind::Busy => ApiError::busy(message)
                .with_hint(format!("end what uses it (`fuser -vm {at}` shows it), or detach it with --lazy")),
            kind => ApiError::new(kind, message),
        })
    }

    /// The session of a mount ended, from a thread of the front end that must not wait.
    fn session_ended(self: &Arc<Self>, id: u64, end: SessionEnd) {
        if self.stopping.load(Ordering::Acquire) {
            return;
        }
        let daemon = Arc::clone(self);
        let spawned =
            std::thread::Builder::new().name("session-end".to_owned()).spawn(move || daemon.after_session(id, end));
        if let Err(e) = spawned {
            tracing::error!("cannot handle the end of a mount: {e}");
        }
    }

    fn after_session(&self, id: u64, end: SessionEnd) {
        let mountpoint = {
            let mut mounts = self.mounts.lock();
            let Some(entry) = mounts.entries.get_mut(&id) else { return };
            match &mut entry.state {
                State::Mounting { ended } | State::Unmounting { ended } => {
                    *ended = true;
                    return;
                }
                State::Mounted(_) => entry.mountpoint.clone(),
                State::Detached(_) => {
                    tracing::info!("{}: nothing uses it any more", entry.mountpoint.display());
                    let entry = mounts.entries.remove(&id);
                    drop(mounts);
                    return drop(entry);
                }
                State::Waiting => return,
            }
        };
        let died = match end {
            SessionEnd::Failed(why) => Some(why),
            SessionEnd::Unmounted => {
                self.mounter.is_stale(&mountpoint).then(|| "it does not answer any more".to_owned())
            }
        };
        let system_stops = died.is_none() && self.mounter.system_is_stopping();
        if self.stopping.load(Ordering::Acquire) || system_stops {
            tracing::info!("{} unmounted by the system's shutdown; it will be restored", mountpoint.display());
            return;
        }
        if let Some(why) = &died {
            tracing::error!("the FUSE session of {} ended by itself: {why}", mountpoint.display());
            if let Err(e) = self.mounter.detach_stale(&mountpoint) {
                tracing::error!("{e}");
            }
        }
        // The handle is dropped outside the lock: dropping may wait for threads of the session.
        let _handle = {
            let mut mounts = self.mounts.lock();
            let Some(entry) = mounts.entries.get_mut(&id) else { return };
            if !matches!(entry.state, State::Mounted(_)) {
                return;
            }
            if let Some(why) = died {
                entry.message = format!("its FUSE session ended by itself ({why}); mount it again");
                std::mem::replace(&mut entry.state, State::Waiting)
            } else {
                tracing::info!("{} unmounted by somebody else; forgetting the mount", mountpoint.display());
                match mounts.entries.remove(&id) {
                    Some(entry) => entry.state,
                    None => return,
                }
            }
        };
        self.save_or_log();
    }
}

/// Why an unmount is not through.
fn still_used(mountpoint: &Path, mount: &dyn ActiveMount) -> ApiError {
    let at = mountpoint.display();
    ApiError::busy(format!("{at} is detached, but its filesystem is still {}", mount.users()))
        .with_hint("it ends when nothing uses it any more")
}

/// Ends the session of a mount that was made and shall not be. Outside any lock.
fn end_unwanted(state: Option<State>, mountpoint: &Path) {
    if let Some(State::Mounted(mount)) = state
        && let Err(e) = mount.unmount(true, DETACH_PATIENCE)
    {
        tracing::error!("cannot undo the mount on {}: {e}", mountpoint.display());
    }
}

fn check_options(options: &[String]) -> Result<(), ApiError> {
    match options.iter().find(|o| o.is_empty() || o.contains([',', '\0', '\n'])) {
        Some(option) => Err(ApiError::invalid(format!("mount option {option:?} is not valid"))),
        None => Ok(()),
    }
}

fn no_mount(id: u64) -> ApiError {
    ApiError::not_found(format!("there is no mount {id}")).with_hint("`qrvsa mount` shows what is mounted")
}

fn in_use(mountpoint: &Path, why: &str) -> ApiError {
    let at = mountpoint.display();
    ApiError::busy(format!("mount point {at} is in use: {why}"))
        .with_hint(format!("unmount it with `qrvsa umount {at}`, or choose another directory"))
}
