//! The stable codes of findings: what each means and what to do about it. `docs/vhdx-tools.md` lists them.

use super::report::Severity;
use Severity::{Error, Leak, Remark};

/// One code.
#[derive(Debug, PartialEq, Eq)]
pub struct CodeInfo {
    /// Stable name.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it means, for the documentation.
    pub meaning: &'static str,
    /// What to do.
    pub advice: &'static str,
}

const REPAIR: &str = "`qrvsa vhdx repair` fixes it";
const COPY: &str = "copy what can be read with `qrvsa vhdx convert`, or restore a backup";
const BACKUP: &str = "restore the file from a backup";
const WRITER: &str = "the program that wrote it is faulty; copy the contents with `qrvsa vhdx convert`";
const MAKER: &str = "use the program that made it";
const NOTHING: &str = "nothing needs to be done";
const OPEN: &str = "it is replayed when the image is next opened for writing, or by `qrvsa vhdx repair`";
const PARENT: &str = "bring the right parent back, or name it with `qrvsa vhdx reparent`";

macro_rules! codes {
    ($($name:ident $code:literal $severity:ident $advice:ident $meaning:literal;)*) => {
        $(pub(in crate::vhdx) static $name: CodeInfo =
            CodeInfo { code: $code, severity: $severity, meaning: $meaning, advice: $advice };)*
        /// All codes.
        pub static CODES: &[&CodeInfo] = &[$(&$name),*];
    };
}

codes! {
    FILE_SHORT "file-short" Error BACKUP "the file ends inside its first MiB";
    ID_SIGNATURE "id-signature" Error REPAIR "the file type identifier does not begin with \"vhdxfile\"";
    ID_CREATOR "id-creator" Remark NOTHING "the creator is not UTF-16";
    HEADER_SIGNATURE "header-signature" Error REPAIR "a header does not begin with \"head\"";
    HEADER_CHECKSUM "header-checksum" Error REPAIR "the checksum of a header is wrong";
    HEADER_VERSION "header-version" Error MAKER "the version of a header is not 1";
    HEADER_LOG_VERSION "header-log-version" Error MAKER "the log version is not 0, and there is a log";
    HEADER_LOG_VERSION_UNUSED "header-log-version-unused" Remark NOTHING "the log version is not 0, without a log";
    HEADER_LOG_LENGTH "header-log-length" Error WRITER "the length of the log is 0 or no multiple of 1 MiB";
    HEADER_LOG_OFFSET "header-log-offset" Error WRITER "the log lies in the first MiB or is not aligned to 1 MiB";
    HEADER_LOG_BEYOND "header-log-beyond" Error BACKUP "the log reaches beyond the end of the file";
    HEADER_RESERVED "header-reserved" Error REPAIR "reserved bytes of a header are not zero";
    HEADER_NONE "header-none" Error BACKUP "neither header is valid";
    HEADER_EQUAL_SEQUENCE "header-equal-sequence" Error WRITER "both headers have the same sequence number and differ";
    HEADER_FILE_WRITE_GUID "header-file-write-guid" Remark NOTHING "FileWriteGuid is zero";
    HEADER_DATA_WRITE_GUID "header-data-write-guid" Remark NOTHING "DataWriteGuid is zero: children cannot tell their parent";
    RESERVED_AREA "reserved-area" Remark NOTHING "reserved space before the first MiB is not zero";
    REGION_SIGNATURE "region-signature" Error REPAIR "a region table does not begin with \"regi\"";
    REGION_CHECKSUM "region-checksum" Error REPAIR "the checksum of a region table is wrong";
    REGION_COUNT "region-count" Error BACKUP "a region table has more than 2047 entries";
    REGION_RESERVED "region-reserved" Error REPAIR "reserved bits of a region table are not zero";
    REGION_NONE "region-none" Error BACKUP "neither region table is valid";
    REGION_DIFFER "region-differ" Error REPAIR "both region tables are valid and differ; the first rules";
    REGION_DUPLICATE "region-duplicate" Error WRITER "a region is listed twice";
    REGION_OFFSET "region-offset" Error WRITER "a region lies in the first MiB or is not aligned to 1 MiB";
    REGION_LENGTH "region-length" Error WRITER "the length of a region is 0 or no multiple of 1 MiB";
    REGION_BEYOND "region-beyond" Error BACKUP "a region reaches beyond the end of the file";
    REGION_OVERLAP "region-overlap" Error BACKUP "a region overlaps another or the log";
    REGION_UNKNOWN_REQUIRED "region-unknown-required" Error MAKER "an unknown region is marked as required: nobody may open the file";
    REGION_UNKNOWN "region-unknown" Remark NOTHING "an unknown region, which is kept";
    REGION_MISSING "region-missing" Error BACKUP "the region table lists no BAT or no metadata region";
    REGION_NOT_REQUIRED "region-not-required" Remark REPAIR "the BAT or the metadata region is not marked as required, as in images made by QEMU";
    LOG_DIRTY "log-dirty" Remark OPEN "the image was not closed: its log is replayed in memory for this check";
    LOG_NO_SEQUENCE "log-no-sequence" Error BACKUP "the header names a log, but it holds no valid active sequence";
    LOG_FILE_SHORT "log-file-short" Error BACKUP "the file is shorter than when the last log entry was written";
    LOG_TORN "log-torn" Remark NOTHING "an entry of this log is torn, as by a power failure";
    LOG_ENTRY_LENGTH "log-entry-length" Error WRITER "the length of a log entry is no multiple of 4 KiB, or larger than the log, or does not fit its descriptors";
    LOG_ENTRY_TAIL "log-entry-tail" Error WRITER "the tail of a log entry is not aligned or lies outside the log";
    LOG_ENTRY_SEQUENCE "log-entry-sequence" Error WRITER "the sequence number of a log entry is 0";
    LOG_ENTRY_RESERVED "log-entry-reserved" Error WRITER "reserved bytes of a log entry are not zero";
    LOG_ENTRY_OFFSETS "log-entry-offsets" Remark NOTHING "FlushedFileOffset or LastFileOffset of a log entry is 0 or no multiple of 1 MiB";
    LOG_DESCRIPTOR "log-descriptor" Error WRITER "a log descriptor is neither \"zero\" nor \"desc\"";
    LOG_DESCRIPTOR_SEQUENCE "log-descriptor-sequence" Error WRITER "the sequence number of a log descriptor is not that of its entry";
    LOG_DESCRIPTOR_OFFSET "log-descriptor-offset" Error WRITER "the target of a log descriptor is not aligned to 4 KiB, or overflows";
    LOG_DESCRIPTOR_LENGTH "log-descriptor-length" Error WRITER "the length of a zero descriptor is no multiple of 4 KiB";
    LOG_DESCRIPTOR_TARGET "log-descriptor-target" Error WRITER "a log descriptor would overwrite the file type identifier, a header or the log itself";
    LOG_DATA "log-data" Error WRITER "a data sector of a log entry has the wrong signature or sequence number";
    METADATA_SIGNATURE "metadata-signature" Error BACKUP "the metadata table does not begin with \"metadata\"";
    METADATA_COUNT "metadata-count" Error BACKUP "the metadata table has more than 2047 entries";
    METADATA_RESERVED "metadata-reserved" Error REPAIR "reserved bytes or flags of the metadata table are not zero";
    METADATA_DUPLICATE "metadata-duplicate" Error WRITER "a metadata item is listed twice";
    METADATA_OFFSET "metadata-offset" Error WRITER "a metadata item lies inside the table, or is empty and has an offset";
    METADATA_BEYOND "metadata-beyond" Error BACKUP "a metadata item reaches beyond its region";
    METADATA_OVERLAP "metadata-overlap" Error WRITER "two metadata items overlap";
    METADATA_LENGTH "metadata-length" Error WRITER "a metadata item is longer than 1 MiB, or not as long as its kind needs";
    METADATA_FLAGS "metadata-flags" Error REPAIR "the flags (user, virtual disk, required) of a known metadata item are wrong";
    METADATA_USER_COUNT "metadata-user-count" Error WRITER "there are more than 1024 user metadata items";
    METADATA_UNKNOWN_REQUIRED "metadata-unknown-required" Error MAKER "an unknown metadata item is marked as required: nobody may open the file";
    METADATA_UNKNOWN "metadata-unknown" Remark NOTHING "an unknown metadata item, which is kept";
    METADATA_MISSING "metadata-missing" Error BACKUP "a required metadata item is missing";
    PARAMS_BLOCK_SIZE "params-block-size" Error BACKUP "the block size is no power of two from 1 MiB to 256 MiB";
    PARAMS_RESERVED "params-reserved" Error REPAIR "reserved bits of the file parameters are not zero";
    SIZE_ZERO "size-zero" Error BACKUP "the disk has no size";
    SIZE_ALIGNMENT "size-alignment" Error WRITER "the size of the disk is no multiple of its logical sector";
    SIZE_LIMIT "size-limit" Error WRITER "the disk is larger than 64 TiB";
    SECTOR_LOGICAL "sector-logical" Error BACKUP "the logical sector size is neither 512 nor 4096";
    SECTOR_PHYSICAL "sector-physical" Error REPAIR "the physical sector size is neither 512 nor 4096";
    DISK_ID "disk-id" Remark NOTHING "the disk's identifier (page 83) is zero";
    LOCATOR_MISSING "locator-missing" Error BACKUP "the image has a parent but no parent locator";
    LOCATOR_UNEXPECTED "locator-unexpected" Error WRITER "there is a parent locator, but the image has no parent";
    LOCATOR_TYPE_CODE "locator-type" Error MAKER "the type of the parent locator is unknown";
    LOCATOR_RESERVED "locator-reserved" Error REPAIR "reserved bytes of the parent locator are not zero";
    LOCATOR_ENTRY "locator-entry" Error WRITER "a key or value of the parent locator is empty, has an odd length, or lies outside it";
    LOCATOR_TEXT "locator-text" Error WRITER "a key or value of the parent locator is not UTF-16, or contains NUL";
    LOCATOR_DUPLICATE "locator-duplicate" Error WRITER "a key of the parent locator appears twice";
    LOCATOR_LINKAGE "locator-linkage" Error PARENT "parent_linkage is missing or no GUID in braces";
    LOCATOR_PATH "locator-path" Error PARENT "the parent locator has no path";
    PARENT_MISSING "parent-missing" Error PARENT "the parent is at none of its paths";
    PARENT_UNREADABLE "parent-unreadable" Error PARENT "the parent cannot be read";
    PARENT_GUID "parent-guid" Error PARENT "the parent was changed since the child was made: its DataWriteGuid is another";
    PARENT_LOOP "parent-loop" Error PARENT "the chain of parents is a loop, or too long";
    PARENT_SECTOR "parent-sector" Error PARENT "the parent has another logical sector size";
    BAT_SHORT "bat-short" Error BACKUP "the BAT region is too small for the disk";
    BAT_STATE "bat-state" Error COPY "the state of a payload block is reserved";
    BAT_RESERVED "bat-reserved" Error REPAIR "reserved bits of a BAT entry are not zero";
    BAT_PARTIAL "bat-partial" Error COPY "a block is partially present, but the image has no parent";
    BAT_OFFSET_MISSING "bat-offset-missing" Error COPY "a block is present, but has no offset or one in the first MiB";
    BAT_OFFSET_ZERO "bat-offset-zero" Error REPAIR "a block is zero or not present, but has an offset: Hyper-V refuses it";
    BAT_STALE_OFFSET "bat-stale-offset" Remark NOTHING "an undefined or unmapped block keeps an offset that others use";
    BAT_IN_LOG "bat-in-log" Error COPY "a block lies inside the log";
    BAT_IN_METADATA "bat-in-metadata" Error COPY "a block lies inside the metadata region";
    BAT_IN_BAT "bat-in-bat" Error COPY "a block lies inside the BAT region";
    BAT_IN_REGION "bat-in-region" Error COPY "a block lies inside a region of another program";
    BAT_OVERLAP "bat-overlap" Error COPY "two blocks share space";
    BAT_BEYOND "bat-beyond" Error COPY "a block reaches beyond the end of the file";
    BAT_BITMAP_STATE "bat-bitmap-state" Error COPY "the state of a bitmap block is neither 0 nor 6";
    BAT_BITMAP_UNEXPECTED "bat-bitmap-unexpected" Error REPAIR "there is a bitmap block, but the image has no parent";
    BAT_BITMAP_MISSING "bat-bitmap-missing" Error COPY "a block is partially present, but its bitmap is not there";
    BAT_TAIL "bat-tail" Error REPAIR "a BAT entry behind the end of the disk has space";
    SPACE_UNUSED "space-unused" Leak REPAIR "space inside the file is used by nothing, and is no hole";
    SPACE_TRAILING_HOLE "space-trailing-hole" Remark REPAIR "the file goes on with a hole behind its last structure, as images made by QEMU do";
    SPACE_TRAILING "space-trailing" Leak REPAIR "the file goes on behind its last structure";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_advice_sends_people_to_what_refuses_the_image() {
        let refused = [
            "header-version",
            "header-log-version",
            "region-unknown-required",
            "metadata-unknown-required",
            "locator-type",
        ];
        for info in CODES.iter().filter(|info| refused.contains(&info.code)) {
            assert_eq!(info.advice, MAKER, "{}", info.code);
        }
    }

    #[test]
    fn codes_are_unique_and_documented() {
        let doc = include_str!("../../../../docs/vhdx-tools.md");
        for (i, info) in CODES.iter().enumerate() {
            assert!(CODES.iter().skip(i + 1).all(|other| other.code != info.code), "{} twice", info.code);
            let row = format!("| `{}` | {} | {} |", info.code, info.severity.name(), info.meaning);
            assert!(doc.contains(&row), "docs/vhdx-tools.md has no row {row}");
        }
    }
}
