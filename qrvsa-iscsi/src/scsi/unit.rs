//! One logical unit: its shape (configuration and storage, swapped as a whole) and its state.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};

use super::Nexus;
use super::attention::{Attention, Attentions};
use super::config::{DeviceType, UnitConfig};
use super::ident::Ident;
use super::mode::Pages;
use super::ranges::Ranges;
use super::reserve::Reservations;
use super::sanitize::Sanitize;
use super::sense::Sense;
use super::stats::Counters;
use super::thin::Threshold;
use super::watch::Watch;
use crate::backing::Backing;

/// What a unit is at a moment.
pub(crate) struct Shape {
    pub config: UnitConfig,
    pub backing: Arc<dyn Backing>,
    pub ident: Ident,
    pub block: u32,
    pub thin: bool,
    pub read_only: bool,
    /// Its storage is not there: it has its names, and is not ready.
    pub unavailable: bool,
}

impl Shape {
    pub(crate) fn new(target: &str, lun: u64, config: UnitConfig, backing: Arc<dyn Backing>) -> Self {
        Self {
            ident: Ident::new(target, lun, &config, &*backing),
            block: config.block_bytes,
            thin: config.thin.unwrap_or_else(|| backing.thin()),
            read_only: config.read_only || backing.read_only(),
            unavailable: false,
            config,
            backing,
        }
    }

    /// Capacity in blocks now.
    pub(crate) fn blocks(&self) -> u64 {
        self.backing.size_bytes() / u64::from(self.block)
    }

    pub(crate) fn is_disk(&self) -> bool {
        self.config.device_type == DeviceType::Disk
    }
}

/// What a unit knows of one nexus.
struct NexusState {
    nexus: Arc<Nexus>,
    attentions: Attentions,
    prevents: bool,
}

/// The medium cannot be used: it is ejected.
pub(crate) const EJECTED: u8 = 1;

pub(crate) struct Unit {
    pub lun: u64,
    /// Names the unit for the life of the process.
    pub serial: u64,
    shape: ArcSwap<Shape>,
    pub pages: RwLock<Pages>,
    pub reservations: Reservations,
    pub ranges: Ranges,
    pub counters: Counters,
    pub sanitize: Sanitize,
    pub threshold: Threshold,
    pub watch: Watch,
    /// Capacity that initiators have been told of, blocks.
    pub told_blocks: AtomicU64,
    medium: AtomicU8,
    nexuses: Mutex<HashMap<u16, NexusState>>,
    /// Attentions of all nexuses together, so that the common case needs no lock.
    pending: AtomicUsize,
}

static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

impl Unit {
    pub(crate) fn new(lun: u64, shape: Shape, pages: Pages) -> Self {
        Self {
            lun,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            told_blocks: AtomicU64::new(shape.blocks()),
            shape: ArcSwap::from_pointee(shape),
            pages: RwLock::new(pages),
            reservations: Reservations::default(),
            ranges: Ranges::default(),
            counters: Counters::default(),
            sanitize: Sanitize::default(),
            threshold: Threshold::default(),
            watch: Watch::default(),
            medium: AtomicU8::new(0),
            nexuses: Mutex::default(),
            pending: AtomicUsize::new(0),
        }
    }

    pub(crate) fn shape(&self) -> arc_swap::Guard<Arc<Shape>> {
        self.shape.load()
    }

    pub(crate) fn shape_arc(&self) -> Arc<Shape> {
        self.shape.load_full()
    }

    pub(crate) fn set_shape(&self, shape: Shape) {
        self.told_blocks.store(shape.blocks(), Ordering::Relaxed);
        self.shape.store(Arc::new(shape));
    }

    pub(crate) fn medium(&self) -> u8 {
        self.medium.load(Ordering::Acquire)
    }

    pub(crate) fn set_medium(&self, state: u8) {
        self.medium.store(state, Ordering::Release);
    }

    /// Whether another unit may take its place: the controller at LUN 0 and units without storage do not stand in the way.
    pub(crate) fn gives_way(&self) -> bool {
        let shape = self.shape();
        shape.unavailable || (self.lun == 0 && !shape.is_disk())
    }

    /// Why commands to the medium cannot run now.
    pub(crate) fn readiness(&self, shape: &Shape) -> Result<(), Sense> {
        let medium = self.medium();
        if medium == 0 && shape.config.online && !shape.unavailable && self.sanitize.is_idle() {
            return Ok(());
        }
        self.medium_readiness(shape)?;
        self.sanitize.readiness()
    }

    /// The same but for sanitizing.
    pub(crate) fn medium_readiness(&self, shape: &Shape) -> Result<(), Sense> {
        let medium = self.medium();
        if shape.unavailable {
            return Err(Sense::UNAVAILABLE);
        }
        if medium & EJECTED != 0 {
            return Err(Sense::NO_MEDIUM);
        }
        if !shape.config.online {
            // tgt tells an offline unit as one without a medium if it is removable
            return Err(if shape.config.removable { Sense::NO_MEDIUM } else { Sense::new(2, 0x04, 0x12) });
        }
        Ok(())
    }

    pub(crate) fn open_nexus(&self, nexus: &Arc<Nexus>) {
        let mut nexuses = self.nexuses.lock();
        let mut attentions = Attentions::default();
        attentions.add(Attention::POWER_ON);
        let fresh = NexusState { nexus: nexus.clone(), attentions, prevents: false };
        if let Some(old) = nexuses.insert(nexus.tsih, fresh) {
            self.pending.fetch_sub(old.attentions.len(), Ordering::AcqRel);
        }
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn close_nexus(&self, nexus: &Nexus) {
        if let Some(old) = self.nexuses.lock().remove(&nexus.tsih) {
            self.pending.fetch_sub(old.attentions.len(), Ordering::AcqRel);
        }
        self.reservations.nexus_lost(nexus.tsih);
    }

    /// Establishes a condition for the nexuses that `who` picks.
    pub(crate) fn attend(&self, attention: Attention, who: impl Fn(&Nexus) -> bool) {
        let mut nexuses = self.nexuses.lock();
        for state in nexuses.values_mut().filter(|s| who(&s.nexus)) {
            let more = state.attentions.add(attention);
            if more >= 0 {
                self.pending.fetch_add(more.unsigned_abs(), Ordering::AcqRel);
            } else {
                self.pending.fetch_sub(more.unsigned_abs(), Ordering::AcqRel);
            }
        }
    }

    pub(crate) fn attend_others(&self, attention: Attention, me: &Nexus) {
        self.attend(attention, |nexus| nexus.tsih != me.tsih);
    }

    /// The next condition of this nexus; with `take` it is cleared.
    pub(crate) fn attention(&self, nexus: &Nexus, take: bool) -> Option<Attention> {
        if self.pending.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut nexuses = self.nexuses.lock();
        let state = nexuses.get_mut(&nexus.tsih)?;
        if !take {
            return state.attentions.first();
        }
        let attention = state.attentions.take()?;
        self.pending.fetch_sub(1, Ordering::AcqRel);
        Some(attention)
    }

    /// Clears one condition of this nexus without telling it.
    pub(crate) fn forget_attention(&self, nexus: &Nexus, attention: Attention) {
        if let Some(state) = self.nexuses.lock().get_mut(&nexus.tsih)
            && state.attentions.remove(attention)
        {
            self.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The nexuses that `who` picks.
    pub(crate) fn live(&self, who: impl Fn(&Nexus) -> bool) -> Vec<Arc<Nexus>> {
        self.nexuses.lock().values().filter(|s| who(&s.nexus)).map(|s| s.nexus.clone()).collect()
    }

    pub(crate) fn set_prevent(&self, nexus: &Nexus, prevents: bool) {
        if let Some(state) = self.nexuses.lock().get_mut(&nexus.tsih) {
            state.prevents = prevents;
        }
    }

    pub(crate) fn removal_prevented(&self) -> bool {
        self.nexuses.lock().values().any(|s| s.prevents)
    }

    /// What a reset does to a unit (SAM-5 6.3.3): reservations of SPC-2, prevention of removal and mode pages go back, everybody is told.
    pub(crate) fn reset(&self, attention: Attention) {
        self.reservations.reset();
        self.pages.write().reset();
        for state in self.nexuses.lock().values_mut() {
            state.prevents = false;
        }
        self.attend(attention, |_| true);
    }

    /// Tells everybody when the storage has got another size than the one they know; answers the size in blocks.
    pub(crate) fn notice_size(&self, shape: &Shape) -> u64 {
        let blocks = shape.blocks();
        if self.told_blocks.load(Ordering::Relaxed) != blocks
            && self.told_blocks.swap(blocks, Ordering::AcqRel) != blocks
        {
            self.attend(Attention::CAPACITY_CHANGED, |_| true);
        }
        blocks
    }
}
