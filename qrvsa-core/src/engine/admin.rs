//! What an administrator does to a whole pool, and looking inside it.

use std::sync::atomic::Ordering;

use super::Pool;
use super::open::wipe;
use crate::buf::BLOCK_SIZE;
use crate::error::Result;
use crate::fail;
use crate::object::{Items, KIND_EXTENT};
use crate::pool::format::entries::MemberState;
use crate::record::pointer::Pointer;
use crate::tree::Key;

/// What a fragment is in its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Part of the data.
    Data,
    /// Parity.
    Parity,
    /// A whole copy.
    Copy,
}

/// Where a part of a file lies.
#[derive(Clone, Debug)]
pub struct Fragment {
    /// First byte of the record in the file.
    pub file_offset: u64,
    /// Bytes of the record.
    pub record_bytes: u64,
    /// Block group.
    pub group: u32,
    /// First row.
    pub row: u32,
    /// Column in the group.
    pub column: u32,
    /// What it is.
    pub role: Role,
    /// Number of the device.
    pub device_index: u16,
    /// Path of the device.
    pub device: String,
    /// First byte on the device.
    pub device_offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Pool {
    /// Where the records of an object lie, as of the last commit.
    ///
    /// # Errors
    /// `NotFound`, or when the tree cannot be read.
    pub fn locate(&self, dataset: u64, object: u64) -> Result<Vec<Fragment>> {
        let Some(ds) = self.datasets.read().get(&dataset).cloned() else { fail!(NotFound, "no dataset {dataset}") };
        let mut fragments = Vec::new();
        let mut from = Key::new(object, KIND_EXTENT, 0);
        let to = Key::new(object, KIND_EXTENT, u64::MAX);
        loop {
            let page = ds.items.scan(from, to, 256)?;
            for (key, value) in &page {
                let (pointer, _) = Pointer::decode(value)?;
                self.fragments_of(key.offset, &pointer, &mut fragments)?;
            }
            match page.last().and_then(|(k, _)| k.successor()) {
                Some(next) if next <= to => from = next,
                _ => return Ok(fragments),
            }
        }
    }

    fn fragments_of(&self, file_offset: u64, pointer: &Pointer, out: &mut Vec<Fragment>) -> Result<()> {
        let group = self.space.group(pointer.group)?;
        for (column, entry) in group.columns.read().iter().enumerate() {
            let role = match (pointer.width, column) {
                (1, _) => Role::Copy,
                (w, c) if c < usize::from(w) => Role::Data,
                _ => Role::Parity,
            };
            out.push(Fragment {
                file_offset,
                record_bytes: pointer.len_bytes() as u64,
                group: pointer.group,
                row: pointer.row,
                column: column as u32,
                role,
                device_index: entry.place.device,
                device: self.space.member(entry.place.device).map(|m| m.path()).unwrap_or_default(),
                device_offset: self.space.offset(entry.place, pointer.row),
                len: u64::from(pointer.rows()) * BLOCK_SIZE as u64,
            });
        }
        Ok(())
    }

    /// Destroys a filesystem that nobody has mounted, or a volume that nobody uses. Its name is free at the return; its space
    /// comes back with this and the following commits.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for the pool's own filesystem, `Busy` for a volume in use.
    pub fn destroy_dataset(&self, name: &str) -> Result<()> {
        let _naming = self.naming.lock();
        let Some(dataset) = self.dataset(name) else { fail!(NotFound, "'{}/{name}' does not exist", self.name) };
        if name.is_empty() {
            fail!(Invalid, "the pool's own filesystem goes only with the pool ('pool destroy')");
        }
        {
            let mut volumes = self.volumes.lock();
            if volumes.get(&dataset.id).is_some_and(|v| v.strong_count() > 0) {
                fail!(
                    Busy,
                    "volume '{}/{name}' is in use; take it off its target ('target lun remove') first",
                    self.name
                );
            }
            volumes.remove(&dataset.id);
            dataset.set_destroying();
        }
        self.commit()?;
        // small ones are gone and their space is back after this; the committer goes on with large ones
        self.commit()
    }

    /// Ends service: everything is made durable, jobs are told to pause, the pool is marked clean. Afterwards the pool is
    /// only good for being dropped. A change by somebody who still has one of its filesystems open is either in the last
    /// commit or refused (`Suspended`).
    ///
    /// # Errors
    /// When the last commit fails; what was acknowledged before is safe.
    pub fn close(&self) -> Result<()> {
        for job in self.jobs.all() {
            job.request.store(1, Ordering::Release);
        }
        self.retire_volumes();
        let result = if self.options.read_only || self.suspended().is_some() {
            Ok(())
        } else {
            // the first writes everything out, the second has an empty log to name
            self.commit().and_then(|()| self.commit_clean())
        };
        self.end_writing();
        self.datasets.write().clear();
        for member in self.space.members() {
            member.set_device(None);
        }
        result
    }

    /// Lets go of everything without writing anything, as a crash does.
    pub fn abandon(&self) {
        self.end_writing();
        self.retire_volumes();
        self.datasets.write().clear();
        for member in self.space.members() {
            member.set_device(None);
        }
    }

    /// Ends service and takes the labels off the devices.
    ///
    /// # Errors
    /// When a label cannot be overwritten.
    pub fn destroy(&self) -> Result<()> {
        let devices: Vec<_> = self
            .space
            .members()
            .iter()
            .filter(|m| m.state() != MemberState::Removed)
            .filter_map(|m| m.device())
            .collect();
        self.close()?;
        let mut first_error = None;
        for device in devices {
            if let Err(e) = wipe(&device) {
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}
