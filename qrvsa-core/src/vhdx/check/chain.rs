//! The parents of an image, as far as its check needs them: found by their paths, of the right identity, no loop.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::parents::{self, Found};
use super::super::{HostFile, ImageFile, io_error};
use super::codes::*;
use super::source::guid_text;
use super::walk::Walk;
use super::{Examined, FileSource, ImageSource, Report, examine};
use crate::error::Result;

/// Longer chains are taken for a fault.
const CHAIN_MAX: usize = 256;

pub(super) fn check_file(path: &Path, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    // Locked, so that nobody changes it meanwhile.
    let file = HostFile::open(path, false)?;
    let mut examined = examine(&mut Walk::new(&ImageSource(&file)), on_progress)?;
    check_parents(&file, &mut examined)?;
    Ok(examined.report)
}

/// What is at one of a parent's places.
struct Candidate {
    file: (u64, u64),
    /// What it holds; `None` if it stands in the chain already.
    examined: Option<Examined>,
}

/// Adds to the report of an image what is wrong with the chain of its parents.
pub(in crate::vhdx) fn check_parents(file: &HostFile, examined: &mut Examined) -> Result<()> {
    let (report, logical_sector) = (&mut examined.report, examined.logical_sector);
    let mut seen = vec![file.identity()];
    let (mut child, mut name, mut depth) = (file.path().to_owned(), examined.parent.take(), 0);
    while let Some(parent) = name.take() {
        depth += 1;
        if parent.paths.is_empty() {
            break;
        }
        let structure = format!("parent {depth}");
        let fits = |guid: &[u8; 16]| parent.linkages.is_empty() || parent.linkages.contains(guid);
        let texts = parent.paths.iter().map(|(_, value)| value.as_str());
        let found = parents::search(parents::candidates(&child, texts), |place| {
            let candidate = look(place, &seen)?;
            Some(candidate.map(|candidate| {
                let fits = candidate.examined.as_ref().is_some_and(|examined| fits(&examined.data_write_guid));
                (candidate, fits)
            }))
        });
        let (found, candidate) = match found {
            Found::Parent(found, candidate) | Found::Other(found, Ok(candidate)) => (found, candidate),
            Found::Other(found, Err(e)) => {
                report.add(&PARENT_UNREADABLE, structure, 0, format!("{}: {e}", found.display()));
                break;
            }
            Found::Nothing => {
                let tried: Vec<String> = parent.paths.iter().map(|(key, value)| format!("{key} {value:?}")).collect();
                report.add(&PARENT_MISSING, structure, 0, format!("it is at none of {}", tried.join(", ")));
                break;
            }
        };
        let Some(examined) = candidate.examined.filter(|_| depth <= CHAIN_MAX) else {
            report.add(&PARENT_LOOP, structure, 0, format!("{} appears twice in the chain", found.display()));
            break;
        };
        seen.push(candidate.file);
        if !fits(&examined.data_write_guid) {
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
    Ok(())
}

/// What is at a place; `None` if nothing is. Its own faults are its own check's matter; whether it can be read is ours.
fn look(place: &Path, seen: &[(u64, u64)]) -> Option<Result<Candidate>> {
    let failed = |e| io_error(place, "cannot open", e);
    let metadata = match std::fs::metadata(place) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return None,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return None,
        Err(e) => return Some(Err(failed(e))),
    };
    let file = (metadata.dev(), metadata.ino());
    if seen.contains(&file) {
        return Some(Ok(Candidate { file, examined: None }));
    }
    let examined = File::open(place).map_err(failed).and_then(|file| {
        let examined = examine(&mut Walk::new(&FileSource::new(&file)?), &mut |_, _| {})?;
        if examined.report.has(HEADER_NONE.code) {
            crate::fail!(Corrupt, "it has no valid header");
        }
        Ok(examined)
    });
    Some(examined.map(|examined| Candidate { file, examined: Some(examined) }))
}
