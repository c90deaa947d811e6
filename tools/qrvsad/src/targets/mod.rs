//! iSCSI targets: what exists, what of it serves, and what must survive a restart.
//!
//! ```text
//!  model     what is remembered, on disk
//!  luns      storage and appearance of logical units
//!  keep      where a unit's own state lies (reservations, saved mode pages)
//!  leaving   pools that are about to go
//!  report    what is told about it all
//!  access    access lists, users, sessions
//!  volume    a pool volume as storage
//!  vhdx      a VHDX file as storage
//!  places    which file of our own filesystems a path leads to
//!  below     such a file as storage
//!  claims    other files and block devices as storage
//!  portals   where initiators come in
//!  retry     what could not be had, later
//!  tgt       tgt's management protocol: requests, and the text of its answers
//! ```
//!
//! **Rules.** One change at a time, under `changing`: the model is copied and edited, the service follows, the file is
//! written, and only then does the new model hold; when the file cannot be written, the service goes back. What is to go,
//! goes last, when it is written that it is gone. Lists read the model that holds and wait for nothing. Storage that cannot be
//! opened makes its unit unavailable, not the target; it is tried again when a pool is imported.
//!
//! Nobody can log in to a target before all of its units are there, and after a start to none before all of all are: an
//! initiator that finds a unit missing gives up on it for good.

mod access;
mod below;
mod claims;
mod keep;
mod leaving;
mod luns;
pub mod model;
pub mod places;
mod portals;
mod report;
mod retry;
pub mod tgt;
mod vhdx;
mod volume;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use qrvsa_api::{ApiError, CreateTarget, ErrorKind, LunSource, TargetInfo, UpdateTarget};
use qrvsa_iscsi::config::{
    Account, AclRule, DiscoveryConfig, IscsiName, Limits, PortalAddress, Redirect, Secret, TargetConfig, TargetState,
    Users,
};
use qrvsa_iscsi::scsi::TargetUnits;
use qrvsa_iscsi::service::{ErrorKind as ServiceErrorKind, Service, ServiceError};

use crate::config::Config;
use crate::engine::Engine;
use crate::state::StateDir;
use model::Model;

/// The one portal group: every portal leads to the same sessions.
const GROUP_TAG: u16 = 1;
/// How long initiators are given to log out when the daemon ends.
const LOGOUT_PATIENCE: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, ApiError>;

/// The targets of the daemon.
pub struct Targets {
    /// For threads that open storage.
    me: Weak<Targets>,
    engine: Arc<dyn Engine>,
    state: Arc<StateDir>,
    service: Service,
    /// Portals of targets that have none of their own.
    defaults: Vec<SocketAddr>,
    model: RwLock<Arc<Model>>,
    changing: Mutex<()>,
    running: RwLock<BTreeMap<u32, Running>>,
    portal_errors: Mutex<BTreeMap<SocketAddr, String>>,
    /// Units that are unavailable because somebody else uses their storage: target and number.
    busy_units: Mutex<VecDeque<(u32, u64)>>,
    /// Ends the thread that tries those portals and units again, while there is one.
    retry: Mutex<Option<Sender<()>>>,
    /// Claims on files and block devices outside of pools.
    files: claims::FileClaims,
    /// Where filesystems are mounted, or will be.
    roots: Roots,
    /// What the file remembered, from the start of the daemon until the targets serve.
    remembered: Mutex<Option<Model>>,
    /// Files of units that do not serve yet, claimed before somebody can open them through a mount.
    held: Mutex<BTreeMap<(u32, u64), below::Held>>,
    /// Units whose storage is being opened, by target and number, and whether to do so again if that fails.
    opening: Mutex<BTreeMap<(u32, u64), Arc<AtomicBool>>>,
    /// Pools that are about to go.
    leaving: Mutex<BTreeSet<String>>,
    /// The daemon ends: nothing changes any more.
    stopped: AtomicBool,
    /// See [`Config::storage_patience`].
    storage_patience: Duration,
    /// See [`Config::request_patience`].
    request_patience: Duration,
}

/// Tells where filesystems are mounted, or will be.
pub type Roots = Box<dyn Fn() -> Vec<places::Root> + Send + Sync>;

/// The serving side of a target.
#[derive(Clone)]
struct Running {
    units: Arc<TargetUnits>,
    keep: Arc<keep::Keep>,
    /// Why a unit does not serve.
    unavailable: BTreeMap<u64, String>,
}

/// From the service's errors to the interface's.
fn from_service(error: &ServiceError) -> ApiError {
    let kind = match error.kind {
        ServiceErrorKind::NotFound => ErrorKind::NotFound,
        ServiceErrorKind::Exists => ErrorKind::Exists,
        ServiceErrorKind::Busy | ServiceErrorKind::Io => ErrorKind::Busy,
        ServiceErrorKind::Invalid => ErrorKind::Invalid,
    };
    let hint = match error.kind {
        ServiceErrorKind::Io => "end what uses the address, or name another with --portal",
        ServiceErrorKind::Busy => "log the initiators out, or repeat with --force",
        ServiceErrorKind::NotFound => "`qrvsa target list` and `qrvsa target sessions` show what there is",
        _ => kind.default_hint(),
    };
    ApiError::new(kind, error.text.clone()).with_hint(hint)
}

pub(crate) fn no_target(iqn: &str) -> ApiError {
    ApiError::not_found(format!("there is no target {iqn}")).with_hint("`qrvsa target list` shows what there is")
}

/// Reads `ADDR:PORT`; without a port, it is iSCSI's.
pub(crate) fn portal(text: &str) -> Result<SocketAddr> {
    let bad = || {
        ApiError::invalid(format!("portal {text:?} is not valid"))
            .with_hint("write ADDRESS:PORT, with an IPv6 address in brackets, such as 192.0.2.1:3260 or [::]:3260")
    };
    let address: PortalAddress = text.parse().map_err(|_| bad())?;
    let ip = address.host.parse().map_err(|_| bad())?;
    Ok(SocketAddr::new(ip, address.port))
}

/// Checks an iSCSI name.
pub(crate) fn iscsi_name(text: &str) -> Result<IscsiName> {
    text.parse()
        .map_err(|e: String| ApiError::invalid(e).with_hint("write a name such as iqn.2026-01.org.example:disks"))
}

impl Targets {
    /// No targets yet; see [`Targets::restore`].
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, state: Arc<StateDir>, config: &Config, roots: Roots) -> Arc<Targets> {
        let service = Service::new(Limits::default());
        service.on_request(qrvsa_fuse::latency::request);
        Arc::new_cyclic(|me| Targets {
            me: Weak::clone(me),
            engine,
            state,
            service,
            defaults: config.iscsi_portals.clone(),
            model: RwLock::default(),
            changing: Mutex::default(),
            running: RwLock::default(),
            portal_errors: Mutex::default(),
            busy_units: Mutex::default(),
            retry: Mutex::default(),
            files: claims::FileClaims::default(),
            roots,
            remembered: Mutex::default(),
            held: Mutex::default(),
            opening: Mutex::default(),
            leaving: Mutex::default(),
            stopped: AtomicBool::new(false),
            storage_patience: config.storage_patience,
            request_patience: config.request_patience,
        })
    }

    /// The model that holds.
    pub(crate) fn model(&self) -> Arc<Model> {
        Arc::clone(&self.model.read())
    }

    fn units(&self, tid: u32) -> Option<Arc<TargetUnits>> {
        self.running.read().get(&tid).map(|running| Arc::clone(&running.units))
    }

    /// Reads what is remembered, so that [`Targets::hold_files`] knows of it.
    ///
    /// # Errors
    /// Only when the file cannot be read at all.
    pub fn load(&self) -> std::result::Result<(), String> {
        *self.remembered.lock() = Some(Model::load(&self.state)?);
        Ok(())
    }

    /// Claims the files of a pool that units stand on, before its filesystems are mounted. What fails, fails again when the
    /// unit is started, and is told then.
    pub fn hold_files(&self, pool: &str) {
        let remembered = self.remembered.lock();
        for (tid, target) in remembered.iter().flat_map(|model| &model.targets) {
            for (number, lun) in &target.luns {
                if let Some(inside) = lun.inside.as_ref().filter(|inside| inside.fs.pool == pool)
                    && let user = luns::user_name(&target.iqn, *number)
                    && let Ok(file) = below::open(&self.places(None), inside, !lun.options.read_only, &user)
                {
                    self.held.lock().insert((*tid, *number), file);
                }
            }
        }
    }

    /// Brings the targets of the last run back, whole, and then lets initiators in. What fails is logged and shown with its reason;
    /// storage that does not answer holds it up for a while only.
    ///
    /// # Errors
    /// Only when the file cannot be read at all.
    pub fn restore(&self) -> std::result::Result<(), String> {
        let _changing = self.changing.lock();
        let remembered = self.remembered.lock().take();
        let model = Arc::new(match remembered {
            Some(model) => model,
            None => Model::load(&self.state)?,
        });
        *self.model.write() = Arc::clone(&model);
        let mut patience = self.storage_patience;
        for (tid, target) in &model.targets {
            match self.make_target(&model, *tid, target, &mut patience) {
                Err(_) if self.stopped.load(Ordering::Acquire) => break,
                Err(e) => tracing::error!("target {} does not serve: {e}", target.iqn),
                Ok(()) => {}
            }
        }
        self.held.lock().clear();
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        // Without its users, discovery would be everybody's.
        if let Err(e) = self.apply_discovery(&model).and_then(|()| self.apply_portals(&model, false)) {
            tracing::error!("iSCSI: {e}");
        }
        Ok(())
    }

    /// Tries units again that are unavailable, after a pool was imported: those in it, and files, whose parents may lie in it.
    pub fn pool_imported(&self, pool: &str) {
        let _changing = self.changing.lock();
        let model = self.model();
        let waiting: Vec<(u32, u64)> = self
            .running
            .read()
            .iter()
            .flat_map(|(tid, running)| running.unavailable.keys().map(|number| (*tid, *number)))
            .collect();
        let mut patience = self.storage_patience;
        for (tid, number) in waiting {
            let lun = model.targets.get(&tid).and_then(|target| target.luns.get(&number));
            // Where one thread hangs, so would the next.
            if let Some(again) = self.opening.lock().get(&(tid, number)) {
                again.store(true, Ordering::Release);
                continue;
            }
            if lun.is_some_and(|lun| !matches!(&lun.source, LunSource::Volume(name) if name.pool != pool)) {
                self.start_lun(&model, tid, number, &mut patience);
            }
        }
    }

    /// Refuses what would take the storage of a logical unit away.
    ///
    /// # Errors
    /// `Busy`, naming the unit.
    pub fn need_unused_pool(&self, pool: &str) -> Result<()> {
        let user = self.model().user_of(|lun| luns::pool_of(lun) == Some(pool)).map(|user| format!("target {user}"));
        // files that are nobody's own storage too: parents
        match user.or_else(|| self.engine.file_user(pool, None)) {
            Some(user) => Err(ApiError::busy(format!("pool {pool} holds the storage of {user}"))
                .with_hint("remove that LUN first with `qrvsa target lun remove`")),
            None => Ok(()),
        }
    }

    /// As [`Targets::need_unused_pool`], for one filesystem.
    ///
    /// # Errors
    /// `Busy`, naming the unit.
    pub fn need_unused_fs(&self, fs: &qrvsa_api::names::FsName) -> Result<()> {
        let inside = |lun: &model::Lun| lun.inside.as_ref().is_some_and(|inside| inside.fs == *fs);
        let user = self.model().user_of(inside).map(|user| format!("target {user}"));
        match user.or_else(|| self.engine.file_user(&fs.pool, Some(fs))) {
            Some(user) => Err(ApiError::busy(format!("filesystem {fs} holds the storage of {user}"))
                .with_hint("remove that LUN first with `qrvsa target lun remove`")),
            None => Ok(()),
        }
    }

    /// As [`Targets::need_unused_pool`], for one volume.
    ///
    /// # Errors
    /// `Busy`, naming the unit.
    pub fn need_unused_volume(&self, volume: &qrvsa_api::names::FsName) -> Result<()> {
        match self.model().user_of(|lun| matches!(&lun.source, LunSource::Volume(name) if name == volume)) {
            Some(user) => Err(ApiError::busy(format!("volume {volume} is the storage of target {user}"))
                .with_hint("remove that LUN first with `qrvsa target lun remove`")),
            None => Ok(()),
        }
    }

    /// Tells initiators that a volume has another size.
    pub fn volume_resized(&self, volume: &qrvsa_api::names::FsName) {
        for (tid, target) in &self.model().targets {
            for (number, lun) in &target.luns {
                if matches!(&lun.source, LunSource::Volume(name) if name == volume)
                    && let Some(units) = self.units(*tid)
                {
                    units.resize_notice(*number);
                }
            }
        }
    }

    /// From now on nothing changes, and targets that are being brought back are left.
    pub fn begin_stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.retry.lock().take();
    }

    /// Ends all service: initiators are asked to log out, everything acknowledged is made durable, storage is closed. What is
    /// remembered stays.
    pub fn stop(&self) {
        self.begin_stop();
        let changing = self.changing.try_lock_for(self.request_patience);
        if changing.is_none() {
            tracing::warn!("a change of iSCSI targets does not end; going on without it");
        }
        self.service.shutdown(if self.running.read().is_empty() { Duration::ZERO } else { LOGOUT_PATIENCE });
        for (tid, running) in &*self.running.read() {
            running.units.stop();
            if let Err(e) = running.units.flush_all() {
                tracing::error!("target {tid}: {e}");
            }
        }
        // Files inside pools have to be closed before those are exported.
        let ended = std::mem::take(&mut *self.running.write());
        for running in ended.values() {
            let _ = self.service.remove_target(running.units.name(), true);
        }
    }

    /// Edits a copy of the model, lets the service follow, and saves it.
    fn change<R>(&self, edit: impl FnOnce(&mut Model) -> Result<R>) -> Result<R> {
        let _changing = self.changing.lock();
        self.change_locked(edit)
    }

    fn change_locked<R>(&self, edit: impl FnOnce(&mut Model) -> Result<R>) -> Result<R> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(ApiError::new(ErrorKind::Unavailable, "the daemon is stopping"));
        }
        let old = self.model();
        let mut new = (*old).clone();
        let result = edit(&mut new)?;
        if let Err(e) = self.apply(&new, true).and_then(|()| self.save(&new)) {
            if let Err(again) = self.apply(&old, false) {
                tracing::error!("iSCSI: {again}");
            }
            self.retire(&old);
            return Err(e);
        }
        let new = Arc::new(new);
        *self.model.write() = Arc::clone(&new);
        self.retire(&new);
        Ok(result)
    }

    fn save(&self, model: &Model) -> Result<()> {
        model.save(&self.state).map_err(|e| {
            let text = format!("the daemon cannot save its targets in {}: {e}", self.state.path().display());
            ApiError::new(ErrorKind::Internal, text).with_hint("free space there, and repeat the command")
        })
    }

    /// Makes the service what the model says, but for the units of targets that serve, and for targets that are to go
    /// ([`Targets::retire`]). With `strict`, a portal that cannot be had is an error; else it is noted and shown.
    fn apply(&self, model: &Model, strict: bool) -> Result<()> {
        self.apply_portals(model, strict)?;
        self.apply_discovery(model)?;
        let mut patience = self.storage_patience;
        for (tid, target) in &model.targets {
            if self.running.read().contains_key(tid) {
                let config = self.target_config(model, *tid, target)?;
                self.service.update_target(config).map_err(|e| from_service(&e))?;
            } else {
                self.make_target(model, *tid, target, &mut patience)?;
            }
        }
        Ok(())
    }

    fn apply_discovery(&self, model: &Model) -> Result<()> {
        let users = users(model, &model.discovery_incoming, model.discovery_outgoing.as_ref())?;
        self.service.set_discovery(DiscoveryConfig { users });
        Ok(())
    }

    /// Makes the serving side of a target: first its units, then the way in.
    fn make_target(&self, model: &Model, tid: u32, target: &model::Target, patience: &mut Duration) -> Result<()> {
        let config = self.target_config(model, tid, target)?;
        let keep = Arc::new(keep::Keep::new(Arc::clone(&self.engine), Arc::clone(&self.state)));
        let units = Arc::new(TargetUnits::new(config.name.as_str(), Some(keep.clone())));
        units.set_ports(vec![GROUP_TAG]);
        self.running.write().insert(tid, Running { units: Arc::clone(&units), keep, unavailable: BTreeMap::new() });
        for number in target.luns.keys().take_while(|_| !self.stopped.load(Ordering::Acquire)) {
            self.start_lun(model, tid, *number, patience);
        }
        let made = if self.stopped.load(Ordering::Acquire) {
            Err(ServiceError { kind: ServiceErrorKind::Busy, text: "the daemon is stopping".to_owned() })
        } else {
            self.service.create_target(config, units)
        };
        if made.is_err() {
            let unmade = self.running.write().remove(&tid);
            drop(unmade);
        }
        made.map_err(|e| from_service(&e))
    }

    /// Ends the serving side of targets that the model does not have.
    fn retire(&self, model: &Model) {
        let gone: Vec<Running> = {
            let mut running = self.running.write();
            let tids: Vec<u32> = running.keys().copied().filter(|tid| !model.targets.contains_key(tid)).collect();
            tids.iter().filter_map(|tid| running.remove(tid)).collect()
        };
        // Outside the lock: sessions take their time to end. Whether they may was asked by whoever removed the target.
        for running in gone {
            if let Err(e) = self.service.remove_target(running.units.name(), true) {
                tracing::warn!("iSCSI: {e}");
            }
        }
    }

    fn target_config(&self, model: &Model, tid: u32, target: &model::Target) -> Result<TargetConfig> {
        let mut config = TargetConfig::new(iscsi_name(&target.iqn)?, tid);
        config.portals = self.portals_of(model, target);
        config.advertise = target
            .advertise
            .iter()
            .map(|text| text.parse().map_err(|e: String| ApiError::invalid(e).with_hint("write ADDRESS:PORT")))
            .collect::<Result<_>>()?;
        config.acl = target.acl.iter().map(access::rule).filter_map(Result::ok).collect::<Vec<AclRule>>();
        config.users = users(model, &target.incoming, target.outgoing.as_ref())?;
        config.state = if target.offline { TargetState::Offline } else { TargetState::Ready };
        if let Some(seconds) = target.nop_interval_s {
            config.nop_interval = Duration::from_secs(seconds);
        }
        if let Some(count) = target.nop_count {
            config.nop_count = count;
        }
        for (key, value) in &target.parameters {
            config.parameters.set(key, value).map_err(ApiError::invalid)?;
        }
        if let (Some(permanent), false) = (target.redirect.permanent, target.redirect.address.is_empty()) {
            let port = if target.redirect.port.is_empty() { "3260" } else { &target.redirect.port };
            let host = &target.redirect.address;
            let to = if host.contains(':') && !host.starts_with('[') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            config.redirect = Some(Redirect { to: to.parse().map_err(ApiError::invalid)?, permanent });
        }
        Ok(config)
    }

    /// Makes a target that lets nobody in.
    ///
    /// # Errors
    /// `Invalid`, `Exists`, `Busy` when a portal cannot be had.
    pub fn create(&self, request: &CreateTarget) -> Result<TargetInfo> {
        let name = iscsi_name(&request.iqn)?;
        let portals = request.portals.iter().map(|text| portal(text)).collect::<Result<Vec<_>>>()?;
        let tid = self.change(|model| {
            if model.find(name.as_str()).is_some() {
                return Err(ApiError::new(ErrorKind::Exists, format!("target {name} exists already")));
            }
            let tid = match request.tid {
                None => (1..).find(|tid| !model.targets.contains_key(tid)).unwrap_or(u32::MAX),
                Some(0) => return Err(ApiError::invalid("the number of a target cannot be 0")),
                Some(tid) if model.targets.contains_key(&tid) => {
                    return Err(ApiError::new(ErrorKind::Exists, format!("there is a target with the number {tid}")));
                }
                Some(tid) => tid,
            };
            let target = model::Target {
                iqn: name.as_str().to_owned(),
                portals,
                advertise: request.advertise.clone(),
                ..model::Target::default()
            };
            model.targets.insert(tid, target);
            Ok(tid)
        })?;
        tracing::info!("target {name} created");
        self.info_by_tid(tid).ok_or_else(|| no_target(name.as_str()))
    }

    /// Removes a target and its units; their storage stays as it is.
    ///
    /// # Errors
    /// `NotFound`; `Busy` with sessions and without `force`.
    pub fn destroy(&self, iqn: &str, force: bool) -> Result<()> {
        let _changing = self.changing.lock();
        let model = self.model();
        let (tid, target) = model.find(iqn).ok_or_else(|| no_target(iqn))?;
        let sessions = self.service.sessions(&target.iqn).map_or(0, |list| list.len());
        if sessions > 0 && !force {
            return Err(ApiError::busy(format!("target {iqn} has {sessions} sessions"))
                .with_hint("log the initiators out, or repeat with --force"));
        }
        let units = self.units(tid);
        self.change_locked(|model| {
            model.targets.remove(&tid);
            Ok(())
        })?;
        if let Some(units) = units {
            for number in target.luns.keys() {
                // What initiators stored for it goes with the unit. One that was unavailable has nothing here to take away.
                let _ = units.remove_unit(*number);
            }
        }
        tracing::info!("target {} destroyed", target.iqn);
        Ok(())
    }

    /// Edits one target.
    pub(crate) fn edit<R>(&self, iqn: &str, edit: impl FnOnce(&mut model::Target) -> Result<R>) -> Result<R> {
        self.change(|model| {
            let tid = model.find(iqn).map(|(tid, _)| tid);
            let target = tid.and_then(|tid| model.targets.get_mut(&tid)).ok_or_else(|| no_target(iqn))?;
            edit(target)
        })
    }

    /// Changes state and session parameters.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn update(&self, iqn: &str, request: &UpdateTarget) -> Result<TargetInfo> {
        self.edit(iqn, |target| {
            if let Some(offline) = request.offline {
                target.offline = offline;
            }
            target.parameters.extend(request.parameters.clone());
            Ok(())
        })?;
        self.info(iqn)
    }

    /// The path tgt's programs are told, without the number they append.
    #[must_use]
    pub fn tgt_socket(&self) -> PathBuf {
        std::env::var_os("TGT_IPC_SOCKET")
            .filter(|path| !path.is_empty())
            .map_or_else(|| self.state.path().join("tgt"), PathBuf::from)
    }
}

fn users(model: &Model, incoming: &[String], outgoing: Option<&String>) -> Result<Users> {
    let account = |name: &String| -> Result<Account> {
        let account =
            model.account(name).ok_or_else(|| ApiError::not_found(format!("there is no account {name:?}")))?;
        let secret = Secret::new(account.secret.as_bytes()).map_err(ApiError::invalid)?;
        Ok(Account { name: account.name.clone(), secret })
    };
    Ok(Users {
        incoming: incoming.iter().map(account).collect::<Result<_>>()?,
        outgoing: outgoing.map(account).transpose()?,
    })
}
