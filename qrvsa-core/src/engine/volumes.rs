//! The volumes of a pool: making, finding, resizing them, and the room that is set aside for reserved ones.

use std::sync::{Arc, Weak};

use super::Pool;
use super::create::check_name;
use crate::buf::BLOCK_SIZE;
use crate::dataset::{Dataset, Host};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::fs::store::Store;
use crate::item::Log;
use crate::object::Items;
use crate::pool::format::entries::Content;
use crate::volume::{Settings, Spec, VOLUME_OBJECT, Volume, settings_key};

/// Key of an extent item and its pointer without checksums, bytes.
const EXTENT_BYTES: u64 = 19 + 32;
/// Room beyond its size that a reserved volume has for overwriting, in bytes: the new is written before the old is freed.
const OVERWRITE_BYTES: u64 = 8 << 20;

/// A volume, for lists.
#[derive(Clone, Debug)]
pub struct VolumeInfo {
    /// Name within the pool.
    pub name: String,
    /// What it is.
    pub settings: Settings,
    /// Room for all of it is set aside.
    pub reserved: bool,
    /// Data it holds, bytes before redundancy.
    pub allocated_bytes: u64,
    /// Creation, nanoseconds since the epoch.
    pub created_ns: i64,
}

/// Room that is promised to a reserved volume.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Claim {
    /// Usable blocks.
    blocks: u64,
    /// The size it is about to have, bytes.
    growing_to: u64,
}

impl Pool {
    /// Makes a volume.
    ///
    /// # Errors
    /// `Exists`, `Invalid`; `NoSpace` when the pool has not the room that a reserved one wants.
    pub fn create_volume(self: &Arc<Self>, name: &str, spec: &Spec) -> Result<()> {
        check_name(name, "volume")?;
        spec.check()?;
        self.check_writable()?;
        let _naming = self.naming.lock();
        let id = self.new_dataset_id(name)?;
        let settings = Settings {
            size_bytes: spec.size_bytes,
            block_bytes: spec.block_bytes,
            record_bytes: spec.record_bytes,
            id: self.env.random_u128(),
        };
        if spec.reserve {
            self.claim(id, &settings, 0, name)?;
        }
        let mut entry = self.new_entry(name, id, Content::Volume);
        entry.reserved = spec.reserve;
        {
            // no commit meanwhile: no state has the volume without its settings
            let _state = self.commit_state.lock();
            let attached = self.attach_dataset(&entry);
            if attached.is_err() {
                self.claims.lock().remove(&id);
            }
            let dataset = attached?;
            let tx = dataset.begin_unchecked();
            Store::put(&*dataset, &tx, settings_key(), settings.encode().into(), Log::WithObject);
        }
        self.commit()
    }

    fn volume_dataset(&self, name: &str) -> Result<Arc<Dataset>> {
        match self.dataset(name) {
            Some(dataset) if dataset.content() == Content::Volume => Ok(dataset),
            Some(_) => fail!(Invalid, "'{}/{name}' is a filesystem, not a volume", self.name),
            None => {
                fail!(NotFound, "volume '{}/{name}' does not exist; 'volume list' shows those there are", self.name)
            }
        }
    }

    /// The volume of this name; the same one for everybody. While somebody has it, it cannot be destroyed.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a filesystem; `Io`, `Corrupt`.
    pub fn open_volume(&self, name: &str) -> Result<Arc<Volume>> {
        let dataset = self.volume_dataset(name)?;
        let mut volumes = self.volumes.lock();
        if let Some(volume) = volumes.get(&dataset.id).and_then(Weak::upgrade) {
            return Ok(volume);
        }
        if dataset.destroying() {
            fail!(NotFound, "volume '{}/{name}' does not exist; 'volume list' shows those there are", self.name);
        }
        let volume = Arc::new(Volume::open(dataset.clone())?);
        volumes.insert(dataset.id, Arc::downgrade(&volume));
        Ok(volume)
    }

    /// Whether somebody may be writing to a volume.
    pub fn volume_in_use(&self, name: &str) -> bool {
        let Ok(dataset) = self.volume_dataset(name) else { return false };
        let volume = self.volumes.lock().get(&dataset.id).and_then(Weak::upgrade);
        volume.is_some_and(|volume| volume.in_use())
    }

    /// All volumes, by number.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn list_volumes(&self) -> Result<Vec<VolumeInfo>> {
        let datasets = self.datasets();
        datasets.iter().filter(|d| d.content() == Content::Volume).map(|d| volume_info(d)).collect()
    }

    /// Whether there is any volume.
    pub fn has_volumes(&self) -> bool {
        self.datasets().iter().any(|d| d.content() == Content::Volume)
    }

    /// One volume.
    ///
    /// # Errors
    /// As [`Pool::open_volume`].
    pub fn volume_info(&self, name: &str) -> Result<VolumeInfo> {
        volume_info(&*self.volume_dataset(name)?)
    }

    /// Changes the size of a volume, in use or not. Durable at the return.
    ///
    /// # Errors
    /// `NeedsForce` to shrink it without `force`, `NoSpace` when a reserved one has not the room to grow, `Invalid`,
    /// `NotFound`.
    pub fn resize_volume(&self, name: &str, size_bytes: u64, force: bool) -> Result<()> {
        let volume = self.open_volume(name)?;
        let dataset = self.volume_dataset(name)?;
        crate::volume::check_size(size_bytes, volume.block_bytes())?;
        if dataset.reserved() && size_bytes > volume.size_bytes() {
            let settings = settings_of(&dataset)?;
            let blocks = dataset.objects.space_blocks(VOLUME_OBJECT)?;
            self.claim(dataset.id, &Settings { size_bytes, ..settings }, blocks, name)?;
        }
        let done = volume.set_size(size_bytes, force);
        if let Some(claim) = self.claims.lock().get_mut(&dataset.id) {
            claim.growing_to = 0;
        }
        // also what was promised in vain
        self.update_claims()?;
        done
    }

    /// Ends the use of all volumes: the pool is about to be closed.
    pub(crate) fn retire_volumes(&self) {
        let volumes = std::mem::take(&mut *self.volumes.lock());
        for volume in volumes.values().filter_map(Weak::upgrade) {
            volume.retire();
        }
    }

    // ---- room set aside ---------------------------------------------------------------------------------------------

    /// Usable blocks that a reserved volume may still come to cost, when its records have `blocks` blocks.
    fn claim_blocks(&self, settings: &Settings, blocks: u64) -> u64 {
        let record_blocks = settings.record_bytes / BLOCK_SIZE as u32;
        let records = settings.size_bytes.div_ceil(u64::from(settings.record_bytes));
        let missing = records.saturating_sub(blocks / u64::from(record_blocks));
        let item = EXTENT_BYTES + 8 * u64::from(self.space.checksums_max(record_blocks));
        let record_cost = self.space.cost_blocks(record_blocks);
        missing
            .saturating_mul(record_cost)
            .saturating_add(self.space.cost_items(missing, item))
            .saturating_add(self.space.cost_blocks((OVERWRITE_BYTES / BLOCK_SIZE as u64) as u32))
    }

    /// Promises room to a volume, in place of an older promise. Waits for commits that may make some.
    fn claim(&self, dataset: u64, settings: &Settings, blocks: u64, name: &str) -> Result<()> {
        for _ in 0..3 {
            match self.claim_now(dataset, settings, blocks, name) {
                Err(e) if e.kind() == ErrorKind::NoSpace && self.space_may_return() => {
                    self.space.end_holds();
                    self.commit_now()?;
                }
                done => return done,
            }
        }
        self.claim_now(dataset, settings, blocks, name)
    }

    fn claim_now(&self, dataset: u64, settings: &Settings, blocks: u64, name: &str) -> Result<()> {
        let wanted = self.claim_blocks(settings, blocks);
        let mut claims = self.claims.lock();
        let old = claims.get(&dataset).map_or(0, |claim| claim.blocks);
        let room = self.space.unclaimed() + old;
        if wanted > room {
            // a pool that was closed meanwhile has no devices, and so no room
            self.check_writable()?;
            let bytes = |blocks: u64| u128::from(blocks) * BLOCK_SIZE as u128;
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "'{}/{name}' needs {} bytes set aside, the pool has {}; make it smaller or thin, or choose a larger \
                     --record-size",
                    self.name,
                    bytes(wanted),
                    bytes(room)
                ),
            ));
        }
        claims.insert(dataset, Claim { blocks: wanted, growing_to: settings.size_bytes });
        self.space.set_claimed(claims.values().map(|claim| claim.blocks).sum());
        Ok(())
    }

    /// Brings the promises up to date with what the volumes have.
    pub(crate) fn update_claims(&self) -> Result<()> {
        let mut claims = self.claims.lock();
        for dataset in self.datasets().iter().filter(|d| d.reserved()) {
            let mut settings = settings_of(dataset)?;
            let blocks = dataset.objects.space_blocks(VOLUME_OBJECT)?;
            let claim = claims.entry(dataset.id).or_default();
            settings.size_bytes = settings.size_bytes.max(claim.growing_to);
            claim.blocks = self.claim_blocks(&settings, blocks);
        }
        for dataset in self.every_dataset().iter().filter(|d| d.destroying()) {
            claims.remove(&dataset.id);
        }
        self.space.set_claimed(claims.values().map(|claim| claim.blocks).sum());
        Ok(())
    }
}

fn settings_of(dataset: &Dataset) -> Result<Settings> {
    match dataset.items.get(settings_key())? {
        Some(value) => Settings::decode(&value),
        None => fail!(Corrupt, "volume '{}' has no settings", dataset.name()),
    }
}

fn volume_info(dataset: &Dataset) -> Result<VolumeInfo> {
    let settings = settings_of(dataset)?;
    Ok(VolumeInfo {
        name: dataset.name(),
        settings,
        reserved: dataset.reserved(),
        allocated_bytes: Store::allocated_bytes(dataset, settings.object())?,
        created_ns: dataset.created_ns,
    })
}
