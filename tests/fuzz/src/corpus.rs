//! The committed inputs: `corpus/TARGET/` to begin with, `crashers/TARGET/` that made a target fail once.

use std::io;
use std::path::{Path, PathBuf};

use crate::Target;

/// The folder of this crate.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files of a folder in the order of their names; none when there is no such folder.
///
/// # Errors
/// What the system says.
pub fn read(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut paths = entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().filter(|p| p.is_file()).map(|p| std::fs::read(&p).map(|bytes| (p, bytes))).collect()
}

/// The inputs that a target begins with.
///
/// # Errors
/// What the system says.
pub fn seeds(target: &Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    read(&root().join("corpus").join(target.name))
}

/// The inputs on which a target failed once.
///
/// # Errors
/// What the system says.
pub fn crashers(target: &Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    read(&root().join("crashers").join(target.name))
}

/// Keeps an input in a folder, named after its contents.
///
/// # Errors
/// What the system says.
pub fn keep(folder: &Path, input: &[u8]) -> io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(input)));
    std::fs::write(&path, input)?;
    Ok(path)
}

/// Writes the corpus of a target anew from its encoders.
///
/// # Errors
/// What the system says.
pub fn write(target: &Target) -> io::Result<usize> {
    let folder = root().join("corpus").join(target.name);
    for (path, _) in read(&folder)? {
        std::fs::remove_file(path)?;
    }
    let seeds = (target.seeds)();
    for seed in &seeds {
        keep(&folder, seed)?;
    }
    Ok(seeds.len())
}
