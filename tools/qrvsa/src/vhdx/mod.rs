//! `qrvsa vhdx`: tools for VHDX files, which work on the files themselves, without a daemon.

pub mod args;
mod check;
mod progress;

use qrvsa_api::{ApiError, ErrorKind};
use qrvsa_core::ErrorKind as CoreKind;

use args::Vhdx;

/// Runs a command; the exit code of one that worked.
pub fn run(command: &Vhdx, json: bool) -> Result<u8, ApiError> {
    match command {
        Vhdx::Check { file } => check::check(file, json),
        Vhdx::Repair { file, dry_run } => check::repair(file, *dry_run, json),
        _ => Err(ApiError::new(ErrorKind::Unsupported, "not yet")),
    }
}

/// An error of the engine as the command line shows it.
fn failed(e: &qrvsa_core::Error) -> ApiError {
    let (kind, hint) = match e.kind() {
        CoreKind::Posix(_) | CoreKind::Io => (ErrorKind::Io, "look at the disk that holds the file"),
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
    ApiError::new(kind, e.to_string()).with_hint(hint)
}
