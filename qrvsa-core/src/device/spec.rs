//! How a person names a device: `PATH`, or `PATH:SIZE` for a file to be made; with `vhdx:` before it, for a container.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::size::parse_size;
use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};

/// A device as named on a command line or in a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSpec {
    /// Where it is.
    pub path: PathBuf,
    /// It is a VHDX file, or is to be one.
    pub vhdx: bool,
    /// Size in bytes of the file to make, a multiple of 4 KiB; `None` for a device or file that exists.
    pub create_size: Option<u64>,
}

impl FromStr for DeviceSpec {
    type Err = Error;

    /// Parses `[vhdx:]PATH` or `[vhdx:]PATH:SIZE`; sizes as in [`parse_size`], rounded down to 4 KiB.
    ///
    /// What follows the last colon is a size if it is written as one with a unit, or is a plain number of at least 4096:
    /// names in `/dev/disk/by-path` end in things like `:0`.
    fn from_str(text: &str) -> Result<DeviceSpec> {
        let block = BLOCK_SIZE as u64;
        let (vhdx, text) = text.strip_prefix("vhdx:").map_or((false, text), |rest| (true, rest));
        let (path, create_size) = match text.rsplit_once(':') {
            Some((path, tail)) if !tail.contains('/') => match parse_size(tail) {
                Ok(bytes) if bytes >= block => (path, Some(bytes - bytes % block)),
                Ok(_) if !tail.bytes().all(|b| b.is_ascii_digit()) => {
                    return Err(Error::new(ErrorKind::Invalid, format!("\"{text}\": a device needs at least 4 KiB")));
                }
                _ => (text, None),
            },
            _ => (text, None),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(Error::new(ErrorKind::Invalid, format!("\"{text}\" does not name a device")));
        }
        Ok(DeviceSpec { path: path.into(), vhdx, create_size })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.vhdx { "vhdx:" } else { "" }, self.path.display())?;
        match self.create_size {
            Some(bytes) => write!(f, ":{bytes}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_sizes() {
        let cases: [(&str, &str, Option<u64>); 12] = [
            ("/dev/sda", "/dev/sda", None),
            ("disk.img:64M", "disk.img", Some(64 << 20)),
            ("/a/b:4TB", "/a/b", Some(4_000_000_000_000 / 4096 * 4096)),
            ("/a/b:4T", "/a/b", Some(4 << 40)),
            ("/a/b:10000", "/a/b", Some(8192)),
            ("/a:b/c", "/a:b/c", None),
            ("/a:1G/c", "/a:1G/c", None),
            ("/a:b/c:1.5G", "/a:b/c", Some(3 << 29)),
            ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1", None),
            ("/dev/disk/by-path/usb-0:1:1.0-scsi-0:0:0:0", "/dev/disk/by-path/usb-0:1:1.0-scsi-0:0:0:0", None),
            ("/a:", "/a:", None),
            ("/a:99999999T", "/a:99999999T", None),
        ];
        for (text, path, create_size) in cases {
            let spec: DeviceSpec = text.parse().unwrap();
            assert_eq!((spec.path.to_str().unwrap(), spec.create_size), (path, create_size), "{text}");
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
            let container: DeviceSpec = format!("vhdx:{text}").parse().unwrap();
            assert_eq!(container, DeviceSpec { vhdx: true, ..spec });
            assert_eq!(container.to_string().parse::<DeviceSpec>().unwrap(), container);
        }
        for text in ["", ":64M", "/a:1K", "/a:0M", "/a\0b", "vhdx:", "vhdx::1G"] {
            assert!(text.parse::<DeviceSpec>().is_err(), "{text}");
        }
    }
}
