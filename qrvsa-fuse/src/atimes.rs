//! What a mount wants about access times, now: its options, and the flags that a remount has changed since.
//!
//! The kernel leaves access times of FUSE mounts to the server and tells it nothing of a remount, whoever makes it. But the
//! table of mounts can be polled: it says whether anything was mounted since, for less than a microsecond, and only then it
//! is read again. A change holds for every request that comes after it. Bind mounts have flags of their own, which do not count.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::RwLock;
use qrvsa_core::fs::AtimeMode;
use qrvsa_core::fs::ops::MountAtime;

use crate::mountinfo::{self, Identity};
use crate::options::{Atime, MountOptions};
use crate::remount::current_flags;

/// What one mount wants.
pub(crate) struct Atimes {
    options: MountAtime,
    now: RwLock<MountAtime>,
    watched: OnceLock<Watched>,
}

/// The mount in the table of mounts.
struct Watched {
    table: File,
    identity: Identity,
    /// Its flags at the beginning.
    first: MsFlags,
}

impl Atimes {
    pub fn new(options: &MountOptions) -> Atimes {
        let wanted = MountAtime { mode: options.atime.map(mode), no_dirs: options.nodiratime };
        let flags = options.flags();
        let now = RwLock::new(with_flags(wanted, flags, flags));
        Atimes { options: wanted, now, watched: OnceLock::new() }
    }

    /// Follows the flags of this mount from now on.
    pub fn watch(&self, identity: Identity) {
        // opened before it is read: a change in between shows in the first poll
        let watched = File::open(mountinfo::PATH).map_err(|error| error.to_string()).and_then(|table| {
            let first = flags_of(identity).ok_or("the mount is not there")?;
            Ok(Watched { table, identity, first })
        });
        match watched {
            Ok(watched) => drop(self.watched.set(watched)),
            Err(error) => tracing::warn!(error, "access times will not follow a remount"),
        }
    }

    /// What the mount wants now.
    pub fn ask(&self) -> MountAtime {
        if let Some(watched) = self.watched.get()
            && watched.has_changed()
            && let Some(flags) = flags_of(watched.identity)
        {
            *self.now.write() = with_flags(self.options, watched.first, flags);
        }
        *self.now.read()
    }
}

impl Watched {
    /// Whether anything was mounted, unmounted or remounted since the last call.
    fn has_changed(&self) -> bool {
        let mut table = [PollFd::new(self.table.as_fd(), PollFlags::POLLPRI)];
        poll(&mut table, PollTimeout::ZERO).is_ok_and(|events| events > 0)
    }
}

/// The flags of a mount; `None` when it is gone.
fn flags_of(identity: Identity) -> Option<MsFlags> {
    let entry = mountinfo::read().ok()?.into_iter().find(|entry| entry.identity == identity)?;
    Some(current_flags(&entry.mount_options, &entry.super_options))
}

/// What `options` want of a mount whose flags were `first` when it was made, and are `now`. A flag counts once it has
/// changed: in the beginning the options say more, as the kernel has no flag for "as the filesystem is set".
fn with_flags(options: MountAtime, first: MsFlags, now: MsFlags) -> MountAtime {
    let changed = first ^ now;
    let mode = if now.contains(MsFlags::MS_RDONLY) {
        Some(AtimeMode::Never)
    } else if changed.intersects(MsFlags::MS_NOATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME) {
        Some(if now.contains(MsFlags::MS_NOATIME) {
            AtimeMode::Never
        } else if now.contains(MsFlags::MS_RELATIME) {
            AtimeMode::Relative
        } else {
            AtimeMode::Strict
        })
    } else {
        options.mode
    };
    MountAtime { mode, no_dirs: options.no_dirs ^ changed.contains(MsFlags::MS_NODIRATIME) }
}

fn mode(atime: Atime) -> AtimeMode {
    match atime {
        Atime::Relatime => AtimeMode::Relative,
        Atime::Noatime => AtimeMode::Never,
        Atime::Strictatime => AtimeMode::Strict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(list: &str) -> MountAtime {
        Atimes::new(&MountOptions::parse("tank/a", list).unwrap()).ask()
    }

    #[test]
    fn options_that_are_named() {
        let all = |mode, no_dirs| MountAtime { mode, no_dirs };
        assert_eq!(wanted(""), MountAtime::default());
        assert_eq!(wanted("noatime,atime,nodiratime,diratime"), MountAtime::default());
        assert_eq!(wanted("noatime"), all(Some(AtimeMode::Never), false));
        assert_eq!(wanted("strictatime,nodiratime"), all(Some(AtimeMode::Strict), true));
        assert_eq!(wanted("relatime"), all(Some(AtimeMode::Relative), false));
        assert_eq!(wanted("strictatime,ro"), all(Some(AtimeMode::Never), false));
    }

    #[test]
    fn flags_count_once_they_have_changed() {
        use MsFlags as F;
        let (none, strict) = (MountAtime::default(), MountAtime { mode: Some(AtimeMode::Strict), no_dirs: true });
        let relatime = F::MS_RELATIME | F::MS_NOSUID;
        assert_eq!(with_flags(none, relatime, F::MS_RELATIME), none);
        assert_eq!(with_flags(none, relatime, relatime | F::MS_RDONLY).mode, Some(AtimeMode::Never));
        assert_eq!(with_flags(none, relatime, F::MS_NOATIME).mode, Some(AtimeMode::Never));
        assert_eq!(with_flags(none, relatime, F::MS_STRICTATIME).mode, Some(AtimeMode::Strict));
        assert_eq!(with_flags(none, F::MS_NOATIME, F::MS_RELATIME).mode, Some(AtimeMode::Relative));
        assert!(with_flags(none, relatime, relatime | F::MS_NODIRATIME).no_dirs);
        assert!(!with_flags(strict, relatime | F::MS_NODIRATIME, relatime).no_dirs);
        assert_eq!(with_flags(strict, relatime, relatime), strict);
        // a helper that mounts without the flags
        assert_eq!(with_flags(strict, F::MS_RDONLY | relatime, relatime), strict);
    }
}
