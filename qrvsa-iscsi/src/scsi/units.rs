//! The logical units of one target.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::alua::Alua;
use super::attention::Attention;
use super::call::{Call, Refusal};
use super::config::UnitConfig;
use super::copy;
use super::limits::TRANSFER_BYTES_MAX;
use super::mode::Pages;
use super::sanitize::{self, record::Keeper};
use super::sense::{self, Sense};
use super::stats::{self, UnitStats};
use super::table::{self, DataOut, MEDIUM, NOW, PAST_ATTENTION, Unknown, WRITES};
use super::unit::{EJECTED, Shape, Unit};
use super::{
    Command, DeviceServer, Management, ManagementAnswer, Nexus, Persistence, Response, TaskEnd, capacity, inquiry, lun,
};
use crate::backing::{Backing, NullBacking};

/// How long the removal of a unit or a medium waits for the commands that it ends.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// What is stored of a unit.
const STORED: [&str; 3] = ["reservations", "modes", "sanitize"];

type Units = BTreeMap<u64, Arc<Unit>>;

/// What initiators have made of a unit's medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MediumState {
    /// It is ejected (START STOP UNIT), or there is none.
    pub ejected: bool,
    /// Somebody prevents its removal (PREVENT ALLOW MEDIUM REMOVAL).
    pub removal_prevented: bool,
    /// It is write-protected by software (SWP of the control mode page).
    pub write_protected: bool,
}

/// A target's logical units: configured here, served to sessions as a [`DeviceServer`].
pub struct TargetUnits {
    name: String,
    persistence: Option<Arc<dyn Persistence>>,
    units: ArcSwap<Units>,
    /// Taken by whoever changes `units` or a unit's shape.
    changing: Mutex<()>,
    nexuses: Mutex<HashMap<u16, Arc<Nexus>>>,
    ports: ArcSwap<Vec<u16>>,
    alua: ArcSwap<Alua>,
    task_end: OnceLock<Arc<dyn TaskEnd>>,
    copy_results: copy::Results,
    tokens: copy::Tokens,
}

impl TargetUnits {
    /// A target of this iSCSI name, with nothing but the controller at LUN 0. Without `persistence`, reservations, mode pages and what a
    /// SANITIZE has still to do do not survive the process; of the first two initiators are told so.
    #[must_use]
    pub fn new(name: &str, persistence: Option<Arc<dyn Persistence>>) -> Self {
        let units = Self {
            name: name.to_owned(),
            persistence,
            units: ArcSwap::from_pointee(Units::new()),
            changing: Mutex::default(),
            nexuses: Mutex::default(),
            ports: ArcSwap::from_pointee(vec![1]),
            alua: ArcSwap::from_pointee(Alua::default()),
            task_end: OnceLock::new(),
            copy_results: copy::Results::default(),
            tokens: copy::Tokens::default(),
        };
        units.units.store(Arc::new(Units::from([(0, units.controller())])));
        units
    }

    /// iSCSI name of the target.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Portal group tags of the target, which are its target ports; tag 1 alone at first.
    pub fn set_ports(&self, mut ports: Vec<u16>) {
        ports.sort_unstable();
        ports.dedup();
        self.ports.store(Arc::new(ports));
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.ports.load().to_vec()
    }

    /// Target port groups and their states; initiators hear of a change.
    pub fn set_alua(&self, alua: Alua) {
        let old = self.alua.swap(Arc::new(alua.clone()));
        if *old != alua {
            self.attend_all(Attention::ACCESS_STATE_CHANGED, None);
        }
    }

    pub(crate) fn alua(&self) -> Arc<Alua> {
        self.alua.load_full()
    }

    pub(crate) fn persistence(&self) -> Option<&Arc<dyn Persistence>> {
        self.persistence.as_ref()
    }

    /// Adds a unit. Stored reservations and mode pages of it come back, and an interrupted SANITIZE or FORMAT UNIT goes on; initiators hear that the LUNs have changed.
    ///
    /// # Errors
    /// The LUN is taken or beyond 16383, the configuration does not fit the backing, or what was stored cannot be read.
    pub fn add_unit(&self, number: u64, config: UnitConfig, backing: Arc<dyn Backing>) -> Result<(), String> {
        config.check()?;
        if number > lun::LUN_MAX {
            return Err(format!("LUN {number} is not possible; use 0 to {}", lun::LUN_MAX));
        }
        let _changing = self.changing.lock();
        let mut units = (**self.units.load()).clone();
        if units.get(&number).is_some_and(|u| !u.gives_way()) {
            return Err(format!("LUN {number} is taken"));
        }
        let unit = Unit::new(number, Shape::new(&self.name, number, config.clone(), backing), Pages::new(&config));
        if let Some(store) = &self.persistence {
            if let Some(bytes) = store.get(&self.key("reservations", number))? {
                unit.reservations.restore(&bytes)?;
            }
            if let Some(bytes) = store.get(&self.key("modes", number))? {
                unit.pages.write().import_saved(&bytes);
            }
        }
        let keeper = self.sanitize_keeper(number);
        let interrupted = keeper.get()?.filter(|record| unit.sanitize.restore(record, &unit.shape(), number));
        self.put(&mut units, unit);
        if let (Some(record), Some(unit)) = (interrupted, self.unit(number)) {
            sanitize::resume(unit, record, keeper);
        }
        Ok(())
    }

    /// Adds a unit whose storage is not there: initiators see it by its names, and hear that it is not ready. It gives way to
    /// [`TargetUnits::add_unit`]. What was stored of it stays as it is.
    ///
    /// # Errors
    /// As of [`TargetUnits::add_unit`].
    pub fn add_unavailable(&self, number: u64, config: UnitConfig) -> Result<(), String> {
        config.check()?;
        if number > lun::LUN_MAX {
            return Err(format!("LUN {number}: use 0 to {}", lun::LUN_MAX));
        }
        let _changing = self.changing.lock();
        let mut units = (**self.units.load()).clone();
        if units.get(&number).is_some_and(|u| !u.gives_way()) {
            return Err(format!("LUN {number} is taken"));
        }
        let pages = Pages::new(&config);
        let mut shape = Shape::new(&self.name, number, config, Arc::new(NullBacking::new(0)));
        shape.unavailable = true;
        self.put(&mut units, Unit::new(number, shape, pages));
        Ok(())
    }

    /// Puts a unit in place and tells everybody.
    fn put(&self, units: &mut Units, unit: Unit) {
        // nexuses that open meanwhile wait for this lock, and see the unit then
        let nexuses = self.nexuses.lock();
        for nexus in nexuses.values() {
            unit.open_nexus(nexus);
        }
        units.insert(unit.lun, Arc::new(unit));
        self.units.store(Arc::new(std::mem::take(units)));
        drop(nexuses);
        self.attend_all(Attention::LUNS_CHANGED, None);
    }

    fn controller(&self) -> Arc<Unit> {
        let config = UnitConfig::controller();
        let pages = Pages::new(&config);
        Arc::new(Unit::new(0, Shape::new(&self.name, 0, config, Arc::new(NullBacking::new(0))), pages))
    }

    /// Removes a unit: its tasks are ended and waited for, what was stored of it goes. At LUN 0 the controller comes back.
    ///
    /// # Errors
    /// There is no such unit, or what was stored cannot be removed.
    pub fn remove_unit(&self, number: u64) -> Result<(), String> {
        let _changing = self.changing.lock();
        let mut units = (**self.units.load()).clone();
        let Some(unit) = units.remove(&number).filter(|u| number != 0 || u.shape().is_disk()) else {
            return Err(format!("there is no LUN {number}"));
        };
        if number == 0 {
            let controller = self.controller();
            for nexus in self.nexuses.lock().values() {
                controller.open_nexus(nexus);
            }
            units.insert(0, controller);
        }
        self.units.store(Arc::new(units));
        self.end_tasks(None, Some(lun::encode(number)), None);
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        if !unit.sanitize.stop(REMOVAL_PATIENCE) {
            tracing::warn!("{} LUN {number}: removed while its storage hangs in being sanitized", self.name);
        }
        if !unit.ranges.drain(REMOVAL_PATIENCE) {
            tracing::warn!("{} LUN {number}: removed with commands still running", self.name);
        }
        self.tokens.forget_unit(unit.serial);
        // A session that is ending may be looking at the units. Its storage is let go of when this returns, so that others can have it.
        while Arc::strong_count(&unit) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.attend_all(Attention::LUNS_CHANGED, None);
        if unit.shape().unavailable { Ok(()) } else { self.forget_stored(number) }
    }

    /// Changes the configuration of a live unit. Initiators hear what concerns them.
    ///
    /// # Errors
    /// There is no such unit, or the configuration does not fit; nothing has changed then.
    pub fn update_unit(&self, number: u64, config: UnitConfig) -> Result<(), String> {
        config.check()?;
        let _changing = self.changing.lock();
        let unit = self.unit(number).ok_or_else(|| format!("there is no LUN {number}"))?;
        let before = unit.shape_arc();
        if config.block_bytes != before.config.block_bytes || config.device_type != before.config.device_type {
            return Err(format!("LUN {number}: block size and type stay; remove the LUN and add it anew"));
        }
        let was = &before.config;
        let identity = |c: &UnitConfig| {
            let names = [&c.vendor, &c.product, &c.revision, &c.scsi_id, &c.serial].map(String::clone);
            (names, c.removable, c.rotation_rate, c.thin, c.optimal_granularity, c.optimal_blocks)
        };
        let inquiry = identity(was) != identity(&config);
        let capacity = (was.physical_block_exponent, was.lowest_aligned, was.thin)
            != (config.physical_block_exponent, config.lowest_aligned, config.thin);
        let (online, offline) = (config.online && !was.online, !config.online && was.online);
        let modes = was.read_only != config.read_only || {
            let mut pages = unit.pages.write();
            let next = pages.reconfigured(was, &config);
            let changed = next.differs(&pages);
            *pages = next;
            changed
        };
        unit.set_shape(Shape::new(&self.name, number, config, before.backing.clone()));
        if offline {
            self.end_tasks(None, Some(lun::encode(number)), None);
        }
        let told = [
            (inquiry, Attention::INQUIRY_CHANGED),
            (capacity, Attention::CAPACITY_CHANGED),
            (modes, Attention::MODE_CHANGED),
            (online, Attention::MEDIUM_CHANGED),
        ];
        for (_, attention) in told.into_iter().filter(|(on, _)| *on) {
            unit.attend(attention, |_| true);
        }
        Ok(())
    }

    /// Puts another medium into a removable unit (tgt's `path`): it counts as loaded, and initiators hear of it. Commands that were sent
    /// for the one before are ended.
    ///
    /// # Errors
    /// There is no such unit, or it is not removable.
    pub fn load_medium(&self, number: u64, backing: Arc<dyn Backing>) -> Result<(), String> {
        let _changing = self.changing.lock();
        let unit = self.removable(number)?;
        unit.sanitize.medium_changes(&self.sanitize_keeper(number)).map_err(|text| format!("LUN {number}: {text}"))?;
        let config = unit.shape().config.clone();
        // In between nothing runs on either.
        unit.set_medium(EJECTED);
        unit.set_shape(Shape::new(&self.name, number, config, backing));
        unit.watch.written_all();
        unit.attend(Attention::MEDIUM_CHANGED, |_| true);
        self.end_tasks(None, Some(lun::encode(number)), None);
        unit.set_medium(0);
        Ok(())
    }

    /// Takes the medium out of a removable unit, also when an initiator has prevented that, if `force` says so.
    ///
    /// # Errors
    /// There is no such unit, it is not removable, or removal is prevented.
    pub fn eject_medium(&self, number: u64, force: bool) -> Result<(), String> {
        let unit = self.removable(number)?;
        if unit.removal_prevented() && !force {
            return Err(format!("LUN {number}: an initiator prevents the removal; --force overrides that"));
        }
        unit.set_medium(EJECTED);
        unit.ranges.drain(REMOVAL_PATIENCE);
        unit.shape().backing.flush().map_err(|f| f.text)
    }

    /// Loads the medium of a removable unit again that was ejected, and initiators hear of it; nothing where it is loaded.
    ///
    /// # Errors
    /// There is no such unit, or it is not removable.
    pub fn reload_medium(&self, number: u64) -> Result<(), String> {
        let _changing = self.changing.lock();
        let unit = self.removable(number)?;
        if unit.medium() & EJECTED != 0 {
            unit.set_medium(0);
            unit.attend(Attention::MEDIUM_CHANGED, |_| true);
        }
        Ok(())
    }

    /// The state of a unit's medium now.
    #[must_use]
    pub fn medium(&self, number: u64) -> Option<MediumState> {
        self.unit(number).map(|unit| MediumState {
            ejected: unit.medium() & EJECTED != 0,
            removal_prevented: unit.removal_prevented(),
            write_protected: unit.pages.read().write_protect(),
        })
    }

    fn removable(&self, number: u64) -> Result<Arc<Unit>, String> {
        let unit = self.unit(number).ok_or_else(|| format!("there is no LUN {number}"))?;
        if unit.shape().config.removable { Ok(unit) } else { Err(format!("LUN {number} is not removable")) }
    }

    /// Tells initiators that the storage of a unit has another size, if it has.
    pub fn resize_notice(&self, number: u64) {
        if let Some(unit) = self.unit(number) {
            unit.notice_size(&unit.shape());
        }
    }

    /// Numbers and configurations of the units, by number; the controller that stands in at LUN 0 too.
    #[must_use]
    pub fn units(&self) -> Vec<(u64, UnitConfig)> {
        self.units.load().values().map(|u| (u.lun, u.shape().config.clone())).collect()
    }

    /// Capacity of a unit in bytes now.
    #[must_use]
    pub fn size_bytes(&self, number: u64) -> Option<u64> {
        self.unit(number).map(|u| u.shape().backing.size_bytes())
    }

    /// What a unit has done.
    #[must_use]
    pub fn stats(&self, number: u64) -> Option<UnitStats> {
        self.unit(number).map(|u| u.counters.snapshot())
    }

    /// Makes every completed write of every unit durable.
    ///
    /// # Errors
    /// The first failure, in words; the other units have been flushed.
    pub fn flush_all(&self) -> Result<(), String> {
        let units = self.units.load_full();
        let results: Vec<_> = units.values().map(|u| (u.lun, u.shape().backing.flush())).collect();
        results.into_iter().try_for_each(|(lun, result)| result.map_err(|f| format!("LUN {lun}: {f}")))
    }

    /// Ends work in the background (SANITIZE, FORMAT UNIT) for good; the units take no more of it. Storage that hangs is waited for 10 s.
    pub fn stop(&self) {
        for unit in self.units.load().values() {
            if !unit.sanitize.stop(REMOVAL_PATIENCE) {
                tracing::warn!("{} LUN {}: its storage hangs in being sanitized", self.name, unit.lun);
            }
        }
    }

    pub(crate) fn unit(&self, number: u64) -> Option<Arc<Unit>> {
        self.units.load().get(&number).cloned()
    }

    pub(crate) fn all_units(&self) -> Arc<BTreeMap<u64, Arc<Unit>>> {
        self.units.load_full()
    }

    pub(crate) fn copy_results(&self) -> &copy::Results {
        &self.copy_results
    }

    pub(crate) fn tokens(&self) -> &copy::Tokens {
        &self.tokens
    }

    pub(crate) fn attend_all(&self, attention: Attention, except: Option<&Nexus>) {
        for unit in self.units.load().values() {
            unit.attend(attention, |nexus| except.is_none_or(|e| e.tsih != nexus.tsih));
        }
    }

    /// As [`TaskEnd::end_tasks`].
    pub(crate) fn end_tasks(
        &self,
        nexuses: Option<&[Arc<Nexus>]>,
        lun: Option<[u8; 8]>,
        spare: Option<&Arc<Nexus>>,
    ) -> Vec<Arc<Nexus>> {
        let hit = self.task_end.get().map(|observer| observer.end_tasks(nexuses, lun, spare)).unwrap_or_default();
        let meant = |tsih| {
            nexuses.is_none_or(|list| list.iter().any(|n| n.tsih == tsih)) && spare.is_none_or(|n| n.tsih != tsih)
        };
        let number = lun.map(lun::decode);
        for unit in self.units.load().values().filter(|u| number.is_none_or(|n| n == Some(u.lun))) {
            unit.sanitize.abandon(|tsih, _| meant(tsih));
        }
        hit
    }

    /// Whether a task was ended while it is carried out.
    pub(crate) fn has_ended(&self, nexus: &Nexus, task_tag: u32) -> bool {
        self.task_end.get().is_some_and(|observer| observer.has_ended(nexus, task_tag))
    }

    /// Where it is kept what a SANITIZE or FORMAT UNIT has still to do.
    pub(crate) fn sanitize_keeper(&self, number: u64) -> Keeper {
        Keeper { store: self.persistence.clone(), key: self.key("sanitize", number) }
    }

    /// Forgets what is stored of an earlier unit of that number: reservations, mode pages, what is unfinished of a SANITIZE or FORMAT
    /// UNIT. Before a unit is added that is not that one again.
    ///
    /// # Errors
    /// The store, in words.
    pub fn forget_stored(&self, number: u64) -> Result<(), String> {
        let Some(store) = &self.persistence else { return Ok(()) };
        for key in self.stored_keys(number) {
            if store.get(&key)?.is_some_and(|bytes| !bytes.is_empty()) {
                store.put(&key, &[])?;
            }
        }
        Ok(())
    }

    /// The keys under which [`Persistence`] has what is stored of a unit.
    #[must_use]
    pub fn stored_keys(&self, number: u64) -> [String; 3] {
        STORED.map(|kind| self.key(kind, number))
    }

    fn key(&self, kind: &str, number: u64) -> String {
        format!("{kind}/{}/{number}", self.name)
    }

    pub(crate) fn save_reservations(&self, number: u64, bytes: &[u8]) -> Result<(), String> {
        self.save("reservations", number, bytes)
    }

    pub(crate) fn save_pages(&self, number: u64, pages: &Pages) -> Result<(), String> {
        self.save("modes", number, &pages.export_saved())
    }

    fn save(&self, kind: &str, number: u64, bytes: &[u8]) -> Result<(), String> {
        let store = self.persistence.as_ref().ok_or("nothing survives here")?;
        store.put(&self.key(kind, number), bytes)
    }

    pub(crate) fn report_luns(&self, cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
        let luns: Vec<u64> = self.units.load().keys().copied().collect();
        capacity::report_luns(&luns, cdb)
    }

    /// Runs a command; `None` when it had to wait and must not.
    fn run(&self, nexus: &Arc<Nexus>, command: &Command, data: &[u8], now: bool) -> Option<Response> {
        let cdb = pad(&command.cdb);
        let units = self.units.load();
        let found = table::find(&cdb);
        let Some(unit) = lun::decode(command.lun).and_then(|number| units.get(&number)) else {
            return Some(self.run_absent(&cdb));
        };
        if now && found.is_ok_and(|entry| !entry.has(NOW)) {
            return None;
        }
        let shape = unit.shape();
        let begun = if now { None } else { Some(Instant::now()) };
        let mut needs = 0;
        let lent = Cell::new(Vec::new());
        let outcome = match found {
            Ok(entry)
                if table::supports(entry, &shape, entry.on == table::On::ExplicitAlua && self.alua.load().explicit) =>
            {
                needs = entry.data_out_bytes(&cdb, u64::from(shape.block));
                let call = Call {
                    task_tag: command.task_tag,
                    units: self,
                    unit,
                    shape: &shape,
                    nexus,
                    entry,
                    cdb: &cdb,
                    data,
                    expected: command.data_out_expected,
                    now,
                    lent: &lent,
                };
                Self::checked(&call).and_then(|()| {
                    if cdb[0] == 0xa0 {
                        for unit in units.values() {
                            unit.forget_attention(nexus, Attention::LUNS_CHANGED);
                        }
                    }
                    (entry.run)(&call)
                })
            }
            other => Err(match unit.attention(nexus, true) {
                Some(attention) => attention.sense().into(),
                None if matches!(other, Err(Unknown::Action)) => Sense::cdb_field(1, 4).into(),
                None => Sense::INVALID_OPCODE.into(),
            }),
        };
        let response = match outcome {
            Err(Refusal::Wait) if now => return None,
            Err(Refusal::Wait) => Response { status: sense::BUSY, ..Response::default() },
            Ok(data_in) => Response {
                status: sense::GOOD,
                data_in,
                lent: lent.take(),
                data_out_bytes: needs,
                ..Response::default()
            },
            Err(Refusal::Status(status)) => {
                if status == sense::RESERVATION_CONFLICT {
                    stats::add(&unit.counters.conflicts, 1);
                }
                Response { status, data_out_bytes: needs, ..Response::default() }
            }
            Err(Refusal::Sense(sense)) => {
                if sense.key != 6 {
                    stats::add(&unit.counters.errors, 1);
                }
                Response {
                    status: sense::CHECK_CONDITION,
                    sense: sense.encode(unit.pages.read().descriptor_sense()),
                    data_out_bytes: needs,
                    ..Response::default()
                }
            }
        };
        stats::add(&unit.counters.commands, 1);
        unit.counters.time(begun.map(|b| b.elapsed()));
        Some(response)
    }

    /// What is checked before any command runs, in the order in which it is told.
    fn checked(call: &Call) -> Result<(), Refusal> {
        let entry = call.entry;
        if !entry.has(PAST_ATTENTION)
            && let Some(attention) = call.unit.attention(call.nexus, true)
        {
            return Err(attention.sense().into());
        }
        let control = entry.usage.len() - 1;
        if call.cdb.get(control).is_some_and(|c| c & 0x04 != 0) {
            // NACA: there is no ACA here
            return Err(Sense::cdb_field(u16::try_from(control).unwrap_or(0), 2).into());
        }
        if call.shape.unavailable && !entry.needs_no_storage() {
            // reservations lie with the storage: without it there is no telling whom they concern
            return Err(Sense::UNAVAILABLE.into());
        }
        call.check_reservation()?;
        call.units.alua.load().check(call.nexus.portal_group_tag, entry.access)?;
        if entry.has(MEDIUM) {
            call.unit.readiness(call.shape)?;
        }
        if entry.has(WRITES) {
            if call.shape.read_only {
                return Err(Sense::WRITE_PROTECTED.into());
            }
            if call.unit.pages.read().write_protect() {
                return Err(Sense::new(7, 0x27, 0x02).into());
            }
        }
        Ok(())
    }

    /// A command to a LUN without a unit.
    fn run_absent(&self, cdb: &[u8; 16]) -> Response {
        let outcome = match cdb[0] {
            0x12 => inquiry::absent(cdb),
            0x03 => Ok(capacity::absent_sense(cdb)),
            0xa0 => self.report_luns(cdb),
            _ => Err(Sense::NO_SUCH_UNIT),
        };
        match outcome {
            Ok(data_in) => Response { data_in, ..Response::default() },
            Err(sense) => {
                Response { status: sense::CHECK_CONDITION, sense: sense.encode(false), ..Response::default() }
            }
        }
    }

    fn reset_units(&self, only: Option<u64>, attention: Attention, by: Option<&Arc<Nexus>>) {
        let units = self.units.load_full();
        let hit: Vec<_> = units.values().filter(|u| only.is_none_or(|n| n == u.lun)).collect();
        self.end_tasks(None, only.map(lun::encode), by);
        for unit in hit {
            // those of `by` too, which the session side has ended
            unit.sanitize.abandon(|_, _| true);
            unit.reset(attention);
        }
    }
}

/// Nobody can ask for the units any more: nothing works on their storage either.
impl Drop for TargetUnits {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The first 16 bytes; what is missing is zero.
fn pad(cdb: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.iter_mut().zip(cdb).for_each(|(to, from)| *to = *from);
    out
}

impl DeviceServer for TargetUnits {
    fn nexus_opened(&self, nexus: &Arc<Nexus>) {
        let mut nexuses = self.nexuses.lock();
        nexuses.insert(nexus.tsih, nexus.clone());
        for unit in self.units.load().values() {
            unit.open_nexus(nexus);
        }
    }

    fn nexus_lost(&self, nexus: &Arc<Nexus>) {
        let mut nexuses = self.nexuses.lock();
        nexuses.remove(&nexus.tsih);
        self.copy_results.forget(nexus.tsih);
        for unit in self.units.load().values() {
            unit.close_nexus(nexus);
        }
    }

    fn tasks_ended(&self, nexus: &Arc<Nexus>) {
        for unit in self.units.load().values() {
            unit.sanitize.abandon(|tsih, _| tsih == nexus.tsih);
        }
    }

    fn data_out_bytes(&self, lun: [u8; 8], cdb: &[u8]) -> u64 {
        let cdb = pad(cdb);
        let units = self.units.load();
        match (table::find(&cdb), lun::decode(lun).and_then(|n| units.get(&n))) {
            (Ok(entry), Some(unit)) => {
                let bytes = entry.data_out_bytes(&cdb, u64::from(unit.shape().block));
                let blocks = matches!(entry.data_out, DataOut::Blocks | DataOut::Fn(_));
                // A transfer that is too long is refused, for which its data need not come.
                if blocks && bytes > TRANSFER_BYTES_MAX { 0 } else { bytes }
            }
            _ => 0,
        }
    }

    fn execute_now(&self, nexus: &Arc<Nexus>, command: &Command) -> Option<Response> {
        self.run(nexus, command, &[], true)
    }

    fn execute(&self, nexus: &Arc<Nexus>, command: &Command, data_out: &[u8]) -> Response {
        self.run(nexus, command, data_out, false).unwrap_or(Response { status: sense::BUSY, ..Response::default() })
    }

    fn manage(&self, nexus: &Arc<Nexus>, lun_field: [u8; 8], function: Management) -> ManagementAnswer {
        let number = lun::decode(lun_field);
        let unit = number.and_then(|n| self.unit(n));
        match function {
            Management::TargetWarmReset | Management::TargetColdReset => {
                self.reset_units(None, Attention::TARGET_RESET, Some(nexus));
                return ManagementAnswer::Complete;
            }
            Management::ClearAca => return ManagementAnswer::NotSupported,
            _ => {}
        }
        let (Some(number), Some(unit)) = (number, unit) else { return ManagementAnswer::LunDoesNotExist };
        match function {
            Management::LogicalUnitReset => self.reset_units(Some(number), Attention::UNIT_RESET, Some(nexus)),
            Management::AbortTask(tag) => {
                unit.sanitize.abandon(|tsih, task_tag| (tsih, task_tag) == (nexus.tsih, tag));
            }
            Management::AbortTaskSet => unit.sanitize.abandon(|tsih, _| tsih == nexus.tsih),
            Management::ClearTaskSet => {
                unit.sanitize.abandon(|tsih, _| tsih == nexus.tsih);
                let others = unit.live(|other| other.tsih != nexus.tsih);
                // who had no command there has nothing to hear (SAM-5 7.5)
                let hit = self.end_tasks(Some(&others), Some(lun_field), None);
                unit.attend(Attention::COMMANDS_CLEARED, |other| hit.iter().any(|n| n.tsih == other.tsih));
            }
            _ => {}
        }
        ManagementAnswer::Complete
    }

    fn set_task_end(&self, observer: Arc<dyn TaskEnd>) {
        if self.task_end.set(observer).is_err() {
            tracing::warn!("{}: a second session side; the first one stays", self.name);
        }
    }
}
