//! Commands that look at an image: `info`, `map`, and the hidden `read` and `exec`.

use std::io::{BufRead, Write};
use std::path::Path;

use nix::errno::Errno;
use qrvsa_api::ApiError;
use qrvsa_core::device::size::{format_size, parse_size};
use qrvsa_core::vhdx::format::{FileIdentifier, PayloadState};
use qrvsa_core::vhdx::{HostFile, Image, MapExtent, active_log};
use qrvsa_core::{Error, ErrorKind};
use serde_json::{Value, json};

use super::{answer, failed};
use crate::ui::{clean, is_read, print, print_json, table};

/// Runs `vhdx info`.
pub fn info(path: &Path, json: bool) -> Result<u8, ApiError> {
    let image = Image::open(path, false).map_err(|e| failed(&e))?;
    let mut chain = Vec::new();
    let mut next = Some(&image);
    while let Some(image) = next {
        chain.push(describe(image).map_err(|e| failed(&e))?);
        next = image.parent();
    }
    let mut value = chain.first().cloned().unwrap_or_default();
    value["parents"] = chain.iter().skip(1).cloned().collect();
    if json {
        print_json(&value);
        return Ok(0);
    }
    let mut text = String::new();
    for (depth, image) in chain.iter().enumerate() {
        if depth > 0 {
            text.push_str(&format!("\nparent {depth}\n"));
        }
        text.push_str(&info_text(image));
    }
    print(&text);
    Ok(0)
}

fn describe(image: &Image) -> qrvsa_core::Result<Value> {
    let path = image.file().path();
    let failed =
        |e: std::io::Error| Error::new(ErrorKind::Io, format!("cannot read {}", path.display())).with_source(e);
    let disk = image.disk();
    let metadata = image.metadata();
    let regions = image.regions();
    let header = image.header();
    let mut bytes = vec![0; FileIdentifier::BYTES];
    image.file().read_at(&mut bytes, 0).map_err(failed)?;
    let creator = FileIdentifier::decode(&bytes).map(|id| id.creator).unwrap_or_default();
    let blocks = image.count_blocks()?;
    let count = |state: PayloadState| blocks.iter().find(|(s, _)| *s == state).map_or(0, |(_, n)| *n);
    let kind = match (disk.has_parent, disk.leave_allocated) {
        (true, _) => "differencing",
        (_, true) => "fixed",
        _ => "dynamic",
    };
    let dirty = HostFile::open(path, false).and_then(|file| active_log(&file, &header));
    let entries = dirty.ok().flatten().map_or(0, |log| log.entries);
    let locator = metadata.locator.as_ref().map(|locator| {
        locator.entries().map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<serde_json::Map<_, _>>()
    });
    let others: Vec<Value> = regions
        .others
        .iter()
        .map(|other| json!({ "offset": other.region.offset, "bytes": other.region.length }))
        .collect();
    Ok(json!({
        "file": path.display().to_string(),
        "type": kind,
        "disk_bytes": disk.disk_size,
        "block_bytes": disk.block_size,
        "logical_sector_bytes": disk.logical_sector,
        "physical_sector_bytes": disk.physical_sector,
        "disk_id": disk.disk_id.to_string(),
        "file_bytes": image.file_length(),
        "allocated_bytes": std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::blocks(&m) * 512).unwrap_or(0),
        "creator": creator,
        "header": {
            "sequence": header.sequence,
            "file_write_guid": header.file_write_guid.to_string(),
            "data_write_guid": header.data_write_guid.to_string(),
            "log_guid": header.log_guid.to_string(),
        },
        "log": { "offset": header.log_offset, "bytes": header.log_length, "entries_to_replay": entries },
        "bat": { "offset": regions.bat.offset, "bytes": regions.bat.length },
        "metadata": { "offset": regions.metadata.offset, "bytes": regions.metadata.length },
        "other_regions": others,
        "blocks": {
            "all": disk.disk_size.div_ceil(u64::from(disk.block_size)),
            "fully_present": count(PayloadState::FullyPresent),
            "partially_present": count(PayloadState::PartiallyPresent),
            "zero": count(PayloadState::Zero),
            "unmapped": count(PayloadState::Unmapped),
            "undefined": count(PayloadState::Undefined),
        },
        "parent_locator": locator,
    }))
}

fn info_text(v: &Value) -> String {
    let size = |value: &Value| format_size(value.as_u64().unwrap_or(0));
    let text = |value: &Value| clean(value.as_str().unwrap_or_default());
    let blocks = &v["blocks"];
    let mut rows = vec![
        ("file", text(&v["file"])),
        ("type", text(&v["type"])),
        ("disk", format!("{} ({} bytes)", size(&v["disk_bytes"]), v["disk_bytes"])),
        ("blocks", format!("{} of {}", blocks["all"], size(&v["block_bytes"]))),
        (
            "present",
            format!(
                "{} whole, {} in part, {} zero, {} unmapped",
                blocks["fully_present"], blocks["partially_present"], blocks["zero"], blocks["unmapped"]
            ),
        ),
        ("sectors", format!("{} logical, {} physical", v["logical_sector_bytes"], v["physical_sector_bytes"])),
        ("file size", format!("{}, {} on disk", size(&v["file_bytes"]), size(&v["allocated_bytes"]))),
        ("disk id", text(&v["disk_id"])),
        ("data id", text(&v["header"]["data_write_guid"])),
        ("creator", text(&v["creator"])),
        ("log", format!("{} at {}", size(&v["log"]["bytes"]), v["log"]["offset"])),
        ("BAT", format!("{} at {}", size(&v["bat"]["bytes"]), v["bat"]["offset"])),
        ("metadata", format!("{} at {}", size(&v["metadata"]["bytes"]), v["metadata"]["offset"])),
    ];
    let replay = v["log"]["entries_to_replay"].as_u64().unwrap_or(0);
    if replay > 0 {
        rows.push(("not closed", format!("{replay} log entries are replayed when it is opened for writing")));
    }
    let mut out: Vec<Vec<String>> = rows.into_iter().map(|(key, value)| vec![format!("{key}:"), value]).collect();
    for (key, value) in v["parent_locator"].as_object().into_iter().flatten() {
        out.push(vec![format!("{}:", clean(key)), text(value)]);
    }
    table(&out, &[])
}

/// Runs `vhdx map`.
pub fn map(path: &Path, json: bool) -> Result<u8, ApiError> {
    let image = Image::open(path, false).map_err(|e| failed(&e))?;
    let mut first = true;
    if json {
        print("[");
    } else {
        print(&format!("{:>18} {:>18} {:>5}  CONTENTS\n", "OFFSET", "LENGTH", "DEPTH"));
    }
    let result = image.for_each_extent(&mut |extent| {
        if !is_read() {
            // nobody waits for the rest
            return Err(Error::new(ErrorKind::Posix(Errno::EPIPE), "the map is not read"));
        }
        if json {
            print(&format!("{}{}", if first { "\n" } else { ",\n" }, extent_json(&extent)));
            first = false;
        } else {
            let contents = match &extent.data {
                Some((file, offset)) => format!("{} at {offset:#x}", clean(&file.display().to_string())),
                None => "zeros".to_owned(),
            };
            print(&format!("{:>#18x} {:>#18x} {:>5}  {contents}\n", extent.offset, extent.length, extent.depth));
        }
        Ok(())
    });
    if json {
        print("\n]\n");
    }
    match result {
        Err(e) if is_read() => Err(failed(&e)),
        _ => Ok(0),
    }
}

fn extent_json(extent: &MapExtent) -> Value {
    let mut value = json!({
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.present,
        "zero": extent.data.is_none(),
        "data": extent.data.is_some(),
    });
    if let Some((file, offset)) = &extent.data {
        value["offset"] = (*offset).into();
        value["file"] = file.display().to_string().into();
    }
    value
}

/// Runs the hidden `vhdx read`.
pub fn read(path: &Path, offset: u64, length: u64) -> Result<u8, ApiError> {
    let image = Image::open(path, false).map_err(|e| failed(&e))?;
    let mut out = std::io::stdout().lock();
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    while done < length {
        let len = usize::try_from(length - done).unwrap_or(usize::MAX).min(buf.len());
        let piece = buf.get_mut(..len).unwrap_or_default();
        image.read(offset + done, piece).map_err(|e| failed(&e))?;
        if out.write_all(piece).is_err() {
            return Ok(1);
        }
        done += len as u64;
    }
    Ok(u8::from(out.flush().is_err()))
}

/// Runs the hidden `vhdx exec`.
pub fn exec(path: &Path, json: bool) -> Result<u8, ApiError> {
    let image = Image::open(path, true).map_err(|e| failed(&e))?;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let result = step(&image, &words);
        match result {
            Ok(()) => print("ok\n"),
            Err(e) => print(&format!("error {}\n", clean(&e.to_string()))),
        }
    }
    image.close().map_err(|e| failed(&e))?;
    answer(json, &json!({}), String::new);
    Ok(0)
}

fn step(image: &Image, words: &[&str]) -> qrvsa_core::Result<()> {
    match words {
        ["write", offset, length, byte] => {
            let (offset, length) = (parse_size(offset)?, parse_size(length)?);
            let byte = byte.parse::<u8>().map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
            let length = usize::try_from(length).ok().filter(|len| *len <= 256 << 20);
            let length = length.ok_or_else(|| Error::new(ErrorKind::Invalid, "too long"))?;
            image.write(offset, &vec![byte; length])
        }
        ["trim", offset, length] => image.trim(parse_size(offset)?, parse_size(length)?),
        ["resize", size] => image.resize(parse_size(size)?, true),
        ["flush"] => image.flush(),
        _ => Err(Error::new(ErrorKind::Invalid, "no such step")),
    }
}
