//! A pool in service: its committer, its jobs, its open filesystems.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use qrvsa_api::names::FsName;
use qrvsa_api::{FsInfo, Property, VolumeInfo};
use qrvsa_core::dataset::{Dataset, Host};
use qrvsa_core::engine::Pool;
use qrvsa_core::engine::status::{Job, JobKind, JobState};
use qrvsa_core::fs::{AtimeMode, FileSystem, Options};
use qrvsa_core::pool::format::entries::Content;
use qrvsa_core::share::Access;
use qrvsa_core::{Error, ErrorKind, Result, fail};

use super::devices::LeftOut;

/// A pool in service.
pub struct Running {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Members that the import did without.
    pub left_out: Vec<LeftOut>,
    stop: Arc<AtomicBool>,
    committer: Mutex<Option<JoinHandle<()>>>,
    scrub: Mutex<Option<JoinHandle<()>>>,
    rebuild: Mutex<Option<JoinHandle<()>>>,
    rebuild_state: Arc<Mutex<RebuildState>>,
    filesystems: Mutex<BTreeMap<String, Arc<FileSystem<Dataset>>>>,
}

/// Whether a rebuild is at work, and whether there is more to do than it knows.
#[derive(Default)]
struct RebuildState {
    running: bool,
    again: bool,
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("the system has threads left for a pool")
}

fn runs(handle: &Mutex<Option<JoinHandle<()>>>) -> bool {
    handle.lock().as_ref().is_some_and(|h| !h.is_finished())
}

impl Running {
    /// Puts a pool into service: starts its committer, and goes on with what was interrupted.
    pub fn start(pool: Arc<Pool>, left_out: Vec<LeftOut>) -> Arc<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let committer = {
            let (pool, stop) = (pool.clone(), stop.clone());
            spawn("qrvsa-commit", move || pool.run_committer(&stop))
        };
        let running = Arc::new(Running {
            pool,
            left_out,
            stop,
            committer: Mutex::new(Some(committer)),
            scrub: Mutex::new(None),
            rebuild: Mutex::new(None),
            rebuild_state: Arc::default(),
            filesystems: Mutex::new(BTreeMap::new()),
        });
        if running.pool.needs_rebuild() {
            running.start_rebuild();
        }
        if running.pool.jobs().get(JobKind::Scrub).is_some_and(|j| j.state() == JobState::Running) {
            running.start_scrub();
        }
        running
    }

    /// Ends the threads.
    pub fn stop(&self) {
        for job in self.pool.jobs().all() {
            if job.state() == JobState::Running {
                job.interrupt();
            }
        }
        for handle in [&self.scrub, &self.rebuild] {
            if let Some(handle) = handle.lock().take() {
                let _ = handle.join();
            }
        }
        // interrupted, not paused by anybody: they go on at the next import
        if let Some(job) = self.pool.jobs().get(JobKind::Scrub) {
            self.pool.mark_interrupted(&job);
        }
        self.stop.store(true, Ordering::Release);
        self.pool.wake_up();
        if let Some(handle) = self.committer.lock().take() {
            let _ = handle.join();
        }
        self.filesystems.lock().clear();
    }

    /// Whether a scrub thread is at work.
    pub fn scrub_runs(&self) -> bool {
        runs(&self.scrub)
    }

    /// Starts a scrub or goes on with one.
    pub fn start_scrub(&self) -> Arc<Job> {
        let mut slot = self.scrub.lock();
        let (job, _) = self.pool.begin_scrub();
        if slot.as_ref().is_none_or(|h| h.is_finished()) {
            let (pool, job) = (self.pool.clone(), job.clone());
            *slot = Some(spawn("qrvsa-scrub", move || pool.run_scrub(&job)));
        }
        job
    }

    /// Pauses or stops the scrub and waits until it has.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn end_scrub(&self, pause: bool) -> Result<Arc<Job>> {
        let job = self.pool.jobs().get(JobKind::Scrub);
        let Some(job) = job.filter(|j| matches!(j.state(), JobState::Running | JobState::Paused)) else {
            fail!(NotFound, "no scrub of pool '{}' is running", self.pool.name);
        };
        if pause {
            job.pause()
        } else {
            job.stop()
        }
        {
            // held while it ends: a start meanwhile waits, and begins anew
            let mut slot = self.scrub.lock();
            match slot.take() {
                Some(handle) => {
                    let _ = handle.join();
                }
                None => self.pool.end_idle_job(&job, pause),
            }
        }
        if !pause && job.state() == JobState::Paused {
            self.pool.end_idle_job(&job, false);
        }
        self.pool.commit_now()?;
        Ok(job)
    }

    /// Starts a rebuild; one that is at work looks again before it ends.
    pub fn start_rebuild(&self) -> Arc<Job> {
        let mut state = self.rebuild_state.lock();
        if state.running
            && let Some(job) = self.pool.jobs().get(JobKind::Rebuild)
        {
            state.again = true;
            return job;
        }
        state.running = true;
        let job = self.pool.new_rebuild();
        let (pool, shared, first) = (self.pool.clone(), self.rebuild_state.clone(), job.clone());
        *self.rebuild.lock() = Some(spawn("qrvsa-rebuild", move || {
            let mut job = first;
            loop {
                pool.run_rebuild(&job);
                let mut state = shared.lock();
                let again = std::mem::take(&mut state.again);
                // mostly the rebuild has seen the newcomers itself, and stays the one that was waited for
                if !again || job.is_interrupted() || !pool.needs_rebuild() {
                    state.running = false;
                    return;
                }
                job = pool.new_rebuild();
            }
        }));
        job
    }

    fn dataset(&self, name: &str) -> Result<Arc<Dataset>> {
        match self.pool.dataset(name) {
            Some(dataset) if dataset.content() == Content::FileSystem => Ok(dataset),
            Some(_) => {
                fail!(Invalid, "'{}/{name}' is a volume, not a filesystem", self.pool.name)
            }
            None => fail!(NotFound, "'{}/{name}' does not exist; make it with 'fs create'", self.pool.name),
        }
    }

    /// The filesystem of this name; the same one for everybody.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be read.
    pub fn filesystem(&self, name: &str) -> Result<Arc<FileSystem<Dataset>>> {
        let mut open = self.filesystems.lock();
        if let Some(fs) = open.get(name) {
            return Ok(fs.clone());
        }
        let dataset = self.dataset(name)?;
        let atime = atime_mode(&dataset.property("atime").unwrap_or_default()).unwrap_or_default();
        let fs = Arc::new(FileSystem::open(dataset, Options { atime })?);
        open.insert(name.to_owned(), fs.clone());
        Ok(fs)
    }

    /// Who uses a file of the pool as a disk, or only of one filesystem.
    pub fn file_user(&self, name: Option<&str>) -> Option<Arc<str>> {
        let open: Vec<_> = {
            let open = self.filesystems.lock();
            open.iter().filter(|(of, _)| name.is_none_or(|name| name == *of)).map(|(_, fs)| fs.clone()).collect()
        };
        open.iter().find_map(|fs| fs.claimed_by())
    }

    /// Forgets an open filesystem.
    pub fn forget_filesystem(&self, name: &str) {
        self.filesystems.lock().remove(name);
    }

    /// Checks a property without setting it.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check_property(&self, key: &str, value: &str) -> Result<()> {
        match key {
            "recordsize" => record_size(value).map(|_| ()),
            "atime" => atime_mode(value).map(|_| ()).ok_or_else(|| bad_atime(value)),
            "volumes" => match Access::parse(value) {
                Some(_) => Ok(()),
                None => fail!(Invalid, "'{value}' is no value of volumes; write off, ro or rw"),
            },
            _ => {
                fail!(Invalid, "there is no property '{key}' that can be set; there are recordsize, atime and volumes")
            }
        }
    }

    /// Sets a property.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`.
    pub fn set_property(&self, name: &str, key: &str, value: &str) -> Result<()> {
        self.check_property(key, value)?;
        let fs = self.filesystem(name)?;
        let stored = match key {
            "recordsize" => {
                let bytes = record_size(value)?;
                fs.set_record_size(bytes)?;
                bytes.to_string()
            }
            // looked at with each use
            "volumes" => value.to_owned(),
            _ => {
                fs.set_atime_mode(atime_mode(value).ok_or_else(|| bad_atime(value))?);
                value.to_owned()
            }
        };
        fs.store().set_property(key, &stored);
        self.pool.commit()
    }

    /// All properties.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn properties(&self, name: &str) -> Result<Vec<Property>> {
        let fs = self.filesystem(name)?;
        let dataset = fs.store();
        let atime = match fs.atime_mode() {
            AtimeMode::Relative => "relatime",
            AtimeMode::Never => "off",
            AtimeMode::Strict => "on",
        };
        let entry = |key: &str, value: String, read_only| Property { key: key.to_owned(), value, read_only };
        Ok(vec![
            entry("recordsize", fs.record_size().to_string(), false),
            entry("atime", atime.to_owned(), false),
            entry("volumes", dataset.property("volumes").unwrap_or_else(|| "ro".to_owned()), false),
            entry("created_unix_s", (dataset.created_ns / 1_000_000_000).to_string(), true),
            entry("used_bytes", self.pool.dataset_used_bytes(dataset)?.to_string(), true),
        ])
    }

    /// The filesystems of the pool.
    ///
    /// # Errors
    /// When a tree cannot be read.
    pub fn list_filesystems(&self) -> Result<Vec<FsInfo>> {
        let usage = self.pool.usage();
        let mut list = Vec::new();
        for dataset in self.pool.datasets().iter().filter(|d| d.content() == Content::FileSystem) {
            let name = dataset.name();
            let text = if name.is_empty() { self.pool.name.clone() } else { format!("{}/{name}", self.pool.name) };
            let name = FsName::from_str(&text)
                .map_err(|_| Error::new(ErrorKind::Corrupt, format!("a filesystem has the name '{text}'")))?;
            list.push(FsInfo {
                name,
                used_bytes: self.pool.dataset_used_bytes(dataset)?,
                available_bytes: usage.available_bytes,
                mountpoints: Vec::new(),
            });
        }
        Ok(list)
    }

    /// The volumes of the pool.
    ///
    /// # Errors
    /// When a tree cannot be read.
    pub fn list_volumes(&self) -> Result<Vec<VolumeInfo>> {
        let available = self.pool.usage().available_bytes;
        let of = |volume: qrvsa_core::engine::volumes::VolumeInfo| {
            let in_use = self.pool.volume_in_use(&volume.name);
            let left = volume.settings.size_bytes.saturating_sub(volume.allocated_bytes);
            VolumeInfo {
                name: FsName { pool: self.pool.name.clone(), fs: Some(volume.name) },
                size_bytes: volume.settings.size_bytes,
                block_bytes: volume.settings.block_bytes,
                record_bytes: volume.settings.record_bytes,
                reserve: volume.reserved,
                allocated_bytes: volume.allocated_bytes,
                available_bytes: if volume.reserved { left } else { left.min(available) },
                id: format!("{:032x}", volume.settings.id),
                naa: format!("{:016x}", volume.settings.naa()),
                created_unix_s: volume.created_ns / 1_000_000_000,
                in_use,
            }
        };
        Ok(self.pool.list_volumes()?.into_iter().map(of).collect())
    }
}

fn bad_atime(value: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("'{value}' is no value of atime; write on, off or relatime"))
}

fn atime_mode(value: &str) -> Option<AtimeMode> {
    match value {
        "" | "relatime" => Some(AtimeMode::Relative),
        "off" | "noatime" => Some(AtimeMode::Never),
        "on" | "strictatime" => Some(AtimeMode::Strict),
        _ => None,
    }
}

fn record_size(value: &str) -> Result<u32> {
    let bytes = qrvsa_api::units::parse_bytes(value).and_then(|b| u32::try_from(b).ok());
    match bytes.filter(|b| b.is_power_of_two() && (4096..=1 << 20).contains(b)) {
        Some(bytes) => Ok(bytes),
        None => fail!(Invalid, "'{value}' is no record size; write a power of two from 4K to 1M"),
    }
}
