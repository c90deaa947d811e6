//! Making a pool.
//!
//! Labels are written last, after the first commit: what is interrupted before is not a pool.

use std::sync::Arc;

use super::open::{wipe, write_label};
use super::pool::{Options, Parts, Pool};
use crate::dataset::Host;
use crate::device::Device;
use crate::env::Environment;
use crate::error::Result;
use crate::fail;
use crate::fs::{FileSystem, FormatOptions};
use crate::item::Intent;
use crate::pool::format::entries::{Class, Content, DatasetEntry, DeviceEntry, MemberState};
use crate::pool::format::label::{Label, NAME_BYTES_MAX};
use crate::pool::format::layout;
use crate::pool::format::uberblock::LogStart;
use crate::pool::member::Member;
use crate::pool::space::{Geometry, Space};
use crate::tree::Root;

/// Number of the pool's own filesystem.
pub const ROOT_DATASET: u64 = 1;
/// Default record size of files, bytes.
pub const RECORD_SIZE_DEFAULT: u32 = 128 << 10;

/// Checks a pool's or filesystem's name.
///
/// # Errors
/// `Invalid`.
pub fn check_name(name: &str, what: &str) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        fail!(Invalid, "{what} name is {} characters long; at most {NAME_BYTES_MAX} are allowed", name.len());
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || !name.chars().all(good) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        fail!(
            Invalid,
            "'{name}' is not a {what} name: letters, digits, '-', '_' and '.', beginning with a letter or digit"
        );
    }
    Ok(())
}

/// The log's size in bytes for devices of `size` bytes.
fn default_log_bytes(size: u64) -> u64 {
    (size / 32).clamp(4 << 20, 1 << 30)
}

impl Pool {
    /// Makes a pool on devices that were opened exclusively and that may be overwritten (the caller has asked).
    ///
    /// # Errors
    /// `Invalid` for too few or too small devices, `Io`.
    pub fn create(
        env: Environment,
        options: Options,
        name: &str,
        geometry: Option<Geometry>,
        devices: Vec<Arc<dyn Device>>,
    ) -> Result<Arc<Pool>> {
        check_name(name, "pool")?;
        let geometry = geometry.unwrap_or_else(|| Geometry::default_for(devices.len()));
        if devices.len() < geometry.columns() {
            fail!(
                Invalid,
                "geometry {geometry} needs at least {} devices, {} were given; give more or choose a smaller --geometry",
                geometry.columns(),
                devices.len()
            );
        }
        if devices.len() > 4096 {
            fail!(Invalid, "a pool takes at most 4096 devices");
        }
        for d in &devices {
            let size = d.info().size_bytes;
            if size < layout::DEVICE_BYTES_MIN {
                fail!(
                    Invalid,
                    "{} has {} MiB; a device needs at least {} MiB",
                    d.info().path.display(),
                    size >> 20,
                    layout::DEVICE_BYTES_MIN.div_ceil(1 << 20)
                );
            }
        }
        let smallest = devices.iter().map(|d| d.info().size_bytes).min().unwrap_or(0);
        let zone_shift = layout::choose_zone_shift(smallest);
        let pool_id = env.random_u128();
        let created_ns = env.clock.wall_ns();
        let mut members = Vec::new();
        let mut labels = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            wipe(device)?;
            let entry = DeviceEntry {
                index: index as u16,
                device_id: env.random_u128(),
                state: MemberState::Online,
                size_bytes: device.info().size_bytes,
                read_errors: 0,
                write_errors: 0,
                checksum_errors: 0,
                repaired: 0,
                path: device.info().path.display().to_string(),
                message: String::new(),
            };
            labels.push(Label {
                pool_id,
                device_id: entry.device_id,
                index: entry.index,
                data: geometry.data,
                parity: geometry.parity,
                zone_shift,
                size_bytes: entry.size_bytes,
                created_ns,
                incompatible: 0,
                readonly_compatible: 0,
                pool_name: name.to_owned(),
            });
            members.push(Arc::new(Member::new(&entry, Some(device.clone()))));
        }
        let space = Arc::new(Space::new(geometry, zone_shift, members, Vec::new())?);
        space.create_own_group(Class::System)?;
        let log_bytes = options.log_bytes.unwrap_or_else(|| default_log_bytes(smallest));
        let segments = (log_bytes >> zone_shift).clamp(1, 64);
        let mut log_segments = Vec::new();
        for _ in 0..segments {
            log_segments.push(space.create_own_group(Class::Log)?);
        }
        space.set_bitmap_loader(|g| {
            fail!(Corrupt, "block group {} of a new pool has no stored bitmap", g.id);
        });
        let generation = 1;
        let log_start = LogStart { generation, segment: 0, row: 0, sequence: 1, base_txg: 0 };
        let pool = Arc::new(Pool::assemble(Parts {
            name: name.to_owned(),
            id: pool_id,
            created_ns,
            env,
            options,
            space,
            log_segments,
            log_start,
            txg: 0,
            generation,
            root: Root::EMPTY,
        }));
        pool.install_bitmap_loader();
        let begin = || {
            pool.admit(Intent::Grow)?;
            pool.add_dataset("", ROOT_DATASET)?;
            pool.commit()?;
            devices.iter().zip(&labels).try_for_each(|(device, label)| write_label(device, label))
        };
        if let Err(e) = begin() {
            // the pool and its datasets hold each other, and the devices
            pool.abandon();
            return Err(e);
        }
        Ok(pool)
    }

    /// Makes a filesystem in the pool.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NoSpace`.
    pub fn create_dataset(self: &Arc<Self>, name: &str) -> Result<()> {
        check_name(name, "filesystem")?;
        let _naming = self.naming.lock();
        let id = self.new_dataset_id(name)?;
        // may commit, and may find no room: not once the filesystem is one of the pool's
        self.admit(Intent::Grow)?;
        self.add_dataset(name, id)?;
        self.commit()
    }

    /// A number for a new dataset whose name is free. Called with `naming` held.
    pub(crate) fn new_dataset_id(&self, name: &str) -> Result<u64> {
        if self.dataset(name).is_some() {
            fail!(Exists, "'{}/{name}' exists already; choose another name", self.name);
        }
        Ok(self.datasets.read().keys().max().copied().unwrap_or(0) + 1)
    }

    /// The entry of a new, empty dataset.
    pub(crate) fn new_entry(&self, name: &str, id: u64, content: Content) -> DatasetEntry {
        let mut root = Vec::new();
        Root::EMPTY.encode(&mut root);
        DatasetEntry {
            id,
            content,
            destroying: false,
            reserved: false,
            hash_seed: self.env.random.next_u64(),
            next_object: 1025,
            created_ns: self.env.clock.wall_ns(),
            name: name.to_owned(),
            properties: Vec::new(),
            root,
        }
    }

    /// Puts a new filesystem in place. The caller has been admitted.
    fn add_dataset(self: &Arc<Self>, name: &str, id: u64) -> Result<()> {
        let mut entry = self.new_entry(name, id, Content::FileSystem);
        entry.properties = vec![("recordsize".to_owned(), RECORD_SIZE_DEFAULT.to_string())];
        let options = FormatOptions { record_size: RECORD_SIZE_DEFAULT, ..FormatOptions::default() };
        // no commit meanwhile: no state has the filesystem without its root directory
        let _state = self.commit_state.lock();
        let dataset = self.attach_dataset(&entry)?;
        let tx = dataset.begin_unchecked();
        let made = FileSystem::format_in(&*dataset, &tx, options);
        if made.is_err() {
            self.datasets.write().remove(&id);
        }
        made
    }
}
