//! The storage engine behind the daemon: pools of `qrvsa-core`, with a committer thread each and a thread per job.

mod convert;
mod debug;
mod devices;
mod running;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use qrvsa_api::names::FsName;
use qrvsa_api::{
    CheckReport, CreateFs, CreatePool, CreateVolume, DebugEntry, Fragment, FsInfo, JobInfo, PoolStatus, PoolSummary,
    Property, ReplaceDevice, ScrubAction, SetProperty, VolumeInfo,
};
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::engine::status::{JobKind, JobState};
use qrvsa_core::engine::{Options, Pool};
use qrvsa_core::env::Environment;
use qrvsa_core::fs::ops::Operations;
use qrvsa_core::pool::space::Geometry;
use qrvsa_core::share::{DiskFile, WithVolumes};
use qrvsa_core::vhdx::ImageFile;
use qrvsa_core::volume::{Spec, Volume};
use qrvsa_core::{Error, ErrorKind, Result, fail};

use crate::engine::{CheckProgress, Engine, EngineOptions, FileFacts, ImportOutcome, ImportRequest};
use devices::{Found, LeftOut};
use running::Running;

/// The engine of the daemon.
pub struct CoreEngine {
    options: EngineOptions,
    pools: RwLock<BTreeMap<String, Arc<Running>>>,
    /// Held while the set of pools changes, so that names and devices are claimed once.
    changing: Mutex<()>,
}

impl CoreEngine {
    /// An engine without pools.
    pub fn new(options: EngineOptions) -> CoreEngine {
        CoreEngine { options, pools: RwLock::new(BTreeMap::new()), changing: Mutex::new(()) }
    }

    fn pool(&self, name: &str) -> Result<Arc<Running>> {
        match self.pools.read().get(name) {
            Some(pool) => Ok(pool.clone()),
            None => fail!(NotFound, "pool '{name}' is not imported"),
        }
    }

    /// What a pool is run with: the first gets most of the memory, further ones share the rest.
    fn pool_options(&self) -> Options {
        let share = match self.pools.read().len() {
            0 => 60,
            1 => 20,
            _ => 5,
        };
        Options {
            memory_bytes: (self.options.memory_limit_bytes / 100 * share).max(16 << 20),
            commit_interval: self.options.sync_interval,
            read_only: false,
            log_bytes: None,
            background_rate: self.options.scrub_rate_bytes_per_s.unwrap_or(0),
        }
    }

    fn add(&self, pool: Arc<Pool>, left_out: Vec<LeftOut>) -> Arc<Running> {
        let running = Running::start(pool, left_out);
        self.pools.write().insert(running.pool.name.clone(), running.clone());
        running
    }

    /// Imports a pool from members that were found, without those that cannot be used.
    fn import_found(&self, found: &Found) -> Result<()> {
        let (members, left_out) = devices::open_members(found)?;
        devices::need_newest(&found.name, &members, &left_out)?;
        let pool = Pool::import(Environment::system(), self.pool_options(), members).map_err(|e| {
            match left_out.first() {
                // why it is not enough
                Some(out) => {
                    Error::new(e.kind(), format!("{} cannot be used ({}); {e}", out.path.display(), out.error))
                }
                None => e,
            }
        })?;
        self.add(pool, left_out);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<Arc<Running>> {
        match self.pools.write().remove(name) {
            Some(pool) => Ok(pool),
            None => fail!(NotFound, "pool '{name}' is not imported"),
        }
    }
}

/// A number for a filesystem that is no device number of this machine's.
fn filesystem_number(pool: u128, dataset: u64) -> u64 {
    let [a, b, c, d, e, f, g, h, rest @ ..] = pool.to_le_bytes();
    let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes(rest);
    (low ^ dataset.rotate_left(32)) | 1 << 63
}

impl Engine for CoreEngine {
    fn create_pool(&self, request: &CreatePool) -> Result<()> {
        let _changing = self.changing.lock();
        if self.pools.read().contains_key(&request.name) {
            fail!(Exists, "a pool named '{}' is imported already; choose another name", request.name);
        }
        qrvsa_core::engine::create::check_name(&request.name, "pool")?;
        let geometry = match &request.geometry {
            Some(g) => Some(Geometry::new(u32::from(g.data), u32::from(g.parity))?),
            None => None,
        };
        let wanted = geometry.unwrap_or_else(|| Geometry::default_for(request.devices.len()));
        if request.devices.len() < wanted.columns() {
            fail!(
                Invalid,
                "geometry {wanted} needs at least {} devices, {} were given; give more or choose a smaller --geometry",
                wanted.columns(),
                request.devices.len()
            );
        }
        let mut opened = devices::open_new(&request.devices, request.force)?;
        let pool = Pool::create(
            Environment::system(),
            self.pool_options(),
            &request.name,
            geometry,
            opened.devices().to_vec(),
        )?;
        opened.keep();
        self.add(pool, Vec::new());
        Ok(())
    }

    fn list(&self) -> Result<Vec<PoolSummary>> {
        Ok(self.pools.read().values().map(|p| convert::status(p).summary).collect())
    }

    fn status(&self, pool: &str) -> Result<PoolStatus> {
        Ok(convert::status(&*self.pool(pool)?))
    }

    fn import(&self, request: &ImportRequest) -> Result<ImportOutcome> {
        let _changing = self.changing.lock();
        if let Some(name) = &request.name
            && self.pools.read().contains_key(name)
        {
            fail!(Exists, "pool '{name}' is imported already");
        }
        let mut outcome = ImportOutcome::default();
        let all = devices::find_members(&request.devices, &request.search);
        let is_wanted = |found: &&Found| {
            request.name.as_ref().is_none_or(|name| *name == found.name || *name == found.id_text())
                && !self.pools.read().values().any(|p| p.pool.id == found.id)
        };
        let by_id = |found: &Found| request.name.as_ref().is_some_and(|name| *name == found.id_text());
        let mut by_name: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
        for found in all.iter().filter(is_wanted) {
            let (name, id) = (&found.name, found.id_text());
            let known = request.id.as_ref().or_else(|| request.known.get(name).filter(|_| !by_id(found)));
            let other = match known {
                Some(known) if *known != id => format!(
                    "another pool of that name is not imported while the one with id {known} is remembered; 'pool import {id}' \
                     puts it in its place, with its mounts and LUNs"
                ),
                _ if self.pools.read().contains_key(name) => {
                    format!("another pool named '{name}' is imported; export it before importing this one (id {id})")
                }
                _ => {
                    by_name.entry(name).or_default().push(found);
                    continue;
                }
            };
            outcome.namesakes.push((name.clone(), Error::new(ErrorKind::Exists, other)));
        }
        for (name, pools) in by_name {
            let Some(meant) = devices::meant(&pools) else {
                let ids: Vec<String> = pools.iter().map(|pool| pool.id_text()).collect();
                let text = format!(
                    "there are {} pools named '{name}', with ids {} (the one made last first); import one by its id: 'pool import ID'",
                    ids.len(),
                    ids.join(", ")
                );
                outcome.failed.push((name.to_owned(), Error::new(ErrorKind::Exists, text)));
                continue;
            };
            for other in pools.iter().filter(|pool| pool.id != meant.id) {
                let text =
                    format!("what is left of another pool named '{name}' (id {}) is not imported", other.id_text());
                outcome.namesakes.push((name.to_owned(), Error::new(ErrorKind::Exists, text)));
            }
            match self.import_found(meant) {
                Ok(()) => outcome.imported.push(name.to_owned()),
                Err(e) => outcome.failed.push((name.to_owned(), e)),
            }
        }
        let Some(name) = request.name.as_ref().filter(|_| outcome.imported.is_empty()) else { return Ok(outcome) };
        if !outcome.failed.is_empty() {
            let (_, first) = outcome.failed.remove(0);
            outcome.failed.iter().for_each(|(name, e)| tracing::error!("another pool named '{name}': {e}"));
            return Err(first);
        }
        match outcome.namesakes.pop() {
            // it was asked for by its id
            Some((other_name, other)) if other_name != *name => Err(other),
            Some((_, other)) => fail!(NotFound, "no device of pool '{name}' was found; {other}"),
            None => fail!(
                NotFound,
                "no device of pool '{name}' was found; name the directory of its devices with --search DIR"
            ),
        }
    }

    fn export(&self, pool: &str) -> Result<()> {
        let _changing = self.changing.lock();
        let running = self.remove(pool)?;
        running.stop();
        running.pool.close()
    }

    fn destroy(&self, pool: &str) -> Result<()> {
        let _changing = self.changing.lock();
        let running = self.remove(pool)?;
        running.stop();
        running.pool.destroy()
    }

    fn offline(&self, pool: &str, device: &str) -> Result<()> {
        self.pool(pool)?.pool.offline(device)
    }

    fn online(&self, pool: &str, device: &str) -> Result<()> {
        let running = self.pool(pool)?;
        let path = match running.pool.find_member(device) {
            Ok(member) => member.path(),
            Err(_) => device.to_owned(),
        };
        let opened = devices::open_existing(Path::new(&path))?;
        let candidate = Candidate::new(opened).map_err(|e| {
            Error::new(ErrorKind::Invalid, format!("{path} is not the device that left; use 'pool replace'"))
                .with_source(e)
        })?;
        running.pool.online(device, candidate)?;
        running.start_rebuild();
        Ok(())
    }

    fn replace(&self, pool: &str, request: &ReplaceDevice) -> Result<String> {
        let running = self.pool(pool)?;
        running.pool.find_member(&request.old)?;
        let mut opened = devices::open_new(std::slice::from_ref(&request.new), request.force)?;
        running.pool.begin_replace(&request.old, opened.devices()[0].clone())?;
        opened.keep();
        Ok(convert::job_id(&running, &running.start_rebuild()))
    }

    fn scrub(&self, pool: &str, action: ScrubAction) -> Result<String> {
        let running = self.pool(pool)?;
        match action {
            ScrubAction::Start => {
                if let Some(job) = running.pool.jobs().get(JobKind::Scrub)
                    && job.state() == JobState::Running
                    && running.scrub_runs()
                {
                    fail!(Busy, "a scrub of pool '{pool}' is running; watch it with 'pool status'");
                }
                Ok(convert::job_id(&running, &running.start_scrub()))
            }
            ScrubAction::Pause | ScrubAction::Stop => {
                let job = running.end_scrub(action == ScrubAction::Pause)?;
                Ok(convert::job_id(&running, &job))
            }
        }
    }

    fn sync(&self, pool: &str) -> Result<()> {
        use qrvsa_core::dataset::Host;
        self.pool(pool)?.pool.commit_now()
    }

    fn fs_create(&self, pool: &str, request: &CreateFs) -> Result<()> {
        let running = self.pool(pool)?;
        for p in &request.properties {
            running.check_property(&p.key, &p.value)?;
        }
        running.pool.create_dataset(&request.name)?;
        for p in &request.properties {
            running.set_property(&request.name, &p.key, &p.value)?;
        }
        Ok(())
    }

    fn fs_list(&self, pool: &str) -> Result<Vec<FsInfo>> {
        self.pool(pool)?.list_filesystems()
    }

    fn fs_destroy(&self, fs: &FsName) -> Result<()> {
        let running = self.pool(&fs.pool)?;
        let name = fs.fs.as_deref().unwrap_or_default();
        running.forget_filesystem(name);
        running.pool.destroy_dataset(name)
    }

    fn fs_get(&self, fs: &FsName) -> Result<Vec<Property>> {
        self.pool(&fs.pool)?.properties(fs.fs.as_deref().unwrap_or_default())
    }

    fn fs_set(&self, fs: &FsName, property: &SetProperty) -> Result<()> {
        let running = self.pool(&fs.pool)?;
        running.set_property(fs.fs.as_deref().unwrap_or_default(), &property.key, &property.value)
    }

    fn open_fs(&self, fs: &FsName) -> Result<Arc<dyn Operations>> {
        let running = self.pool(&fs.pool)?;
        let inner = running.filesystem(fs.fs.as_deref().unwrap_or_default())?;
        let dataset = inner.store().clone();
        Ok(Arc::new(WithVolumes::new(inner, dataset, running.pool.clone())))
    }

    fn file_facts(&self, fs: &FsName, ino: u64) -> Result<FileFacts> {
        let running = self.pool(&fs.pool)?;
        let filesystem = running.filesystem(fs.fs.as_deref().unwrap_or_default())?;
        filesystem.getattr(ino)?;
        let path = filesystem.path_of(ino);
        let path = path.map(|path| PathBuf::from(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path))));
        let dataset = filesystem.store().id;
        let id = format!("{:032x}-{dataset}-{ino}", running.pool.id);
        Ok(FileFacts { id, identity: (filesystem_number(running.pool.id, dataset), ino), path })
    }

    fn open_file(&self, fs: &FsName, ino: u64, write: bool, user: &str, path: &Path) -> Result<Arc<dyn ImageFile>> {
        let running = self.pool(&fs.pool)?;
        let filesystem = running.filesystem(fs.fs.as_deref().unwrap_or_default())?;
        let number = filesystem_number(running.pool.id, filesystem.store().id);
        Ok(Arc::new(DiskFile::open(filesystem, ino, write, user, path.to_owned(), number)?))
    }

    fn file_user(&self, pool: &str, fs: Option<&FsName>) -> Option<String> {
        let running = self.pool(pool).ok()?;
        running.file_user(fs.map(|fs| fs.fs.as_deref().unwrap_or_default())).map(|user| user.to_string())
    }

    fn volume_create(&self, pool: &str, request: &CreateVolume) -> Result<()> {
        let spec = Spec {
            size_bytes: request.size_bytes,
            block_bytes: request.block_bytes,
            record_bytes: request.record_bytes,
            reserve: request.reserve,
        };
        self.pool(pool)?.pool.create_volume(&request.name, &spec)
    }

    fn volume_list(&self, pool: &str) -> Result<Vec<VolumeInfo>> {
        self.pool(pool)?.list_volumes()
    }

    fn volume_resize(&self, volume: &FsName, size_bytes: u64, force: bool) -> Result<()> {
        self.pool(&volume.pool)?.pool.resize_volume(volume.fs.as_deref().unwrap_or_default(), size_bytes, force)
    }

    fn volume_destroy(&self, volume: &FsName) -> Result<()> {
        self.pool(&volume.pool)?.pool.destroy_dataset(volume.fs.as_deref().unwrap_or_default())
    }

    fn open_volume(&self, volume: &FsName) -> Result<Arc<Volume>> {
        self.pool(&volume.pool)?.pool.open_volume(volume.fs.as_deref().unwrap_or_default())
    }

    fn put_blob(&self, pool: &str, name: &str, bytes: &[u8]) -> Result<()> {
        self.pool(pool)?.pool.put_blob(name, bytes)
    }

    fn blob(&self, pool: &str, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.pool(pool)?.pool.blob(name))
    }

    fn remove_blob(&self, pool: &str, name: &str) -> Result<()> {
        self.pool(pool)?.pool.remove_blob(name)
    }

    fn check(&self, pool: &str, deep: bool, progress: &mut dyn FnMut(CheckProgress) -> bool) -> Result<CheckReport> {
        let running = self.pool(pool)?;
        let total_bytes = if deep { running.pool.space.allocated_bytes().iter().sum() } else { 0 };
        progress(CheckProgress { done_bytes: 0, total_bytes, problems: 0 });
        let mut report = running
            .pool
            .check(deep, &mut |done_bytes| progress(CheckProgress { done_bytes, total_bytes, problems: 0 }))?;
        if let Some(why) = &report.unfinished {
            if report.problem_count == 0 {
                fail!(Busy, "the check of pool '{pool}' is not complete: {why}");
            }
            report.problems.push(format!("the check is not complete: {why}"));
        }
        let counts = [
            ("nodes", report.nodes),
            ("extents", report.extents),
            ("objects", report.objects),
            ("bytes_verified", report.bytes_verified),
            ("problems", report.problem_count),
        ];
        Ok(CheckReport {
            problems: report.problems,
            counts: counts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        })
    }

    fn locate(&self, fs: &FsName, ino: u64) -> Result<Vec<Fragment>> {
        let running = self.pool(&fs.pool)?;
        // what is only in memory has no place yet
        {
            use qrvsa_core::dataset::Host;
            running.pool.commit_now()?;
        }
        let name = fs.fs.as_deref().unwrap_or_default();
        let Some(dataset) = running.pool.dataset(name) else { fail!(NotFound, "'{fs}' does not exist") };
        Ok(running.pool.locate(dataset.id, ino)?.into_iter().map(convert::fragment).collect())
    }

    fn labels(&self, device: &Path) -> Result<Vec<DebugEntry>> {
        debug::labels(device)
    }

    fn uberblocks(&self, device: &Path) -> Result<Vec<DebugEntry>> {
        debug::uberblocks(device)
    }

    fn jobs(&self) -> Vec<JobInfo> {
        let pools: Vec<Arc<Running>> = self.pools.read().values().cloned().collect();
        pools
            .iter()
            .flat_map(|p| p.pool.jobs().all().into_iter().map(|j| convert::job(p, &j)).collect::<Vec<_>>())
            .collect()
    }
}
