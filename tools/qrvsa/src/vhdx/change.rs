//! Commands that change an image: `resize`, `compact`, `merge`, `reparent`.

use std::path::Path;

use qrvsa_api::{ApiError, ErrorKind};
use qrvsa_core::device::size::format_size;
use qrvsa_core::vhdx::repair::reparent as reparent_file;
use qrvsa_core::vhdx::{Image, merge as merge_file};
use serde_json::json;

use super::progress::Bar;
use super::{answer, failed};
use crate::ui::{ask_terminal, clean, with_confirmation};

fn name(path: &Path) -> String {
    clean(&path.display().to_string())
}

/// Runs `vhdx resize`.
pub fn resize(file: &Path, size: u64, force: bool, dry_run: bool, json: bool) -> Result<u8, ApiError> {
    let image = Image::open(file, !dry_run).map_err(|e| failed(&e))?;
    let before = image.size();
    let sector = image.disk().logical_sector;
    if !size.is_multiple_of(u64::from(sector)) {
        let message = format!("a disk of {size} bytes is not made of whole sectors of {sector}");
        return Err(ApiError::invalid(message).with_hint("choose a multiple of the sector size"));
    }
    // What would be cut off is looked at even in a dry run.
    let cut = if size < before { data_between(&image, size, before).map_err(|e| failed(&e))? } else { 0 };
    if !dry_run {
        if cut > 0 && !force {
            let message = format!("{} has data behind {}, which would be lost", file.display(), format_size(size));
            return Err(
                ApiError::new(ErrorKind::NeedsForce, message).with_hint("repeat with --force if it may be lost")
            );
        }
        image.resize(size, force).and_then(|()| image.close()).map_err(|e| failed(&e))?;
    }
    let value = json!({
        "file": file.display().to_string(),
        "dry_run": dry_run,
        "disk_bytes_before": before,
        "disk_bytes": size,
        "cut_data_bytes": cut,
        "file_bytes": image.file_length(),
    });
    answer(json, &value, || {
        let verb = if dry_run { "would become" } else { "is now" };
        let lost =
            if cut > 0 { format!(", {} of space with data are cut off", format_size(cut)) } else { String::new() };
        format!("{}: the disk {verb} {} (was {}){lost}\n", name(file), format_size(size), format_size(before))
    });
    Ok(0)
}

/// Bytes of a range of the disk that hold data in this file or a parent.
fn data_between(image: &Image, from: u64, to: u64) -> qrvsa_core::Result<u64> {
    let (mut at, mut bytes) = (from, 0);
    let mut buf = vec![0; 1 << 20];
    while at < to {
        let extent = image.extent(at)?;
        let end = at.saturating_add(extent.length.max(1)).min(to);
        while extent.data.is_some() && at < end {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            let piece = buf.get_mut(..len).unwrap_or_default();
            image.read(at, piece)?;
            if piece.iter().any(|b| *b != 0) {
                bytes += len as u64;
            }
            at += len as u64;
        }
        at = end;
    }
    Ok(bytes)
}

/// Runs `vhdx compact`.
pub fn compact(file: &Path, dry_run: bool, json: bool) -> Result<u8, ApiError> {
    let bar = Bar::new("compact");
    let mut progress = |done, total| bar.update(done, total);
    let image = Image::open(file, !dry_run).map_err(|e| failed(&e))?;
    let done = if dry_run { image.plan_compact(&mut progress) } else { image.compact(&mut progress) };
    let done = done.map_err(|e| failed(&e))?;
    drop(bar);
    let value = json!({
        "file": file.display().to_string(),
        "dry_run": dry_run,
        "released_blocks": done.released_blocks,
        "moved_blocks": done.moved_blocks,
        "file_bytes_before": done.length_before,
        "file_bytes": done.length_after,
    });
    answer(json, &value, || {
        let (before, after) = (format_size(done.length_before), format_size(done.length_after));
        if dry_run {
            let empty = done.released_blocks;
            return format!(
                "{}: would become {after} or a little more (is {before}), {empty} blocks are empty\n",
                name(file)
            );
        }
        let (released, moved) = (done.released_blocks, done.moved_blocks);
        format!("{}: {after} (was {before}), {released} blocks released, {moved} moved\n", name(file))
    });
    Ok(0)
}

/// Runs `vhdx merge`.
pub fn merge(child: &Path, delete: bool, dry_run: bool, json: bool) -> Result<u8, ApiError> {
    let bar = Bar::new("merge");
    let merged = merge_file(child, dry_run, &mut |done, total| bar.update(done, total)).map_err(|e| failed(&e))?;
    drop(bar);
    if delete && !dry_run {
        // Through a link, the image goes, and with it the link that leads nowhere then.
        let link = child.is_symlink();
        let removed = std::fs::canonicalize(child).and_then(std::fs::remove_file);
        removed.and_then(|()| if link { std::fs::remove_file(child) } else { Ok(()) }).map_err(|e| {
            ApiError::new(ErrorKind::Io, format!("merged, but {} cannot be removed: {e}", child.display()))
                .with_hint("it is not needed any more")
        })?;
    }
    let value = json!({
        "child": child.display().to_string(),
        "parent": merged.parent.display().to_string(),
        "dry_run": dry_run,
        "data_bytes": merged.data_bytes,
        "zero_bytes": merged.zero_bytes,
        "disk_bytes_before": merged.size_before,
        "disk_bytes": merged.size_after,
        "deleted": delete && !dry_run,
    });
    answer(json, &value, || {
        let verb = if dry_run { "would be written into" } else { "written into" };
        let kept = if delete || dry_run { "" } else { "; the child is not needed any more" };
        format!("{} of data {verb} {}{kept}\n", format_size(merged.data_bytes), name(&merged.parent))
    });
    Ok(0)
}

/// Runs `vhdx reparent`.
pub fn reparent(child: &Path, parent: &Path, force: bool, json: bool) -> Result<u8, ApiError> {
    let done = with_confirmation(force, &mut ask_terminal, |force| {
        reparent_file(child, parent, force).map_err(|e| failed(&e))
    })?;
    let paths: serde_json::Map<_, _> = done.paths.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    let value = json!({
        "child": child.display().to_string(),
        "parent": parent.display().to_string(),
        "linkage": done.linkage.to_string(),
        "forced": done.forced,
        "paths": paths,
    });
    answer(json, &value, || {
        let forced = if done.forced { " although it is another, or was changed" } else { "" };
        format!("{}: its parent is {}{forced}\n", name(child), name(parent))
    });
    Ok(0)
}
