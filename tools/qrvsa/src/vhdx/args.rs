//! `qrvsa vhdx`: the command line, as data.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use qrvsa_core::device::size::parse_size;

use super::place::Place;

/// A size on the command line, bytes.
fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

fn block_size(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    let good = bytes.is_power_of_two() && (1 << 20..=256 << 20).contains(&bytes);
    let bytes = u32::try_from(bytes).ok().filter(|_| good);
    bytes.ok_or_else(|| format!("\"{text}\" is not a block size: a power of two from 1M to 256M"))
}

fn sector(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err(format!("\"{text}\" is not a sector size: 512 or 4096")),
    }
}

fn place() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().try_map(Place::parse)
}

/// VHDX files. None of these commands needs the daemon, but for conversions from and to volumes.
#[derive(Subcommand)]
pub enum Vhdx {
    /// Make an image.
    Create(Create),
    /// Show everything about an image and its parents.
    Info {
        /// The image.
        file: PathBuf,
    },
    /// Look for violations of the specification; changes nothing.
    ///
    /// A log that was not replayed is replayed in memory. Exit codes: 0 clean, 1 violations or lost space were found,
    /// 2 the file cannot be read or is no VHDX image.
    Check {
        /// The image.
        file: PathBuf,
    },
    /// Set right what has one safe answer, and say what was done.
    ///
    /// Exit codes: 0 clean now, 1 something is left that `check` reports, 2 the file cannot be read or is no VHDX image.
    Repair {
        /// The image.
        file: PathBuf,
        /// Only show what would be done.
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
    /// Change the size of the disk.
    Resize {
        /// The image.
        file: PathBuf,
        /// The new size, such as 2TB (decimal) or 2TiB (binary).
        #[arg(value_parser = size)]
        size: u64,
        /// Cut off the end of the disk although there may be data.
        #[arg(long, short, visible_alias = "shrink")]
        force: bool,
        /// Only show what would be done.
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
    /// Make the file as small as it can be: release blocks of zeros, close gaps, cut off the end.
    Compact {
        /// The image.
        file: PathBuf,
        /// Only show what would be done.
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
    /// Copy the contents of a disk into a new file of another format, or into a volume of a pool.
    ///
    /// Formats are told by what is in SRC, and by the ending of DST (.vhdx or anything else); images of other formats (qcow2,
    /// VMDK, VDI, VHD) are refused. A file at DST must not be in use; the new one gets its owner and mode. Holes and zeros are not
    /// copied, and take no space in a raw file, dynamic image or volume. A volume is always written volume:POOL/VOL. As DST,
    /// it is made if it is not there; one that exists must be as large as SRC at least, empty (or given with --force), and
    /// neither be a LUN nor have its file in .volumes open for writing. When the command succeeds, all of it is durable.
    Convert(Convert),
    /// Write the contents of a differencing image into its parent.
    ///
    /// The parent must have no other children: they would not fit it any more.
    Merge {
        /// The differencing image.
        child: PathBuf,
        /// Remove it afterwards; if CHILD is a link, both.
        #[arg(long)]
        delete: bool,
        /// Only show what would be done.
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
    /// Tell a differencing image where its parent is now.
    Reparent {
        /// The differencing image.
        child: PathBuf,
        /// Its parent.
        parent: PathBuf,
        /// Also if the parent was changed since, or is another: the disk may be garbage then.
        #[arg(long, short)]
        force: bool,
    },
    /// Show where the contents of the disk are.
    Map {
        /// The image.
        file: PathBuf,
    },
    /// Read from the disk to standard output.
    #[command(hide = true)]
    Read {
        /// The image.
        file: PathBuf,
        /// First byte.
        #[arg(value_parser = size)]
        offset: u64,
        /// Bytes.
        #[arg(value_parser = size)]
        length: u64,
    },
    /// Carry out commands from standard input: `write OFFSET LENGTH BYTE`, `trim OFFSET LENGTH`, `zero OFFSET LENGTH`,
    /// `flush`, `resize SIZE`; each is answered with a line when it is done.
    #[command(hide = true)]
    Exec {
        /// The image.
        file: PathBuf,
    },
}

/// Kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageType {
    /// Takes space as it is written.
    Dynamic,
    /// Has all its space from the beginning.
    Fixed,
}

/// `vhdx create`.
#[derive(Args)]
pub struct Create {
    /// The new file.
    pub file: PathBuf,
    /// Size of the disk, such as 64TB (decimal) or 64TiB (binary); with --parent, that of the parent or more.
    #[arg(value_parser = size, required_unless_present = "parent")]
    pub size: Option<u64>,
    /// What kind.
    #[arg(long = "type", value_name = "TYPE", default_value = "dynamic")]
    pub kind: ImageType,
    /// Size of a block: a power of two from 1M to 256M.
    #[arg(long, value_parser = block_size, value_name = "SIZE")]
    pub block_size: Option<u32>,
    /// Logical sector size, 512 or 4096.
    #[arg(long, value_parser = sector, value_name = "BYTES")]
    pub logical_sector: Option<u32>,
    /// Make a differencing image over this one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "logical_sector"])]
    pub parent: Option<PathBuf>,
}

/// What `vhdx convert` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// A dynamic VHDX image.
    Dynamic,
    /// A fixed VHDX image.
    Fixed,
}

/// `vhdx convert`.
#[derive(Args)]
pub struct Convert {
    /// A VHDX image, raw file, block device, or volume:POOL/VOL.
    #[arg(value_parser = place())]
    pub src: Place,
    /// The new file, a block device, which needs --force, or volume:POOL/VOL.
    #[arg(value_parser = place())]
    pub dst: Place,
    /// What to make; by default dynamic for names that end in .vhdx, else raw.
    #[arg(long, short = 'O', value_name = "FORMAT")]
    pub to: Option<Format>,
    /// Take SRC as raw bytes, whatever is in it.
    #[arg(long)]
    pub raw_source: bool,
    /// Size of a block of the new image: a power of two from 1M to 256M.
    #[arg(long, value_parser = block_size, value_name = "SIZE")]
    pub block_size: Option<u32>,
    /// Logical sector size of the new image or volume, 512 or 4096; by default that of SRC.
    #[arg(long, value_parser = sector, value_name = "BYTES")]
    pub logical_sector: Option<u32>,
    /// Overwrite DST.
    #[arg(long, short)]
    pub force: bool,
    /// Only show what would be done.
    #[arg(long, short = 'n')]
    pub dry_run: bool,
}
