//! Devices by path: opened for a new pool, found for an import.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qrvsa_api::DeviceSpec;
use qrvsa_core::device::{Device, OpenOptions, contains_foreign_data, is_blank, open};
use qrvsa_core::engine::open::{Candidate, possible_devices, read_label};
use qrvsa_core::vhdx::{open_any, open_device};
use qrvsa_core::{Error, ErrorKind, Result, fail};

/// Devices opened for a new pool. Files made for it go away again unless it is kept.
pub struct NewDevices {
    devices: Vec<Arc<dyn Device>>,
    made: Vec<PathBuf>,
}

impl NewDevices {
    /// The devices, in order.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        &self.devices
    }

    /// The pool exists: the files stay.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for NewDevices {
    fn drop(&mut self) {
        self.devices.clear();
        for path in &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The name under which a device is kept: absolute, links followed.
fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Opens devices that are to be overwritten, exclusively, after looking for anything worth asking about.
pub fn open_new(specs: &[DeviceSpec], force: bool) -> Result<NewDevices> {
    let mut seen = BTreeSet::new();
    for spec in specs {
        let path = absolute(&spec.path);
        crate::host::refuse_own_mounts(&path)?;
        let identity = match std::fs::metadata(&path) {
            Ok(meta) => format!("{}:{}:{}", meta.dev(), meta.ino(), meta.rdev()),
            Err(_) => path.display().to_string(),
        };
        if !seen.insert(identity) {
            fail!(Invalid, "{} is given twice; each device can be in a pool once", spec.path.display());
        }
    }
    let mut new = NewDevices { devices: Vec::new(), made: Vec::new() };
    let mut objections = Vec::new();
    for spec in specs {
        let path = absolute(&spec.path);
        let exists = path.exists();
        if spec.size_bytes.is_none() && !exists {
            let what = if spec.vhdx { "VHDX container" } else { "sparse file" };
            fail!(NotFound, "{} does not exist; write {spec}:SIZE to make a {what} of that size", spec.path.display());
        }
        let is_file = exists && std::fs::metadata(&path).is_ok_and(|m| m.is_file());
        if spec.size_bytes.is_some() && is_file && !force {
            objections.push(format!("{} exists already", path.display()));
            continue;
        }
        if spec.size_bytes.is_some() && !exists {
            new.made.push(path.clone());
        }
        let options = OpenOptions { create_size: spec.size_bytes, exclusive: true, read_only: false };
        let opened = if spec.vhdx { open_device(&path, options) } else { open(&path, options) };
        let device = opened.map_err(|e| busy_member(&path, e))?;
        if exists {
            match read_label(&device) {
                Ok(label) => objections.push(format!("{} is a member of pool '{}'", path.display(), label.pool_name)),
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    if let Some(what) = contains_foreign_data(&device)? {
                        objections.push(format!("{} holds {what}", path.display()));
                    } else if is_file && !is_blank(&device)? {
                        // a disk is handed over with whatever was on it; a file can be one that somebody mistyped
                        objections.push(format!("{} holds data of an unknown kind", path.display()));
                    }
                }
                Err(e) => objections.push(format!("{} has a damaged QRVSA label ({e})", path.display())),
            }
        }
        new.devices.push(device);
    }
    if !force && !objections.is_empty() {
        fail!(NeedsForce, "{}; nothing was changed, --force overwrites it", objections.join("; "));
    }
    Ok(new)
}

/// Says which pool a device is busy with, if it is a member.
fn busy_member(path: &Path, error: Error) -> Error {
    if error.kind() != ErrorKind::Busy {
        return error;
    }
    let look = OpenOptions { create_size: None, exclusive: false, read_only: true };
    match open_any(path, look).and_then(|device| read_label(&device)) {
        Ok(label) => {
            let text = format!("{} is in use as a member of pool '{}'", path.display(), label.pool_name);
            Error::new(ErrorKind::Busy, text)
        }
        Err(_) => error,
    }
}

/// Opens a device that is or was a member.
pub fn open_existing(path: &Path) -> Result<Arc<dyn Device>> {
    crate::host::refuse_own_mounts(path)?;
    open_any(&absolute(path), OpenOptions { create_size: None, exclusive: true, read_only: false })
}

/// Path and pool name of the members found, by pool id.
pub type Found = BTreeMap<u128, Vec<(PathBuf, String)>>;

/// Looks at the paths and into the directories; nothing is locked or written.
pub fn find_members(paths: &[PathBuf], search: &[PathBuf]) -> Result<Found> {
    let mut all: BTreeSet<PathBuf> = paths.iter().map(|p| absolute(p)).collect();
    for dir in search {
        match possible_devices(dir) {
            Ok(list) => all.extend(list.iter().map(|p| absolute(p))),
            Err(e) => tracing::warn!("cannot look for devices: {e}"),
        }
    }
    let mut found = Found::new();
    for path in all {
        let options = OpenOptions { create_size: None, exclusive: false, read_only: true };
        let Ok(device) = open_any(&path, options) else { continue };
        if let Ok(label) = read_label(&device) {
            found.entry(label.pool_id).or_default().push((path, label.pool_name));
        }
    }
    Ok(found)
}

/// Opens members exclusively.
pub fn open_members(paths: &[(PathBuf, String)]) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for (path, name) in paths {
        let device = open_existing(path).map_err(|e| match e.kind() {
            ErrorKind::Busy => Error::new(
                ErrorKind::Busy,
                format!("a device of pool '{name}' is in use by another program (another qrvsad?): {e}"),
            ),
            _ => e,
        })?;
        candidates.push(Candidate::new(device)?);
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const SIZE: u64 = 64 << 20;

    /// What is said against taking a file, or a container, on which these bytes lie.
    fn objection(vhdx: bool, data: &[(u64, &[u8])]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let spec = |size_bytes| DeviceSpec { path: path.clone(), size_bytes, vhdx };
        let made = open_new(&[spec(Some(SIZE))], false).map(|mut made| made.keep());
        made.unwrap();
        if vhdx {
            let image = qrvsa_core::vhdx::Image::open(&path, true).unwrap();
            data.iter().for_each(|(offset, bytes)| image.write(*offset, bytes).unwrap());
            image.close().unwrap();
        } else {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            data.iter().for_each(|(offset, bytes)| file.write_all_at(bytes, *offset).unwrap());
        }
        open_new(&[spec(None)], true).map(drop).expect("force takes everything");
        let refused = open_new(&[spec(None)], false).err()?;
        assert_eq!(refused.kind(), ErrorKind::NeedsForce);
        Some(refused.to_string())
    }

    #[test]
    fn files_with_data_are_asked_about() {
        let block = [7; 512];
        for vhdx in [false, true] {
            assert_eq!(objection(vhdx, &[]), None);
            // what a destroyed pool leaves between the ends
            assert_eq!(objection(vhdx, &[(SIZE / 2, &block)]), None);
            for offset in [0, SIZE - 512] {
                let said = objection(vhdx, &[(offset, &block)]).unwrap();
                assert!(said.contains("holds data of an unknown kind"), "{said}");
            }
        }
        let mut magic = block;
        magic[..4].copy_from_slice(b"XFSB");
        assert!(objection(false, &[(0, &magic)]).unwrap().contains("an XFS filesystem"));
    }
}
