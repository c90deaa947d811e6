//! `vhdx create` and `vhdx convert`.

use std::cell::OnceCell;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use qrvsa_api::names::FsName;
use qrvsa_api::{ApiError, Client, ErrorKind};
use qrvsa_core::device::size::format_size;
use qrvsa_core::vhdx::{
    BLOCK_SIZE_DIFFERENCING, ConvertSource, ConvertTarget, CreateOptions, Image, convert as convert_disk,
    create as create_image, create_differencing,
};
use qrvsa_core::{Error, ErrorKind as CoreKind};
use serde_json::json;

use super::args::{Convert, Create, Format, ImageType};
use super::place::{Place, refuse_bare_volume};
use super::progress::Bar;
use super::volume::{self, Wanted, Words, told};
use super::{answer, block_size_for, failed};
use crate::interrupt::Interrupt;
use crate::ui::{ask_terminal, clean, tell, with_confirmation};

/// Runs `vhdx create`.
pub fn create(create: &Create, json: bool) -> Result<u8, ApiError> {
    let file = &create.file;
    if let Some(parent) = &create.parent {
        let block_size = create.block_size.unwrap_or(BLOCK_SIZE_DIFFERENCING);
        if let Some(size) = create.size {
            refuse_smaller(size, parent)?;
        }
        create_differencing(file, parent, block_size).map_err(|e| failed(&e))?;
        if let Some(size) = create.size {
            let grown = Image::open(file, true).and_then(|image| {
                let result = image.resize(size, false);
                result.and_then(|()| image.close())
            });
            if let Err(e) = grown {
                let _ = std::fs::remove_file(file);
                return Err(failed(&e));
            }
        }
    } else {
        let size = create.size.ok_or_else(|| ApiError::invalid("the size of the disk is missing"))?;
        let options = options(create.kind == ImageType::Fixed, size, create.block_size, create.logical_sector)?;
        create_image(file, &options).map_err(|e| failed(&e))?;
    }
    let image = Image::open(file, false).map_err(|e| {
        // What does not open is of no use; who uses it already sees that otherwise.
        if e.kind() != CoreKind::Busy {
            let _ = std::fs::remove_file(file);
        }
        failed(&e)
    })?;
    let disk = image.disk();
    let value = json!({
        "file": file.display().to_string(),
        "disk_bytes": disk.disk_size,
        "block_bytes": disk.block_size,
        "logical_sector_bytes": disk.logical_sector,
        "file_bytes": image.file_length(),
    });
    answer(json, &value, || {
        let (size, length) = (format_size(disk.disk_size), format_size(image.file_length()));
        format!("{} created: a disk of {size} in a file of {length}\n", clean(&file.display().to_string()))
    });
    Ok(0)
}

/// A child is as large as its parent, or larger.
fn refuse_smaller(size: u64, parent: &Path) -> Result<(), ApiError> {
    let has = Image::open(parent, false).map_err(|e| failed(&e))?.size();
    if size >= has {
        return Ok(());
    }
    let parent = clean(&parent.display().to_string());
    let message = format!("a disk of {size} bytes is smaller than that of its parent {parent}, {has} bytes");
    Err(ApiError::invalid(message).with_hint("leave the size out, and make the image smaller with `qrvsa vhdx resize`"))
}

fn options(fixed: bool, size: u64, block: Option<u32>, sector: Option<u32>) -> Result<CreateOptions, ApiError> {
    let logical_sector = sector.unwrap_or(512);
    if !size.is_multiple_of(u64::from(logical_sector)) {
        let message = format!("a disk of {size} bytes is not made of whole sectors of {logical_sector}");
        return Err(ApiError::invalid(message).with_hint("choose a multiple of the sector size"));
    }
    let block_size = block.unwrap_or_else(|| block_size_for(size, fixed));
    Ok(CreateOptions { fixed, block_size, logical_sector, ..CreateOptions::dynamic(size) })
}

/// Runs `vhdx convert`.
pub fn convert(args: &Convert, socket: &Path, json: bool) -> Result<u8, ApiError> {
    let client = Rc::new(Client::new(socket)?);
    let words = Words::default();
    if args.src == args.dst {
        return Err(ApiError::invalid(format!("{} would be copied onto itself", args.dst)));
    }
    let source = match &args.src {
        Place::Volume(_) if args.raw_source => {
            return Err(ApiError::invalid("a volume is always raw").with_hint("leave --raw-source out"));
        }
        Place::Volume(name) => {
            let info = client.volume(name)?;
            if info.in_use {
                tell(&format!("qrvsa: volume {name} is in use: what is written to it meanwhile may be copied or not"));
            }
            ConvertSource::Disk(Box::new(volume::Source::new(Rc::clone(&client), info, Rc::clone(&words))))
        }
        Place::Path(path) => {
            refuse_bare_volume(socket, path)?;
            ConvertSource::open(path, args.raw_source).map_err(|e| failed(&e))?
        }
    };
    // Not before there is something to tidy up: until then a question may be asked.
    let interrupt = OnceCell::new();
    let (done, created) = with_confirmation(args.force, &mut ask_terminal, |force| {
        let bar = Bar::new("convert");
        let mut progress = |done, total| {
            bar.update(done, total);
            if interrupt.get_or_init(Interrupt::listen).asked() { Err(Error::posix(Errno::EINTR)) } else { Ok(()) }
        };
        match &args.dst {
            Place::Volume(name) => {
                let wanted = wanted(args, name, &source)?;
                volume::convert(&client, &source, &words, &wanted, force, args.dry_run, &mut progress)
                    .map(|filled| (filled.done, filled.created))
            }
            Place::Path(path) => {
                refuse_bare_volume(socket, path)?;
                let target = target(args, path, &source)?;
                convert_disk(&source, path, &target, force, args.dry_run, &mut progress)
                    .map(|done| (done, true))
                    .map_err(|e| state_after(path, told(&words, &e)))
            }
        }
    })?;
    let value = json!({
        "source": args.src.to_string(),
        "target": args.dst.to_string(),
        "created": created,
        "dry_run": args.dry_run,
        "disk_bytes": done.size,
        "read_bytes": done.read_bytes,
        "written_bytes": done.written_bytes,
    });
    answer(json, &value, || {
        let verb = if args.dry_run { "would be written" } else { "written" };
        let (size, data) = (format_size(done.size), format_size(done.written_bytes));
        format!("{}: a disk of {size}, {data} of data {verb}\n", args.dst)
    });
    Ok(0)
}

/// What a volume has to be.
fn wanted(args: &Convert, name: &FsName, source: &ConvertSource) -> Result<Wanted, ApiError> {
    if args.to.is_some() || args.block_size.is_some() {
        return Err(ApiError::invalid("a volume has no format and no blocks of an image")
            .with_hint("leave --to and --block-size out"));
    }
    Ok(Wanted {
        name: name.clone(),
        size: source.size(),
        block_bytes: args.logical_sector,
        block_default: source.logical_sector().unwrap_or(512),
    })
}

/// What a file has to be.
fn target(args: &Convert, path: &Path, source: &ConvertSource) -> Result<ConvertTarget, ApiError> {
    let format = args.to.unwrap_or_else(|| format_of(path));
    if format == Format::Raw {
        return Ok(ConvertTarget::Raw);
    }
    let sector = args.logical_sector.or(source.logical_sector()).unwrap_or(512);
    // A raw file may end inside a sector.
    let size = source.size().next_multiple_of(u64::from(sector));
    Ok(ConvertTarget::Vhdx(options(format == Format::Fixed, size, args.block_size, Some(sector))?))
}

/// Adds to an error what has become of the destination.
fn state_after(path: &Path, error: ApiError) -> ApiError {
    if error.kind == ErrorKind::NeedsForce {
        return error;
    }
    let state = match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() && error.kind != ErrorKind::Busy => {
            "it may hold a part of the disk only"
        }
        Ok(_) => "it was not changed",
        Err(_) => "it was not made",
    };
    let hint = format!("{}: {state}; {}", clean(&path.display().to_string()), error.hint);
    error.with_hint(hint)
}

/// What a name asks for.
fn format_of(path: &Path) -> Format {
    let vhdx = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("vhdx"));
    if vhdx { Format::Dynamic } else { Format::Raw }
}
