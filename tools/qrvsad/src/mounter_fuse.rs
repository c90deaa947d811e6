//! Mounts by the FUSE front end.

use std::sync::Arc;
use std::time::Duration;

use qrvsa_core::Result;
use qrvsa_core::fs::ops::Operations;
use qrvsa_fuse::{Exit, Mount, MountOptions, Unmount};

use crate::mounter::{ActiveMount, MountSpec, Mounter, OnExit, SessionEnd};

/// Makes FUSE mounts.
pub struct FuseMounter;

struct FuseMount(Mount);

impl Mounter for FuseMounter {
    fn mount(&self, ops: Arc<dyn Operations>, spec: &MountSpec<'_>, on_exit: OnExit) -> Result<Arc<dyn ActiveMount>> {
        let mut options = MountOptions::parse(spec.source, &spec.options.join(","))?;
        if let Some(threads) = spec.threads {
            options.threads = threads.max(1);
        }
        options.check()?;
        let mount = qrvsa_fuse::mount(ops, spec.mountpoint, &options)?;
        mount.on_exit(move |exit| {
            on_exit(match exit {
                Exit::Unmounted => SessionEnd::Unmounted,
                Exit::Failed(why) => SessionEnd::Failed(why.clone()),
            });
        });
        Ok(Arc::new(FuseMount(mount)))
    }

    fn remount(&self, spec: &MountSpec<'_>, before: &[String]) -> Result<()> {
        let parse = |options: &[String]| MountOptions::parse(spec.source, &options.join(","));
        qrvsa_fuse::remount::change(spec.mountpoint, &parse(before)?, &parse(spec.options)?)
    }
}

impl ActiveMount for FuseMount {
    fn unmount(&self, lazy: bool, patience: Duration) -> Result<()> {
        self.0.unmount_within(if lazy { Unmount::Lazy } else { Unmount::Normal }, patience)
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    fn is_detached(&self) -> bool {
        self.0.is_detached()
    }

    fn users(&self) -> String {
        self.0.users()
    }

    fn lost(&self) -> Option<String> {
        self.0.lost().map(|errno| errno.desc().to_owned())
    }
}
