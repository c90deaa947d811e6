//! Logical units: their storage, and how they show themselves.

use std::sync::Arc;

use parking_lot::Mutex;
use qrvsa_api::{AddLun, ApiError, ErrorKind, LunInfo, LunSource};
use qrvsa_iscsi::backing::{Backing, FileBacking, FileOptions, NullBacking};
use qrvsa_iscsi::scsi::{ModePage, UnitConfig};

use super::below::{Below, PlainBelow, path_now};
use super::model::{Lun, Model, TgtStorage};
use super::places::{Found, Inside, Places, Root};
use super::{Result, Targets, no_target};
use crate::error::from_core;

/// The pool that holds the storage.
pub fn pool_of(lun: &Lun) -> Option<&str> {
    match &lun.source {
        LunSource::Volume(name) => Some(&name.pool),
        _ => lun.inside.as_ref().map(|inside| inside.fs.pool.as_str()),
    }
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
    fn open(&self, tid: u32, number: u64, lun: &Lun) -> Result<(Arc<dyn Backing>, u32)> {
        const BLOCK: u32 = 512;
        let iqn = self.model().targets.get(&tid).map(|target| target.iqn.clone()).unwrap_or_default();
        let below = Below {
            places: self.places(lun.inside.as_ref()),
            own: lun.inside.as_ref().map(|own| (own, path_now(&*self.engine, own))),
            held: Mutex::new(self.held.lock().remove(&(tid, number))),
            user: user_name(&iqn, number),
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
                let backing = FileBacking::open(path, options).map_err(|e| {
                    ApiError::not_found(format!("cannot use {e}")).with_hint("name an existing file or block device")
                })?;
                Ok((Arc::new(backing), BLOCK))
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

    /// Lets a unit serve. A `fresh` one has nothing to do with an earlier one of its number.
    fn add_unit(&self, tid: u32, number: u64, lun: &Lun, fresh: bool) -> Result<()> {
        let (backing, block_bytes) = self.open(tid, number, lun)?;
        let config = unit_config(lun, block_bytes)?;
        let running = self.running.read().get(&tid).cloned();
        let running = running.ok_or_else(|| no_target(&tid.to_string()))?;
        running.keep.assign(number, pool_of(lun));
        if fresh {
            running.units.forget_unfinished(number).map_err(|e| ApiError::from_text(ErrorKind::Internal, &e))?;
        }
        running.units.add_unit(number, config, backing).map_err(|e| ApiError::from_text(ErrorKind::Invalid, &e))?;
        if lun.source == LunSource::Empty {
            let _ = running.units.eject_medium(number, true);
        }
        Ok(())
    }

    /// Lets a remembered unit serve, or notes why it does not.
    pub(super) fn start_lun(&self, model: &Model, tid: u32, number: u64) {
        let Some(target) = model.targets.get(&tid) else { return };
        let Some(lun) = target.luns.get(&number) else { return };
        let result = self.add_unit(tid, number, lun, false);
        let mut running = self.running.write();
        let Some(running) = running.get_mut(&tid) else { return };
        match result {
            Ok(()) => {
                running.unavailable.remove(&number);
            }
            Err(e) => {
                tracing::error!("target {} LUN {number} ({}) is unavailable: {e}", target.iqn, lun.source);
                running.unavailable.insert(number, e.message);
                // Initiators that knew it see that it is not ready, rather than that it is gone.
                let shown = unit_config(lun, lun.options.block_bytes.unwrap_or(512)).map_err(|e| e.message);
                if let Err(e) = shown.and_then(|config| running.units.add_unavailable(number, config)) {
                    tracing::error!("target {} LUN {number}: {e}", target.iqn);
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
        self.name_unit(&mut lun, &target.iqn, number);
        let iqn = target.iqn.clone();
        // The unit first: storage that cannot be opened changes nothing.
        self.add_unit(tid, number, &lun, true)?;
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
        if let Some(running) = self.running.write().get_mut(&tid) {
            running.unavailable.remove(&number);
        }
        if let Some(units) = self.units(tid)
            && let Err(e) = units.remove_unit(number)
        {
            tracing::error!("target {iqn} LUN {number}: {e}");
        }
        tracing::info!("target {iqn} LUN {number} removed");
        Ok(())
    }

    /// Changes how a unit shows itself, while it serves.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub(super) fn update_lun(&self, tid: u32, number: u64, edit: impl FnOnce(&mut Lun) -> Result<()>) -> Result<()> {
        let _changing = self.changing.lock();
        let model = self.model();
        let target = model.targets.get(&tid).ok_or_else(|| no_target(&tid.to_string()))?;
        let old = target
            .luns
            .get(&number)
            .ok_or_else(|| ApiError::not_found(format!("target {} has no LUN {number}", target.iqn)))?;
        let mut new = old.clone();
        edit(&mut new)?;
        if new.source != old.source {
            new.inside = self.find_inside(&new.source)?;
        }
        let units = self.units(tid).ok_or_else(|| no_target(&target.iqn))?;
        let live = !self.running.read().get(&tid).is_some_and(|running| running.unavailable.contains_key(&number));
        if live {
            let block_bytes = units.units().iter().find(|(n, _)| *n == number).map_or(512, |(_, c)| c.block_bytes);
            let config = unit_config(&new, block_bytes)?;
            if new.source != old.source {
                let (backing, _) = self.open(tid, number, &new)?;
                units.load_medium(number, backing).map_err(|e| ApiError::from_text(ErrorKind::Invalid, &e))?;
            }
            units.update_unit(number, config).map_err(|e| ApiError::from_text(ErrorKind::Invalid, &e))?;
        }
        self.change_locked(|model| {
            if let Some(target) = model.targets.get_mut(&tid) {
                target.luns.insert(number, new);
            }
            Ok(())
        })
    }
}
