//! The parents of an image, as far as its check needs them: found by their paths, of the right identity, no loop.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::{HostFile, ImageFile};
use super::codes::*;
use super::source::guid_text;
use super::walk::Walk;
use super::{Examined, FileSource, ImageSource, ParentName, Report, examine};
use crate::error::{Error, ErrorKind, Result};

/// Longer chains are taken for a fault.
const CHAIN_MAX: usize = 256;

pub(super) fn check_file(path: &Path, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    // Locked, so that nobody changes it meanwhile.
    let file = HostFile::open(path, false)?;
    let Examined { mut report, parent, logical_sector, .. } =
        examine(&mut Walk::new(&ImageSource(&file)), on_progress)?;
    let mut seen = vec![file.identity()];
    let (mut child, mut name, mut depth) = (path.to_owned(), parent, 0);
    while let Some(parent) = name.take() {
        depth += 1;
        if parent.paths.is_empty() {
            break;
        }
        let structure = format!("parent {depth}");
        let Some((found, file)) = find(&child, &parent) else {
            let tried: Vec<String> = parent.paths.iter().map(|(key, value)| format!("{key} {value:?}")).collect();
            report.add(&PARENT_MISSING, structure, 0, format!("it is at none of {}", tried.join(", ")));
            break;
        };
        let id = identity(&file)?;
        if seen.contains(&id) || depth > CHAIN_MAX {
            report.add(&PARENT_LOOP, structure, 0, format!("{} appears twice in the chain", found.display()));
            break;
        }
        seen.push(id);
        // Its own faults are its own check's matter; whether it can be read is ours.
        let examined = FileSource::new(&file).and_then(|source| examine(&mut Walk::new(&source), &mut |_, _| {}));
        let examined = match examined {
            Ok(examined) if !examined.report.has(HEADER_NONE.code) => examined,
            Ok(_) => {
                report.add(&PARENT_UNREADABLE, structure, 0, format!("{} has no valid header", found.display()));
                break;
            }
            Err(e) => {
                report.add(&PARENT_UNREADABLE, structure, 0, format!("{}: {e}", found.display()));
                break;
            }
        };
        if !parent.linkages.is_empty() && !parent.linkages.contains(&examined.data_write_guid) {
            let (is, wanted) = (guid_text(&examined.data_write_guid), parent.linkages.iter().map(guid_text));
            let what = format!("{} is {is}, wanted is {}", found.display(), wanted.collect::<Vec<_>>().join(" or "));
            report.add(&PARENT_GUID, structure.clone(), 0, what);
        }
        if let (Some(own), Some(other)) = (logical_sector, examined.logical_sector)
            && own != other
        {
            let what = format!("{} has sectors of {other} bytes, the image of {own}", found.display());
            report.add(&PARENT_SECTOR, structure, 0, what);
        }
        (child, name) = (found, examined.parent);
    }
    Ok(report)
}

fn identity(file: &File) -> Result<(u64, u64)> {
    let io = |e: std::io::Error| Error::new(ErrorKind::Io, "cannot look at the file").with_source(e);
    file.metadata().map_err(io).map(|m| (m.dev(), m.ino()))
}

/// The first path at which there is a file.
fn find(child: &Path, parent: &ParentName) -> Option<(PathBuf, File)> {
    let directory = child.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    parent.paths.iter().flat_map(|(_, value)| candidates(directory, value)).find_map(|path| {
        let file = File::open(&path).ok()?;
        file.metadata().ok()?.is_file().then_some((path, file))
    })
}

/// Where a path of a locator may point to: as it is, with slashes, and, for an absolute Windows path, by its name beside the child.
fn candidates(directory: &Path, value: &str) -> Vec<PathBuf> {
    let slashes = value.replace('\\', "/");
    let mut list = vec![directory.join(&slashes), directory.join(value)];
    let windows = value.contains('\\') && (value.get(1..2) == Some(":") || value.starts_with("\\\\"));
    if windows && let Some(name) = slashes.rsplit('/').next().filter(|name| !name.is_empty()) {
        list.push(directory.join(name));
    }
    list
}
