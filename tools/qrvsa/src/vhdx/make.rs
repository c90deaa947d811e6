//! `vhdx create` and `vhdx convert`.

use std::path::Path;

use qrvsa_api::ApiError;
use qrvsa_core::device::size::format_size;
use qrvsa_core::vhdx::{
    BLOCK_SIZE_DIFFERENCING, ConvertSource, ConvertTarget, CreateOptions, Image, convert as convert_disk,
    create as create_image, create_differencing,
};
use serde_json::json;

use super::args::{Convert, Create, Format, ImageType};
use super::progress::Bar;
use super::{answer, block_size_for, failed};
use crate::ui::{ask_terminal, clean, with_confirmation};

/// Runs `vhdx create`.
pub fn create(create: &Create, json: bool) -> Result<u8, ApiError> {
    let file = &create.file;
    if let Some(parent) = &create.parent {
        let block_size = create.block_size.unwrap_or(BLOCK_SIZE_DIFFERENCING);
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
    let image = Image::open(file, false).map_err(|e| failed(&e))?;
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
pub fn convert(args: &Convert, json: bool) -> Result<u8, ApiError> {
    let source = ConvertSource::open(&args.src, args.raw_source).map_err(|e| failed(&e))?;
    let format = args.to.unwrap_or_else(|| format_of(&args.dst));
    let target = match format {
        Format::Raw => ConvertTarget::Raw,
        Format::Dynamic | Format::Fixed => {
            let sector = args.logical_sector.or(source.logical_sector()).unwrap_or(512);
            // A raw file may end inside a sector.
            let size = source.size().next_multiple_of(u64::from(sector));
            ConvertTarget::Vhdx(options(format == Format::Fixed, size, args.block_size, Some(sector))?)
        }
    };
    let done = with_confirmation(args.force, &mut ask_terminal, |force| {
        let bar = Bar::new("convert");
        let mut progress = |done, total| bar.update(done, total);
        convert_disk(&source, &args.dst, &target, force, args.dry_run, &mut progress).map_err(|e| failed(&e))
    })?;
    let value = json!({
        "source": args.src.display().to_string(),
        "target": args.dst.display().to_string(),
        "dry_run": args.dry_run,
        "disk_bytes": done.size,
        "read_bytes": done.read_bytes,
        "written_bytes": done.written_bytes,
    });
    answer(json, &value, || {
        let verb = if args.dry_run { "would be written" } else { "written" };
        let (size, data) = (format_size(done.size), format_size(done.written_bytes));
        format!("{}: a disk of {size}, {data} of data {verb}\n", clean(&args.dst.display().to_string()))
    });
    Ok(0)
}

/// What a name asks for.
fn format_of(path: &Path) -> Format {
    let vhdx = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("vhdx"));
    if vhdx { Format::Dynamic } else { Format::Raw }
}
