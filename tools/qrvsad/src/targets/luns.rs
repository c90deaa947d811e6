//! Logical units: their storage, and how they show themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SendError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use qrvsa_api::{AddLun, ApiError, ErrorKind, LunInfo, LunSource};
use qrvsa_iscsi::backing::{Backing, FileOptions, NullBacking};
use qrvsa_iscsi::scsi::{ModePage, UnitConfig};

use super::below::{Below, PlainBelow, path_now};
use super::model::{Lun, Model, TgtStorage};
use super::places::{Found, Inside, Places, Root};
use super::{Result, Targets, no_target};
use crate::error::from_core;

/// Least time that storage is waited for once other storage did not answer.
const PATIENCE_MIN: Duration = Duration::from_secs(1);

/// How often who waits for storage looks whether the daemon is to stop.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// Open storage, and its best logical block in bytes.
type Opened = (Arc<dyn Backing>, u32);

/// The pool that holds the storage.
pub fn pool_of(lun: &Lun) -> Option<&str> {
    match &lun.source {
        LunSource::Volume(name) => Some(&name.pool),
        _ => lun.inside.as_ref().map(|inside| inside.fs.pool.as_str()),
    }
}

/// A unit's storage that is being opened. At its end it may be opened by others.
struct Opening {
    targets: Arc<Targets>,
    unit: (u32, u64),
    /// There is reason to open it again if it fails.
    again: Arc<AtomicBool>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut all = self.targets.opening.lock();
        if all.get(&self.unit).is_some_and(|again| Arc::ptr_eq(again, &self.again)) {
            all.remove(&self.unit);
        }
    }
}

/// Whether two units stand on the same storage, opened in the same way.
fn same_storage(a: &Lun, b: &Lun) -> bool {
    let how = |lun: &Lun| (lun.options.read_only, lun.options.thin);
    (&a.source, &a.inside, how(a)) == (&b.source, &b.inside, how(b))
}

/// A unit in a few words, for whoever finds its storage in use.
pub fn user_name(iqn: &str, number: u64) -> String {
    format!("target {iqn} LUN {number}")
}

/// FNV-1a of 128 bits.
pub fn fnv(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// Reads a mode page as tgt writes it: page, subpage, length, then that many bytes, with colons, decimal or `0x`.
pub fn mode_page(text: &str) -> Result<ModePage> {
    let bad = || {
        ApiError::invalid(format!("mode page {text:?} is not valid"))
            .with_hint("write PAGE:SUBPAGE:LENGTH:BYTE:BYTE..., with as many bytes as the length says")
    };
    let mut numbers = Vec::new();
    for part in text.split(':') {
        let value = match part.strip_prefix("0x") {
            Some(hex) => u8::from_str_radix(hex, 16),
            None => part.parse::<u8>(),
        };
        numbers.push(value.map_err(|_| bad())?);
    }
    match numbers.as_slice() {
        [page, subpage, length, bytes @ ..] if bytes.len() == usize::from(*length) => {
            Ok(ModePage { page: *page, subpage: *subpage, bytes: bytes.to_vec() })
        }
        _ => Err(bad()),
    }
}

/// What the unit is configured to be.
fn unit_config(lun: &Lun, block_bytes: u32) -> Result<UnitConfig> {
    let o = &lun.options;
    let defaults = UnitConfig::default();
    let block_bytes = o.block_bytes.unwrap_or(block_bytes);
    let config = UnitConfig {
        block_bytes,
        // 4 KiB is what storage likes, whatever the logical block is.
        physical_block_exponent: o.physical_block_exponent.unwrap_or(if block_bytes >= 4096 { 0 } else { 3 }),
        lowest_aligned: o.lowest_aligned.unwrap_or_default(),
        vendor: o.vendor.clone().unwrap_or(defaults.vendor.clone()),
        product: o.product.clone().unwrap_or(defaults.product.clone()),
        revision: o.revision.clone().unwrap_or(defaults.revision.clone()),
        scsi_id: o.scsi_id.clone().unwrap_or_default(),
        serial: o.serial.clone().unwrap_or_default(),
        descriptor_sense: o.descriptor_sense,
        removable: o.removable || lun.source == LunSource::Empty,
        read_only: o.read_only,
        online: !o.offline,
        thin: o.thin,
        write_cache: !o.write_through,
        optimal_granularity: o.optimal_granularity.unwrap_or_default(),
        optimal_blocks: o.optimal_blocks.unwrap_or_default(),
        rotation_rate: o.rotation_rate.unwrap_or(defaults.rotation_rate),
        mode_pages: o.mode_pages.iter().map(|text| mode_page(text)).collect::<Result<_>>()?,
        ..defaults
    };
    config.check().map_err(|e| ApiError::from_text(ErrorKind::Invalid, &e))?;
    Ok(config)
}

impl Targets {
    /// Where files are looked for. `own`: a file whose filesystem need not be mounted any more.
    pub(super) fn places(&self, own: Option<&Inside>) -> Places<'_> {
        let mut roots = (self.roots)();
        if let Some(own) = own
            && !roots.iter().any(|root| root.at == own.root)
        {
            roots.push(Root { at: own.root.clone(), fs: own.fs.clone(), serves: false });
        }
        Places::new(&*self.engine, roots)
    }

    /// Whether a file lies in one of our own filesystems, and which one it is.
    fn find_inside(&self, source: &LunSource) -> Result<Option<Inside>> {
        match source {
            LunSource::File(path) | LunSource::Vhdx(path) => {
                // Only where it can be seen: on a directory that a filesystem is still to be mounted on, it is another file.
                let roots = (self.roots)().into_iter().filter(|root| root.serves).collect();
                match Places::new(&*self.engine, roots).find(path).map_err(|e| from_core(&e))? {
                    Found::Inside(file) => Ok(Some(file)),
                    Found::Outside => Ok(None),
                    Found::Nothing => Err(ApiError::not_found(format!("{} does not exist", path.display())).with_hint(
                        "make it first; a sparse file with `truncate`, a VHDX file with `qrvsa vhdx create`",
                    )),
                }
            }
            LunSource::Volume(_) | LunSource::Null(_) | LunSource::Empty => Ok(None),
        }
    }

    /// Opens storage; its best logical block comes with it.
    fn open(&self, iqn: &str, tid: u32, number: u64, lun: &Lun) -> Result<Opened> {
        const BLOCK: u32 = 512;
        let below = Below {
            places: self.places(lun.inside.as_ref()),
            own: lun.inside.as_ref().map(|own| (own, path_now(&*self.engine, own))),
            held: Mutex::new(self.held.lock().remove(&(tid, number))),
            user: user_name(iqn, number),
        };
        match &lun.source {
            LunSource::Volume(name) => {
                let volume = self.engine.open_volume(name).map_err(|e| from_core(&e))?;
                let block_bytes = volume.block_bytes();
                let backing = super::volume::VolumeBacking::new(name.clone(), volume).map_err(|e| from_core(&e))?;
                Ok((Arc::new(backing), block_bytes))
            }
            LunSource::File(_) if let Some(own) = &lun.inside => {
                let (read_only, thin) = (lun.options.read_only, lun.options.thin.unwrap_or(false));
                let file = below.open_own(own, !read_only).map_err(|e| from_core(&e))?;
                let backing = PlainBelow::new(file, read_only, thin).map_err(|e| from_core(&e))?;
                Ok((Arc::new(backing), BLOCK))
            }
            LunSource::File(path) => {
                crate::host::refuse_own_mounts(path).map_err(|e| from_core(&e))?;
                let options = FileOptions {
                    read_only: lun.options.read_only,
                    direct: false,
                    thin: lun.options.thin.unwrap_or(false),
                };
                Ok((Arc::new(self.files.open(path, options)?), BLOCK))
            }
            LunSource::Vhdx(path) => {
                let path = below.own.as_ref().map_or_else(|| path.clone(), |(_, path)| path.clone());
                let backing = super::vhdx::VhdxBacking::open(&below, &path, lun.options.read_only);
                let backing = backing.map_err(|e| from_core(&e))?;
                let block_bytes = backing.block_bytes();
                Ok((Arc::new(backing), block_bytes))
            }
            LunSource::Null(bytes) => Ok((Arc::new(NullBacking::new(*bytes)), BLOCK)),
            LunSource::Empty => Ok((Arc::new(NullBacking::new(0)), BLOCK)),
        }
    }

    /// Opens storage and waits for it for so long; the next wait is shorter if this one was in vain. Storage that answers later
    /// serves then.
    fn open_within(&self, patience: &mut Duration, iqn: &str, tid: u32, number: u64, lun: &Lun) -> Result<Opened> {
        let Some(me) = self.me.upgrade() else { return Err(no_target(iqn)) };
        // Without room: what is sent has been received, or comes back.
        let (sender, receiver) = sync_channel(0);
        let (owned_iqn, owned_lun) = (iqn.to_owned(), lun.clone());
        let again = Arc::new(AtomicBool::new(false));
        self.opening.lock().insert((tid, number), Arc::clone(&again));
        let opening = Opening { targets: Arc::clone(&me), unit: (tid, number), again };
        let opener = move || {
            let opened = me.open(&owned_iqn, tid, number, &owned_lun);
            if let Err(SendError(late)) = sender.send(opened) {
                me.opened_late(&owned_iqn, opening, owned_lun, late);
            }
        };
        let internal = |text: String| ApiError::new(ErrorKind::Internal, text);
        let spawned = std::thread::Builder::new().name("qrvsa-lun-open".to_owned()).spawn(opener);
        spawned.map_err(|e| internal(format!("no thread to open its storage: {e}")))?;
        let deadline = Instant::now() + *patience;
        let answer = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(STOP_CHECK)) {
                Err(RecvTimeoutError::Timeout) if left > STOP_CHECK && !self.stopped.load(Ordering::Acquire) => {}
                answer => break answer,
            }
        };
        match answer {
            Ok(opened) => {
                self.opening.lock().remove(&(tid, number));
                opened
            }
            Err(RecvTimeoutError::Timeout) => {
                *patience = (*patience / 2).max(PATIENCE_MIN.min(*patience));
                Err(ApiError::new(ErrorKind::Unavailable, "its storage does not answer; it serves when that does"))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(internal("opening its storage failed; the log of the daemon has the details".to_owned()))
            }
        }
    }

    /// Storage answered when nobody waited for it any more. It is opened again if the unit is to stand on it otherwise by now, or
    /// if it failed and a pool has been imported since.
    fn opened_late(&self, iqn: &str, opening: Opening, mut lun: Lun, mut opened: Result<Opened>) {
        let (tid, number) = opening.unit;
        loop {
            let changing = self.changing.lock();
            let model = self.model();
            let target = model.targets.get(&tid).filter(|target| target.iqn == iqn);
            let waits = self.running.read().get(&tid).is_some_and(|running| running.unavailable.contains_key(&number));
            let now = target.and_then(|target| target.luns.get(&number));
            let Some(now) = now.filter(|_| waits && !self.stopped.load(Ordering::Acquire)) else {
                drop(opening);
                return;
            };
            let again = opening.again.swap(false, Ordering::AcqRel);
            if same_storage(&lun, now) && (opened.is_ok() || !again) {
                tracing::info!("the storage of target {iqn} LUN {number} answers");
                self.started(iqn, tid, number, now, opened);
                // before the next change, which may have it opened anew
                drop(opening);
                return;
            }
            lun = now.clone();
            drop(changing);
            // One that holds the storage would keep the next from it.
            drop(opened);
            opened = self.open(iqn, tid, number, &lun);
        }
    }

    /// Lets a unit serve that has nothing to do with an earlier one of its number.
    fn add_unit(&self, iqn: &str, tid: u32, number: u64, lun: &Lun) -> Result<()> {
        let opened = self.open(iqn, tid, number, lun)?;
        self.place(tid, number, lun, opened, true)
    }

    /// Lets a unit serve, on open storage. A `fresh` one has nothing to do with an earlier one of its number.
    fn place(&self, tid: u32, number: u64, lun: &Lun, (backing, block_bytes): Opened, fresh: bool) -> Result<()> {
        let config = unit_config(lun, block_bytes)?;
        let running = self.running.read().get(&tid).cloned();
        let running = running.ok_or_else(|| no_target(&tid.to_string()))?;
        running.keep.assign(number, pool_of(lun));
        if fresh {
            running.units.forget_stored(number).map_err(|e| ApiError::from_text(ErrorKind::Internal, &e))?;
        }
        running.units.add_unit(number, config, backing).map_err(|e| ApiError::from_text(ErrorKind::Invalid, &e))?;
        if lun.source == LunSource::Empty {
            let _ = running.units.eject_medium(number, true);
        }
        Ok(())
    }

    /// Lets a remembered unit serve, or notes why it does not.
    pub(super) fn start_lun(&self, model: &Model, tid: u32, number: u64, patience: &mut Duration) {
        let Some(target) = model.targets.get(&tid) else { return };
        let Some(lun) = target.luns.get(&number) else { return };
        let opened = self.open_within(patience, &target.iqn, tid, number, lun);
        self.started(&target.iqn, tid, number, lun, opened);
    }

    /// The same with what came of its storage.
    fn started(&self, iqn: &str, tid: u32, number: u64, lun: &Lun, opened: Result<Opened>) {
        let result = opened.and_then(|opened| self.place(tid, number, lun, opened, false));
        // its user may leave without a word
        if result.as_ref().is_err_and(|e| e.kind == ErrorKind::Busy) {
            {
                let mut units = self.busy_units.lock();
                if !units.contains(&(tid, number)) {
                    units.push_back((tid, number));
                }
            }
            self.retry_later();
        }
        let mut running = self.running.write();
        let Some(running) = running.get_mut(&tid) else { return };
        match result {
            Ok(()) => {
                if running.unavailable.remove(&number).is_some() {
                    tracing::info!("target {iqn} LUN {number} ({}) serves", lun.source);
                }
            }
            Err(e) => {
                let text = format!("target {iqn} LUN {number} ({}) is unavailable: {e}", lun.source);
                if running.unavailable.insert(number, e.message.clone()) != Some(e.message) {
                    tracing::error!("{text}");
                }
                // Initiators that knew it see that it is not ready, rather than that it is gone.
                let shown = unit_config(lun, lun.options.block_bytes.unwrap_or(512)).map_err(|e| e.message);
                if let Err(e) = shown.and_then(|config| running.units.add_unavailable(number, config)) {
                    tracing::error!("target {iqn} LUN {number}: {e}");
                }
            }
        }
    }

    /// Adds a unit.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub fn add_lun(&self, iqn: &str, request: &AddLun) -> Result<LunInfo> {
        self.add_lun_as(iqn, request, TgtStorage::default())
    }

    /// As [`Targets::add_lun`], with what tgt's programs said about the storage.
    pub(super) fn add_lun_as(&self, iqn: &str, request: &AddLun, tgt: TgtStorage) -> Result<LunInfo> {
        let _changing = self.changing.lock();
        let model = self.model();
        let (tid, target) = model.find(iqn).ok_or_else(|| no_target(iqn))?;
        let number = match request.lun {
            Some(number) if target.luns.contains_key(&number) => {
                return Err(ApiError::new(ErrorKind::Exists, format!("target {iqn} has a LUN {number} already")));
            }
            Some(number) => number,
            None => (1..).find(|number| !target.luns.contains_key(number)).unwrap_or(u64::MAX),
        };
        if let LunSource::Null(bytes) = request.source
            && (bytes == 0 || bytes > 1 << 62)
        {
            return Err(ApiError::invalid("the size of a null LUN has to be from 1 block to 4 EiB"));
        }
        // Two units of one volume would have one name, and initiators take them for paths to the same unit; but reservations and
        // indivisible commands of the one would not count for the other.
        if matches!(request.source, LunSource::Volume(_))
            && let Some(user) = model.user_of(|lun| lun.source == request.source)
        {
            return Err(ApiError::busy(format!("{} is the storage of target {user} already", request.source))
                .with_hint("let initiators in there, over as many portals as they need, or remove that LUN first"));
        }
        let inside = self.find_inside(&request.source)?;
        let mut lun = Lun { source: request.source.clone(), options: request.options.clone(), tgt, inside };
        self.need_staying_pool(&lun)?;
        self.name_unit(&mut lun, &target.iqn, number);
        let iqn = target.iqn.clone();
        // The unit first: storage that cannot be opened changes nothing.
        self.add_unit(&iqn, tid, number, &lun)?;
        let saved = self.change_locked(|model| {
            if let Some(target) = model.targets.get_mut(&tid) {
                target.luns.insert(number, lun);
            }
            Ok(())
        });
        if let Err(e) = saved {
            if let Some(units) = self.units(tid) {
                let _ = units.remove_unit(number);
            }
            return Err(e);
        }
        tracing::info!("target {iqn} LUN {number} added: {}", request.source);
        self.lun_info(tid, number).ok_or_else(|| no_target(&iqn))
    }

    /// Gives a unit names of its own that stay, where it was given none: volumes have theirs already.
    fn name_unit(&self, lun: &mut Lun, iqn: &str, number: u64) {
        let seed = match &lun.source {
            LunSource::Volume(name) => {
                self.engine.open_volume(name).map(|volume| volume.id().to_be_bytes().to_vec()).ok()
            }
            _ => None,
        };
        let seed = seed.unwrap_or_else(|| format!("{iqn}\n{number}").into_bytes());
        let [.., a, b, c, d, e, f, g, h] = fnv(&seed).to_be_bytes();
        let id = format!("{:016x}", u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        lun.options.serial.get_or_insert_with(|| id.clone());
        lun.options.scsi_id.get_or_insert_with(|| format!("QRVSA   {id}"));
    }

    /// Removes a unit; its storage stays as it is.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove_lun(&self, iqn: &str, number: u64) -> Result<()> {
        let _changing = self.changing.lock();
        let model = self.model();
        let (tid, target) = model.find(iqn).ok_or_else(|| no_target(iqn))?;
        if !target.luns.contains_key(&number) {
            return Err(ApiError::not_found(format!("target {iqn} has no LUN {number}"))
                .with_hint(format!("`qrvsa target show {iqn}` shows what it has")));
        }
        self.change_locked(|model| {
            if let Some(target) = model.targets.get_mut(&tid) {
                target.luns.remove(&number);
            }
            Ok(())
        })?;
        self.note_served(tid, number);
        if let Some(units) = self.units(tid)
            && let Err(e) = units.remove_unit(number)
        {
            tracing::error!("target {iqn} LUN {number}: {e}");
        }
        tracing::info!("target {iqn} LUN {number} removed");
        Ok(())
    }

    /// Nothing keeps a unit from serving any more.
    fn note_served(&self, tid: u32, number: u64) {
        if let Some(running) = self.running.write().get_mut(&tid) {
            running.unavailable.remove(&number);
        }
    }

    fn replace_lun(&self, tid: u32, number: u64, lun: &Lun) -> Result<()> {
        self.change_locked(|model| {
            if let Some(target) = model.targets.get_mut(&tid) {
                target.luns.insert(number, lun.clone());
            }
            Ok(())
        })
    }

    /// Changes how a unit shows itself, while it serves, and its medium if it is removable. With `load`, an ejected medium is loaded
    /// again. What cannot be saved is not done, and what cannot be done is not saved.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub(super) fn update_lun(
        &self,
        tid: u32,
        number: u64,
        load: bool,
        edit: impl FnOnce(&mut Lun) -> Result<()>,
    ) -> Result<()> {
        let _changing = self.changing.lock();
        let model = self.model();
        let target = model.targets.get(&tid).ok_or_else(|| no_target(&tid.to_string()))?;
        let old = target
            .luns
            .get(&number)
            .ok_or_else(|| ApiError::not_found(format!("target {} has no LUN {number}", target.iqn)))?;
        let mut new = old.clone();
        edit(&mut new)?;
        let invalid = |e: String| ApiError::from_text(ErrorKind::Invalid, &e);
        let moved = new.source != old.source;
        if moved {
            if !old.options.removable && old.source != LunSource::Empty {
                return Err(ApiError::invalid(format!("LUN {number} is not removable: its storage stays"))
                    .with_hint("remove the LUN, and add it anew"));
            }
            new.inside = self.find_inside(&new.source)?;
            self.need_staying_pool(&new)?;
        }
        if load && new.source == LunSource::Empty {
            return Err(ApiError::invalid(format!("LUN {number} has no medium")).with_hint("name one with path=FILE"));
        }
        let running = self.running.read().get(&tid).cloned().ok_or_else(|| no_target(&target.iqn))?;
        let (units, live) = (&running.units, !running.unavailable.contains_key(&number));
        let block_bytes = units.units().iter().find(|(n, _)| *n == number).map_or(512, |(_, c)| c.block_bytes);
        let config = unit_config(&new, block_bytes)?;
        let opened = if moved { Some(self.open(&target.iqn, tid, number, &new)?) } else { None };
        if moved && live {
            let kept = running.keep.move_to(number, pool_of(&new), &units.stored_keys(number));
            kept.map_err(|e| ApiError::from_text(ErrorKind::Internal, &e))?;
        }
        let shown = self.replace_lun(tid, number, &new).and_then(|()| match opened {
            // Another medium than the one that was waited for; what was stored with that is not to be had.
            Some(opened) if !live => {
                self.place(tid, number, &new, opened, true)?;
                self.note_served(tid, number);
                Ok(())
            }
            _ if !live => Ok(()),
            opened => {
                if let Some((backing, _)) = opened {
                    units.load_medium(number, backing).map_err(invalid)?;
                }
                units.update_unit(number, config).map_err(invalid)?;
                let ejected = units.medium(number).is_some_and(|medium| medium.ejected);
                if load && ejected { units.reload_medium(number).map_err(invalid) } else { Ok(()) }
            }
        });
        if let Err(e) = shown {
            running.keep.assign(number, pool_of(old));
            if !Arc::ptr_eq(&self.model(), &model)
                && let Err(again) = self.replace_lun(tid, number, old)
            {
                tracing::error!("target {} LUN {number}: {again}", target.iqn);
            }
            return Err(e);
        }
        Ok(())
    }
}
