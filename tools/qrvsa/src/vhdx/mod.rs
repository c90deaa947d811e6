//! `qrvsa vhdx`: tools for VHDX files, which work on the files themselves, without a daemon; volumes of pools are converted
//! through it.

pub mod args;
mod change;
mod check;
mod look;
mod make;
mod place;
mod progress;
mod volume;

use std::path::Path;

use nix::errno::Errno;
use qrvsa_api::{ApiError, ErrorKind};
use qrvsa_core::ErrorKind as CoreKind;
use serde_json::Value;

use crate::ui::{print, print_json};
use args::Vhdx;

/// Runs a command; the exit code of one that worked.
pub fn run(command: &Vhdx, socket: &Path, json: bool) -> Result<u8, ApiError> {
    match command {
        Vhdx::Create(args) => make::create(args, json),
        Vhdx::Info { file } => look::info(file, json),
        Vhdx::Check { file } => check::check(file, json),
        Vhdx::Repair { file, dry_run } => check::repair(file, *dry_run, json),
        Vhdx::Resize { file, size, force, dry_run } => change::resize(file, *size, *force, *dry_run, json),
        Vhdx::Compact { file, dry_run } => change::compact(file, *dry_run, json),
        Vhdx::Convert(args) => make::convert(args, socket, json),
        Vhdx::Merge { child, delete, dry_run } => change::merge(child, *delete, *dry_run, json),
        Vhdx::Reparent { child, parent, force } => change::reparent(child, parent, *force, json),
        Vhdx::Map { file } => look::map(file, json),
        Vhdx::Read { file, offset, length } => look::read(file, *offset, *length),
        Vhdx::Exec { file } => look::exec(file, json),
    }
}

/// Prints an answer, as JSON or as text.
fn answer(json: bool, value: &Value, text: impl FnOnce() -> String) {
    if json {
        print_json(value);
    } else {
        print(&text());
    }
}

/// The block size of a new image for which none is asked: 32 MiB as Windows has it, 2 MiB for fixed images; more for large
/// disks, so that the table of an empty disk of 64 TB fits into a file of 5 MiB.
fn block_size_for(size: u64, fixed: bool) -> u32 {
    const TIB: u64 = 1 << 40;
    match size {
        _ if fixed && size <= TIB => 2 << 20,
        0..=TIB => 32 << 20,
        _ => {
            // A table of at most 2 MiB.
            let needed = size.div_ceil(1 << 18).next_power_of_two().clamp(32 << 20, 256 << 20);
            u32::try_from(needed).unwrap_or(256 << 20)
        }
    }
}

/// An error of the engine as the command line shows it.
fn failed(e: &qrvsa_core::Error) -> ApiError {
    let (kind, hint) = match e.kind() {
        CoreKind::Posix(Errno::EINTR) => (ErrorKind::Internal, "repeat it when it suits"),
        CoreKind::Posix(_) | CoreKind::Io => {
            (ErrorKind::Io, "look at the file's permissions and at the disk that holds it")
        }
        CoreKind::NoSpace => (ErrorKind::NoSpace, "free some space on the file's filesystem"),
        CoreKind::Corrupt => (ErrorKind::Corrupt, "`qrvsa vhdx check` shows what is wrong"),
        CoreKind::NotFound => (ErrorKind::NotFound, "look at the name"),
        CoreKind::Exists => (ErrorKind::Exists, "choose another name, or remove it first"),
        CoreKind::Busy => (ErrorKind::Busy, "end what uses it and try again"),
        CoreKind::Invalid => (ErrorKind::Invalid, "see `qrvsa vhdx --help`"),
        CoreKind::NeedsForce => (ErrorKind::NeedsForce, "repeat with --force if that may be"),
        CoreKind::ReadOnly => (ErrorKind::ReadOnly, "it cannot be written to"),
        CoreKind::Unsupported => (ErrorKind::Unsupported, "use the program that made it"),
        _ => (ErrorKind::Internal, "`qrvsa vhdx check` may tell more"),
    };
    let text = e.to_string();
    let error = ApiError::from_text(kind, &text);
    // What says itself how to go on needs nothing more.
    if text.contains("; ") { error } else { error.with_hint(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_way_out() {
        for (text, shown) in [
            ("it exists", "it exists: choose another name, or remove it first"),
            ("it exists; choose a name", "it exists: choose a name"),
        ] {
            assert_eq!(failed(&qrvsa_core::Error::new(CoreKind::Exists, text)).to_string(), shown);
        }
    }

    #[test]
    fn large_disks_get_large_blocks() {
        for (size, fixed, block) in [
            (1 << 30, false, 32 << 20),
            (1 << 40, false, 32 << 20),
            (1 << 30, true, 2 << 20),
            (16 << 40, false, 64 << 20),
            (64_000_000_000_000, false, 256 << 20),
            (64 << 40, false, 256 << 20),
        ] {
            assert_eq!(block_size_for(size, fixed), block, "{size}");
        }
    }
}
