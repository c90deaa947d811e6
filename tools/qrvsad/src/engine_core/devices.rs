//! Devices by path: opened for a new pool, found for an import.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qrvsa_api::DeviceSpec;
use qrvsa_core::device::{Device, OpenOptions, contains_foreign_data, open};
use qrvsa_core::engine::open::{Candidate, possible_devices, read_label};
use qrvsa_core::pool::format::uberblock::Uberblock;
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
        if !exists && path.is_symlink() {
            fail!(Invalid, "{} is a symbolic link to nothing; name the file itself", spec.path.display());
        }
        if spec.size_bytes.is_none() && !exists {
            let what = if spec.vhdx { "VHDX container" } else { "sparse file" };
            fail!(NotFound, "{} does not exist; write {spec}:SIZE to make a {what} of that size", spec.path.display());
        }
        let is_file = exists && std::fs::metadata(&path).is_ok_and(|m| m.is_file());
        if spec.size_bytes.is_some() && is_file && !force {
            objections.push(format!("{} exists already", path.display()));
            continue;
        }
        let options = OpenOptions { create_size: spec.size_bytes, exclusive: true, read_only: false };
        let opened = if spec.vhdx { open_device(&path, options) } else { open(&path, options) };
        let device = opened.map_err(|e| busy_member(&path, e))?;
        // now it is ours: an open that fails leaves nothing that it made
        if spec.size_bytes.is_some() && !exists {
            new.made.push(path.clone());
        }
        if exists {
            match read_label(&device) {
                Ok(label) => objections.push(format!("{} is a member of pool '{}'", path.display(), label.pool_name)),
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    if let Some(what) = contains_foreign_data(&device)? {
                        objections.push(format!("{} holds {what}", path.display()));
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

/// A pool of which members were found.
pub struct Found {
    /// Identity.
    pub id: u128,
    /// Name.
    pub name: String,
    /// Its members, as they were when they were found.
    pub members: Vec<Seen>,
    columns: usize,
    created_ns: i64,
}

/// A member that was looked at.
pub struct Seen {
    path: PathBuf,
    id: u128,
    /// The newest state it knows of, if that could be read.
    newest: Option<Uberblock>,
}

impl Found {
    /// Its identity as people are shown it.
    pub fn id_text(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// Whether devices for all columns were found.
    pub fn is_whole(&self) -> bool {
        self.members.iter().map(|member| member.id).collect::<BTreeSet<_>>().len() >= self.columns
    }
}

/// The pools of a name among those found, the one made last first: which one the name means, if that is plain. One is plain,
/// and one that is whole while what was made before it is not: that is left of earlier ones.
pub fn meant<'a>(found: &[&'a Found]) -> Option<&'a Found> {
    match found {
        [] => None,
        [first, others @ ..] => {
            let plain = others.is_empty() || (first.is_whole() && !others.iter().any(|other| other.is_whole()));
            plain.then_some(*first)
        }
    }
}

/// Looks at the paths and into the directories; nothing is locked or written. The pools made last come first.
pub fn find_members(paths: &[PathBuf], search: &[PathBuf]) -> Vec<Found> {
    let mut all: BTreeSet<PathBuf> = paths.iter().map(|p| absolute(p)).collect();
    for dir in search {
        match possible_devices(dir) {
            Ok(list) => all.extend(list.iter().map(|p| absolute(p))),
            Err(e) => tracing::warn!("cannot look for devices: {e}"),
        }
    }
    let mut found: BTreeMap<u128, Found> = BTreeMap::new();
    for path in all {
        let options = OpenOptions { create_size: None, exclusive: false, read_only: true };
        let Ok(device) = open_any(&path, options) else { continue };
        if let Ok(label) = read_label(&device) {
            let of_pool = found.entry(label.pool_id).or_insert_with(|| Found {
                id: label.pool_id,
                name: label.pool_name,
                members: Vec::new(),
                columns: usize::from(label.data) + usize::from(label.parity),
                created_ns: label.created_ns,
            });
            let newest = Candidate::new(device).ok().and_then(|c| c.uberblocks.into_iter().next());
            of_pool.members.push(Seen { path, id: label.device_id, newest });
        }
    }
    let mut found: Vec<Found> = found.into_values().collect();
    found.sort_by_key(|pool| Reverse(pool.created_ns));
    found
}

/// A member that was found, but that cannot be used now. The pool does without it, as if it were not here.
pub struct LeftOut {
    /// Where it is.
    pub path: PathBuf,
    /// Its identity, if it can be read still.
    pub id: Option<u128>,
    /// Why it is left out.
    pub error: Error,
    /// The newest state it knows of.
    newest: Option<Uberblock>,
}

impl LeftOut {
    fn new(seen: &Seen, error: Error) -> LeftOut {
        LeftOut { path: seen.path.clone(), id: Some(seen.id), error, newest: seen.newest.clone() }
    }
}

/// Opens members exclusively; the second list has those that cannot be used, for whatever reason.
///
/// # Errors
/// `Busy` when somebody else uses one: then it is likely that the pool is imported. The first error when none can be used.
pub fn open_members(pool: &Found) -> Result<(Vec<Candidate>, Vec<LeftOut>)> {
    let (mut members, mut left_out) = (Vec::new(), Vec::new());
    for seen in &pool.members {
        match open_existing(&seen.path).map(Candidate::new) {
            Ok(Ok(member)) => members.push(member),
            Ok(Err(e)) => left_out.push(LeftOut::new(seen, e)),
            Err(e) if e.kind() == ErrorKind::Busy => {
                fail!(Busy, "a device of pool '{}' is in use by another program (another qrvsad?): {e}", pool.name)
            }
            Err(e) => left_out.push(LeftOut::new(seen, e)),
        }
    }
    for out in &left_out {
        tracing::error!("{} is left out, it cannot be used: {}", out.path.display(), out.error);
    }
    if members.is_empty() && !left_out.is_empty() {
        return Err(left_out.swap_remove(0).error);
    }
    Ok((members, left_out))
}

/// Refuses to go back to an older state while a member that is left out has a newer one, or may have: a commit that is through
/// can have reached that member alone.
///
/// # Errors
/// `Degraded`.
pub fn need_newest(pool: &str, members: &[Candidate], left_out: &[LeftOut]) -> Result<()> {
    let newest = members.iter().filter_map(|c| c.uberblocks.first()).map(|u| (u.generation, u.txg)).max();
    let behind = |u: &Uberblock| Some((u.generation, u.txg)) <= newest;
    if let Some(alone) = left_out.iter().find(|l| !l.newest.as_ref().is_some_and(behind)) {
        fail!(
            Degraded,
            "the newest state of pool '{pool}' is or may be on {}, which cannot be used ({}); see to that and import again, or \
             take it away to go back to the state that the other devices have",
            alone.path.display(),
            alone.error
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, EngineOptions, ImportRequest};
    use crate::engine_core::CoreEngine;
    use nix::unistd::{Uid, setfsuid};
    use qrvsa_api::{CreatePool, DeviceState, PoolState};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    /// A pool of small files that may be moved, opened and looked at by anybody.
    struct Disks {
        dir: tempfile::TempDir,
        engine: CoreEngine,
    }

    impl Disks {
        fn new(geometry: &str, count: usize) -> Disks {
            let dir = tempfile::tempdir().unwrap();
            let disks = Disks { dir, engine: engine() };
            disks.mode(disks.dir.path(), 0o755);
            disks.create("tank", geometry, &(0..count).map(|i| format!("d{i}")).collect::<Vec<_>>());
            disks
        }

        fn create(&self, name: &str, geometry: &str, files: &[String]) {
            let spec = |f: &String| format!("{}:256M", self.path(f).display()).parse().unwrap();
            let devices = files.iter().map(spec).collect();
            let geometry = Some(geometry.parse().unwrap());
            self.engine.create_pool(&CreatePool { name: name.into(), geometry, devices, force: false }).unwrap();
            files.iter().for_each(|f| self.mode(&self.path(f), 0o666));
        }

        fn path(&self, file: &str) -> PathBuf {
            self.dir.path().join(file)
        }

        fn mode(&self, path: &Path, mode: u32) {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }

        /// As import finds them.
        fn import(&self, name: Option<&str>) -> Result<crate::engine::ImportOutcome> {
            let search = vec![self.dir.path().to_owned()];
            self.engine.import(&ImportRequest { search, name: name.map(Into::into), ..ImportRequest::default() })
        }

        /// An import by somebody who may read files of mode 0444, and not write to them.
        fn import_as_nobody(&self) -> Result<crate::engine::ImportOutcome> {
            let was = setfsuid(Uid::from_raw(65534));
            let outcome = self.import(Some("tank"));
            setfsuid(was);
            outcome
        }
    }

    fn engine() -> CoreEngine {
        CoreEngine::new(EngineOptions {
            memory_limit_bytes: 256 << 20,
            sync_interval: Duration::from_secs(5),
            scrub_rate_bytes_per_s: None,
        })
    }

    #[test]
    fn a_member_that_cannot_be_written_to_is_left_out() {
        let disks = Disks::new("2+2", 4);
        disks.engine.export("tank").unwrap();
        disks.mode(&disks.path("d1"), 0o444);
        assert_eq!(disks.import_as_nobody().unwrap().imported, ["tank"]);
        let status = disks.engine.status("tank").unwrap();
        assert_eq!(status.summary.state, PoolState::Degraded);
        let left = &status.devices[1];
        assert_eq!(left.state, DeviceState::Faulted);
        assert!(left.message.contains("d1") && left.message.contains("ermission denied"), "{left:?}");
        disks.engine.put_blob("tank", "k", b"new").unwrap();
        disks.engine.export("tank").unwrap();
        // it is back at the next import that may use it, and is rebuilt
        disks.mode(&disks.path("d1"), 0o666);
        assert_eq!(disks.import_as_nobody().unwrap().imported, ["tank"]);
        let status = disks.engine.status("tank").unwrap();
        assert!(matches!(status.devices[1].state, DeviceState::Online | DeviceState::Rebuilding), "{status:?}");
        assert_eq!(disks.engine.blob("tank", "k").unwrap().as_deref(), Some(&b"new"[..]));
        disks.engine.export("tank").unwrap();

        // more than may be lost: refused, with the reason
        for file in ["d0", "d1", "d2"] {
            disks.mode(&disks.path(file), 0o444);
        }
        let error = disks.import_as_nobody().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Degraded);
        assert!(error.to_string().contains("d0") && error.to_string().contains("ermission denied"), "{error}");
        disks.mode(&disks.path("d3"), 0o444);
        let error = disks.import_as_nobody().unwrap_err();
        assert!(error.to_string().contains("ermission denied"), "{error}");
        // nothing was written meanwhile
        assert_eq!(disks.import(Some("tank")).unwrap().imported, ["tank"]);
        assert_eq!(disks.engine.blob("tank", "k").unwrap().as_deref(), Some(&b"new"[..]));
    }

    /// What was acknowledged on a device alone is not given up because that device cannot be written to today.
    #[test]
    fn an_older_state_is_not_imported_beside_the_newest() {
        let disks = Disks::new("1+1", 2);
        let d1 = disks.path("d1").canonicalize().unwrap();
        disks.engine.offline("tank", &d1.display().to_string()).unwrap();
        disks.engine.put_blob("tank", "k", b"new").unwrap();
        disks.engine.export("tank").unwrap();
        disks.mode(&disks.path("d0"), 0o444);
        let error = disks.import_as_nobody().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Degraded);
        assert!(error.to_string().contains("newest state") && error.to_string().contains("d0"), "{error}");
        assert_eq!(disks.import(Some("tank")).unwrap().imported, ["tank"]);
        assert_eq!(disks.engine.blob("tank", "k").unwrap().as_deref(), Some(&b"new"[..]));
    }

    #[test]
    fn a_member_in_use_ends_the_import() {
        let disks = Disks::new("2+2", 4);
        disks.engine.export("tank").unwrap();
        let held = open_existing(&disks.path("d2")).unwrap();
        assert_eq!(disks.import(Some("tank")).unwrap_err().kind(), ErrorKind::Busy);
        drop(held);
        disks.import(Some("tank")).unwrap();
    }

    /// A device of an earlier pool of the name must not keep the pool from being imported, nor be taken for it.
    #[test]
    fn a_leftover_of_the_same_name_is_no_hindrance() {
        let disks = Disks::new("1+1", 2);
        let old = disks.engine.status("tank").unwrap().summary.id;
        let d1 = disks.path("d1").canonicalize().unwrap();
        disks.engine.offline("tank", &d1.display().to_string()).unwrap();
        disks.engine.destroy("tank").unwrap();
        disks.create("tank", "2+2", &["e0", "e1", "e2", "e3"].map(String::from));
        let new = disks.engine.status("tank").unwrap().summary.id;
        disks.engine.export("tank").unwrap();
        // by id each is found
        for (wanted, devices) in [(&new, 4), (&old, 2), (&new, 4)] {
            let request = ImportRequest {
                search: vec![disks.dir.path().to_owned()],
                name: Some("tank".into()),
                id: Some(wanted.clone()),
                ..ImportRequest::default()
            };
            let outcome = disks.engine.import(&request).unwrap();
            assert_eq!((outcome.imported.len(), outcome.namesakes.len()), (1, 1), "{outcome:?}");
            let status = disks.engine.status("tank").unwrap();
            assert_eq!((&status.summary.id, status.devices.len()), (wanted, devices));
            disks.engine.export("tank").unwrap();
        }
        // without, the one that is whole is imported, and the other told of
        let outcome = disks.import(Some("tank")).unwrap();
        assert_eq!((outcome.imported.len(), outcome.namesakes.len()), (1, 1), "{outcome:?}");
        assert_eq!(disks.engine.status("tank").unwrap().summary.id, new);
        disks.engine.export("tank").unwrap();
        // when it is not whole, an older one does not quietly take its place: each has to be named by its id
        std::fs::remove_file(disks.path("e0")).unwrap();
        let error = disks.import(Some("tank")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert!(error.to_string().contains(&new) && error.to_string().contains(&old), "{error}");
        for id in [&new, &old] {
            let outcome = disks.import(Some(id)).unwrap();
            assert_eq!((outcome.imported.as_slice(), outcome.namesakes.len()), (&["tank".to_owned()][..], 0));
            assert_eq!(disks.engine.status("tank").unwrap().summary.id, *id);
            disks.engine.export("tank").unwrap();
        }
        let outcome = disks.import(None).unwrap();
        assert_eq!((outcome.imported.len(), outcome.failed.len()), (0, 1), "{outcome:?}");
        // what is remembered under the name is not mistaken for another
        let request = ImportRequest {
            search: vec![disks.dir.path().to_owned()],
            known: [("tank".to_owned(), "00".to_owned())].into(),
            ..ImportRequest::default()
        };
        let outcome = disks.engine.import(&request).unwrap();
        assert_eq!((outcome.imported.len(), outcome.failed.len(), outcome.namesakes.len()), (0, 0, 2), "{outcome:?}");
        let error = disks.engine.import(&ImportRequest { name: Some("tank".into()), ..request }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("another pool of that name"), "{error}");
        // but by its id, it is
        let request = ImportRequest {
            search: vec![disks.dir.path().to_owned()],
            name: Some(old.clone()),
            known: [("tank".to_owned(), "00".to_owned())].into(),
            ..ImportRequest::default()
        };
        assert_eq!(disks.engine.import(&request).unwrap().imported, ["tank"]);
    }

    #[test]
    fn of_two_whole_pools_with_one_name_none_is_guessed() {
        let disks = Disks::new("1+1", 2);
        disks.engine.export("tank").unwrap();
        disks.create("tank", "1+1", &["f0", "f1"].map(String::from));
        disks.engine.export("tank").unwrap();
        let error = disks.import(Some("tank")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert!(error.to_string().contains("2 pools named 'tank'"), "{error}");
        let outcome = disks.import(None).unwrap();
        assert_eq!((outcome.imported.len(), outcome.failed.len()), (0, 1), "{outcome:?}");
    }

    #[test]
    fn what_was_not_made_stays() {
        let disks = Disks::new("1+1", 2);
        let link = disks.path("link");
        std::os::unix::fs::symlink(disks.path("gone"), &link).unwrap();
        let spec = |path: &Path, size: &str| -> DeviceSpec { format!("{}:{size}", path.display()).parse().unwrap() };
        let create = |devices: Vec<DeviceSpec>| {
            let geometry = Some("1+1".parse().unwrap());
            disks.engine.create_pool(&CreatePool { name: "p".into(), geometry, devices, force: false })
        };
        let error = create(vec![spec(&disks.path("new"), "256M"), spec(&link, "256M")]).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(link.is_symlink() && !disks.path("gone").exists());
        assert!(!disks.path("new").exists(), "what was made goes again");
        let missing = disks.path("no-directory/new");
        create(vec![spec(&disks.path("new"), "256M"), spec(&missing, "256M")]).unwrap_err();
        assert!(!disks.path("new").exists());
    }
}
