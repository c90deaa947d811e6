//! The bytes of a VHDX file, without any I/O.
//!
//! Every structure has a raw form and a validated one. `RawX::decode` accepts any bytes (what is missing reads as zero), and
//! says with `problems` everything that breaks the specification; `validate` gives the form the engine computes with, or the
//! first problem that forbids to. Encoders write what [MS-VHDX] describes, with zeros in all reserved places.
//!
//! Section numbers in comments are those of [MS-VHDX] version 8.

mod bat;
mod fields;
mod guid;
mod header;
mod identifier;
mod locator;
pub mod log;
mod metadata;
mod problem;
mod region;

pub use bat::{BatEntry, BatLayout, BatSlot, BitmapState, PayloadState};
pub use fields::{checksum_with_hole, utf16_units};
pub use guid::Guid;
pub use header::{Header, RawHeader, choose_header};
pub use identifier::{FileIdentifier, SIGNATURE};
pub use locator::{LOCATOR_TYPE, ParentLocator, RawLocator};
pub use metadata::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, DISK_SIZE_MAX, DiskParameters, Item, ItemEntry, METADATA_TABLE_BYTES, Metadata,
    MetadataTable, RawMetadataTable, items,
};
pub use problem::Problem;
pub use region::{BAT_REGION, METADATA_REGION, RawRegion, RawRegionTable, Region, RegionTable};

/// One mebibyte: the unit of file offsets of regions and blocks.
pub const MIB: u64 = 1 << 20;
/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// Bytes of the header section (2.2): identifier, two headers, two region tables.
pub const HEADER_SECTION_BYTES: u64 = MIB;
/// File offset of the file type identifier.
pub const IDENTIFIER_OFFSET: u64 = 0;
/// File offsets of the two headers.
pub const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Bytes of a header that its checksum covers.
pub const HEADER_BYTES: usize = 4096;
/// File offsets of the two region tables.
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of a region table.
pub const REGION_TABLE_BYTES: usize = 64 << 10;
/// Bytes of one sector bitmap block; its bits describe one chunk.
pub const BITMAP_BYTES: u64 = MIB;
/// Sectors described by one sector bitmap block.
pub const SECTORS_PER_CHUNK: u64 = 1 << 23;
