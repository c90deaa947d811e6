//! Deliberate violations of the specification, one image each, with all the codes that a check must find, and no other.

use super::image::*;

/// One violation: its name, a sound image, what breaks it, the codes.
pub type Violation = (&'static str, fn() -> Image, fn(&mut Image), &'static [&'static str]);

fn log_with(image: &mut Image, change: fn(&mut Vec<u8>)) {
    let entry = LogEntry { pieces: vec![(BAT, Some(vec![0; 4096])), (BAT + 8192, None)], ..LogEntry::new(9) };
    set_log(image, LogEntry { change: Some(change), ..entry });
}

fn set(bytes: &mut [u8], at: usize, value: u64, len: usize) {
    bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

macro_rules! violations {
    ($($name:literal $base:ident $codes:tt $image:ident => $break:expr;)*) => {
        pub const VIOLATIONS: &[Violation] =
            &[$(($name, $base, |$image: &mut Image| { let _ = $break; }, &$codes)),*];
    };
}

violations! {
    // File type identifier and file.
    "identifier" dynamic ["id-signature"] i => i.put(0, b"vhdxfilf");
    "creator" dynamic ["id-creator"] i => i.u16(8, 0xd800);
    "cut in the headers" dynamic ["file-short", "header-log-beyond", "region-beyond"] i => i.len(MIB - 4096);
    "cut in the region tables" dynamic ["file-short", "header-log-beyond", "region-signature", "region-none"] i => i.len(130 * KIB);
    "cut before the BAT" dynamic ["region-beyond"] i => i.len(3 * MIB);
    "reserved area" dynamic ["reserved-area"] i => i.put(512 * KIB, b"x");

    // Headers.
    "header 1 signature" dynamic ["header-signature"] i => i.put(HEADERS[0], b"hear");
    "header 2 signature" dynamic ["header-signature"] i => i.put(HEADERS[1], &[0; 4096]);
    "header 1 checksum" dynamic ["header-checksum"] i => i.u32(HEADERS[0] + 4, 1);
    "header 2 contents" dynamic ["header-checksum"] i => i.put(HEADERS[1] + 20, b"x");
    "both headers" dynamic ["header-checksum", "header-none"] i => i.u32(HEADERS[0] + 4, 1).u32(HEADERS[1] + 4, 1);
    "header version" dynamic ["header-version"] i => i.header(0, |i, at| { i.u16(at + 66, 2); });
    "both header versions" dynamic ["header-version", "header-none"] i => i.headers(|i, at| { i.u16(at + 66, 0); });
    "log version with a log" dirty ["header-log-version", "log-dirty"] i => i.headers(|i, at| { i.u16(at + 64, 1); });
    "log version without a log" dynamic ["header-log-version-unused"] i => i.headers(|i, at| { i.u16(at + 64, 1); });
    "log length zero" dynamic ["header-log-length"] i => i.headers(|i, at| { i.u32(at + 68, 0); });
    "log length odd" dynamic ["header-log-length"] i => i.headers(|i, at| { i.u32(at + 68, 0x8_0000); });
    "log offset odd" dynamic ["header-log-offset"] i => i.headers(|i, at| { i.u64(at + 72, LOG + 4096); });
    "log offset zero" dynamic ["header-log-offset"] i => i.headers(|i, at| { i.u64(at + 72, 0); });
    "log beyond the file" dynamic ["header-log-beyond"] i => i.headers(|i, at| { i.u64(at + 72, 64 * MIB); });
    "log offset huge" dynamic ["header-log-beyond"] i => i.headers(|i, at| { i.u64(at + 72, 0xffff_ffff_fff0_0000); });
    "log length huge" dynamic ["header-log-beyond"] i => i.headers(|i, at| { i.u32(at + 68, 0xfff0_0000); });
    "header reserved" dynamic ["header-reserved"] i => i.header(0, |i, at| { i.put(at + 80, b"x"); });
    "header reserved at its end" dynamic ["header-reserved"] i => i.header(1, |i, at| { i.put(at + 4095, b"x"); });
    "equal sequences" dynamic ["header-equal-sequence"] i => i.header(0, |i, at| { i.u64(at + 8, 6).u64(at + 16, 3); });
    "no FileWriteGuid" dynamic ["header-file-write-guid"] i => i.headers(|i, at| { i.put(at + 16, &[0; 16]); });
    "no DataWriteGuid" dynamic ["header-data-write-guid"] i => i.headers(|i, at| { i.put(at + 32, &[0; 16]); });

    // Region tables.
    "region table 1 signature" dynamic ["region-signature"] i => i.put(REGIONS[0], b"x");
    "region table 2 signature" dynamic ["region-signature"] i => i.put(REGIONS[1], &[0; 65536]);
    "region table 1 checksum" dynamic ["region-checksum"] i => i.put(REGIONS[0] + 20, b"x");
    "region table 2 contents" dynamic ["region-checksum"] i => i.put(REGIONS[1] + 60000, b"x");
    "both region tables" dynamic ["region-checksum", "region-none"] i => i.put(REGIONS[0] + 4, b"x").put(REGIONS[1] + 4, b"x");
    "region count" dynamic ["region-count", "region-none"] i => i.regions(|i, at| { i.u32(at + 8, 2048); });
    "region count huge" dynamic ["region-count", "region-none"] i => i.regions(|i, at| { i.u32(at + 8, u32::MAX); });
    "region tables differ" dynamic ["region-differ"] i => i.region(1, |i, at| { i.region_entry(at, 0, BAT_ID, 4 * MIB, MIB as u32, 1); });
    "region reserved" dynamic ["region-reserved"] i => i.regions(|i, at| { i.u32(at + 12, 1); });
    "region flags" dynamic ["region-reserved"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, BAT, MIB as u32, 3); });
    "region listed twice" dynamic ["region-duplicate"] i => i.regions(|i, at| { i.u32(at + 8, 3).region_entry(at, 2, BAT_ID, BAT, MIB as u32, 1); });
    "region in the first MiB" dynamic ["region-offset"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, 512 * KIB, MIB as u32, 1); });
    "region not aligned" dynamic ["region-offset"] i => i.regions(|i, at| { i.region_entry(at, 1, META_ID, META + 65536, MIB as u32, 1); });
    "region without length" dynamic ["region-length"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, BAT, 0, 1); });
    "region length odd" dynamic ["region-length"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, BAT, 65536, 1); });
    "BAT beyond the file" dynamic ["region-beyond"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, 16 * MIB, MIB as u32, 1); });
    "metadata beyond the file" dynamic ["region-beyond"] i => i.regions(|i, at| { i.region_entry(at, 1, META_ID, u64::MAX - MIB + 1, MIB as u32, 1); });
    "BAT over metadata" dynamic ["region-overlap"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, BAT, MIB as u32, 1).region_entry(at, 1, META_ID, META, 2 << 20, 1); });
    "BAT over the log" dynamic ["region-overlap", "space-unused"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, LOG, MIB as u32, 1); }).put(LOG, &[0; 16]).u64(LOG, 6 | 4 << 20).u64(LOG + 8, 6 | 5 << 20);
    "unknown required region" dynamic ["region-unknown-required"] i => i.len(7 * MIB).regions(|i, at| { i.u32(at + 8, 3).region_entry(at, 2, OTHER_ID, 6 * MIB, MIB as u32, 1); });
    "unknown region" dynamic ["region-unknown"] i => i.len(7 * MIB).regions(|i, at| { i.u32(at + 8, 3).region_entry(at, 2, OTHER_ID, 6 * MIB, MIB as u32, 0); });
    "no BAT" dynamic ["region-missing"] i => i.regions(|i, at| { i.u32(at + 8, 1).region_entry(at, 0, META_ID, META, MIB as u32, 1); });
    "no metadata" dynamic ["region-missing"] i => i.regions(|i, at| { i.u32(at + 8, 1); });
    "BAT not required" dynamic ["region-not-required"] i => i.regions(|i, at| { i.region_entry(at, 0, BAT_ID, BAT, MIB as u32, 0); });

    // Log.
    "log without entries" dirty ["log-no-sequence"] i => i.put(LOG, &[0; 8192]);
    "log of another GUID" dirty ["log-no-sequence"] i => i.headers(|i, at| { i.put(at + 48, &[9; 16]); });
    "log entry checksum" dirty ["log-torn", "log-no-sequence"] i => i.put(LOG + 100, b"x");
    "log data changed" dirty ["log-torn", "log-no-sequence"] i => i.put(LOG + 5000, b"x");
    "tail outside the sequence" dynamic ["log-no-sequence"] i => set_log(i, LogEntry { tail: 65536, ..LogEntry::new(9) });
    "tail outside the log" dynamic ["log-entry-tail", "log-no-sequence"] i => set_log(i, LogEntry { tail: MIB as u32, ..LogEntry::new(9) });
    "tail odd" dynamic ["log-entry-tail", "log-no-sequence"] i => set_log(i, LogEntry { tail: 512, ..LogEntry::new(9) });
    "file shorter than flushed" dynamic ["log-file-short", "log-dirty", "space-trailing-hole"] i => set_log(i, LogEntry { flushed: 8 * MIB, last: 8 * MIB, ..LogEntry::new(9) });
    "log sequence zero" dynamic ["log-entry-sequence", "log-no-sequence"] i => set_log(i, LogEntry::new(0));
    "log entry length" dynamic ["log-entry-length", "log-no-sequence"] i => log_with(i, |b| set(b, 8, 4097, 4));
    "log entry length huge" dynamic ["log-entry-length", "log-no-sequence"] i => log_with(i, |b| set(b, 8, 0xffff_f000, 4));
    "log entry length zero" dynamic ["log-entry-length", "log-no-sequence"] i => log_with(i, |b| set(b, 8, 0, 4));
    "log entry with a sector too many" dynamic ["log-entry-length", "log-no-sequence"] i => log_with(i, |b| { b.extend([0; 4096]); set(b, 8, 12288, 4); });
    "log descriptors too many" dynamic ["log-entry-length", "log-no-sequence"] i => log_with(i, |b| set(b, 24, 1000, 4));
    "log descriptors absurdly many" dynamic ["log-entry-length", "log-no-sequence"] i => log_with(i, |b| set(b, 24, 0xffff_ffff, 4));
    "log entry reserved" dynamic ["log-entry-reserved", "log-dirty", "space-trailing"] i => log_with(i, |b| set(b, 28, 1, 4));
    "log flushed offset odd" dynamic ["log-entry-offsets", "log-dirty", "space-trailing"] i => log_with(i, |b| set(b, 48, 4096, 8));
    "log last offset zero" dynamic ["log-entry-offsets", "log-dirty", "space-trailing"] i => log_with(i, |b| set(b, 56, 0, 8));
    "log descriptor signature" dynamic ["log-descriptor", "log-no-sequence"] i => log_with(i, |b| set(b, 64, 0x1234, 4));
    "log descriptor sequence" dynamic ["log-descriptor-sequence", "log-no-sequence"] i => log_with(i, |b| set(b, 64 + 24, 8, 8));
    "log descriptor target odd" dynamic ["log-descriptor-offset", "log-no-sequence"] i => log_with(i, |b| set(b, 64 + 16, BAT + 512, 8));
    "log descriptor target huge" dynamic ["log-descriptor-offset", "log-no-sequence"] i => log_with(i, |b| set(b, 64 + 16, u64::MAX - 4095, 8));
    "log zero length odd" dynamic ["log-descriptor-length", "log-no-sequence"] i => log_with(i, |b| set(b, 96 + 8, 100, 8));
    "log zero length huge" dynamic ["log-descriptor-offset", "log-no-sequence"] i => log_with(i, |b| set(b, 96 + 8, 0xffff_ffff_ffff_f000, 8));
    "log changes a header" dynamic ["log-descriptor-target", "log-no-sequence"] i => log_with(i, |b| set(b, 64 + 16, HEADERS[0], 8));
    "log changes the identifier" dynamic ["log-descriptor-target", "log-no-sequence"] i => log_with(i, |b| set(b, 96 + 16, 0, 8));
    "log changes the log" dynamic ["log-descriptor-target", "log-no-sequence"] i => log_with(i, |b| set(b, 64 + 16, LOG + 8192, 8));
    "log data signature" dynamic ["log-data", "log-no-sequence"] i => log_with(i, |b| set(b, 4096, 0, 4));
    "log data sequence high" dynamic ["log-data", "log-no-sequence"] i => log_with(i, |b| set(b, 4100, 1, 4));
    "log data sequence low" dynamic ["log-data", "log-no-sequence"] i => log_with(i, |b| set(b, 8188, 1, 4));

    // Metadata table.
    "metadata signature" dynamic ["metadata-signature"] i => i.put(META, b"x");
    "metadata count" dynamic ["metadata-count"] i => i.u16(META + 10, 2048);
    "metadata reserved" dynamic ["metadata-reserved"] i => i.u16(META + 8, 1);
    "metadata reserved at its end" dynamic ["metadata-reserved"] i => i.u32(META + 28, 1);
    "metadata entry flags" dynamic ["metadata-reserved"] i => i.item(4, PHYSICAL_ID, 65572, 4, 14);
    "metadata entry reserved" dynamic ["metadata-reserved"] i => i.u32(META + 32 + 28, 1);
    "metadata listed twice" dynamic ["metadata-duplicate"] i => i.u16(META + 10, 6).item(5, SIZE_ID, 65544, 8, 6);
    "metadata in its table" dynamic ["metadata-offset"] i => i.item(4, PHYSICAL_ID, 4096, 4, 6);
    "metadata empty with an offset" dynamic ["metadata-offset", "metadata-unknown"] i => i.u16(META + 10, 6).item(5, OTHER_ID, 65600, 0, 1);
    "metadata beyond its region" dynamic ["metadata-beyond"] i => i.item(4, PHYSICAL_ID, MIB - 2, 4, 6);
    "metadata offset huge" dynamic ["metadata-beyond"] i => i.item(2, DISK_ID, 0xffff_ffff, 16, 6);
    "metadata overlaps" dynamic ["metadata-overlap"] i => i.item(4, PHYSICAL_ID, 65568, 4, 6);
    "metadata overlaps partly" dynamic ["metadata-overlap", "metadata-unknown"] i => i.u16(META + 10, 6).item(5, OTHER_ID, 65574, 8, 1);
    "metadata too long" dynamic ["metadata-length", "metadata-unknown"] i => i.u16(META + 10, 6).item(5, OTHER_ID, 65600, 2 << 20, 1);
    "metadata wrong length" dynamic ["metadata-length"] i => i.item(1, SIZE_ID, 65544, 4, 6);
    "metadata flags of a disk item" dynamic ["metadata-flags"] i => i.item(1, SIZE_ID, 65544, 8, 4);
    "metadata flags user" dynamic ["metadata-flags"] i => i.item(4, PHYSICAL_ID, 65572, 4, 7);
    "metadata flags not required" dynamic ["metadata-flags"] i => i.item(0, PARAMS_ID, 65536, 8, 0);
    "unknown required item" dynamic ["metadata-unknown-required"] i => i.u16(META + 10, 6).item(5, OTHER_ID, 65600, 4, 4);
    "too many user items" dynamic ["metadata-user-count", "metadata-unknown"] i => {
        i.u16(META + 10, 5 + 1025);
        for n in 0..1025 {
            i.item(5 + n, &format!("{n:032x}"), 0, 0, 1);
        }
    };
    "no file parameters" dynamic ["metadata-missing"] i => i.u16(META + 10, 4).item(0, SIZE_ID, 65544, 8, 6).item(1, DISK_ID, 65552, 16, 6).item(2, LOGICAL_ID, 65568, 4, 6).item(3, PHYSICAL_ID, 65572, 4, 6);
    "no physical sector size" dynamic ["metadata-missing"] i => i.u16(META + 10, 4);
    "no items" dynamic ["metadata-missing"] i => i.u16(META + 10, 0);

    // Values.
    "block size zero" dynamic ["params-block-size"] i => i.u32(META + 65536, 0);
    "block size no power of two" dynamic ["params-block-size"] i => i.u32(META + 65536, 3 << 20);
    "block size small" dynamic ["params-block-size"] i => i.u32(META + 65536, 512 << 10);
    "block size large" dynamic ["params-block-size"] i => i.u32(META + 65536, 512 << 20);
    "parameters reserved" dynamic ["params-reserved"] i => i.u32(META + 65540, 4);
    "no size" dynamic ["size-zero"] i => i.u64(META + 65544, 0);
    "size odd" dynamic ["size-alignment"] i => i.u64(META + 65544, 8 * MIB - 100);
    "size large" dynamic ["size-limit"] i => i.u64(META + 65544, (64 << 40) + 512);
    "size huge" dynamic ["size-limit"] i => i.u64(META + 65544, u64::MAX);
    "size that the BAT does not cover" dynamic ["bat-short"] i => i.u64(META + 65544, 1 << 40);
    "logical sector" dynamic ["sector-logical"] i => i.u32(META + 65568, 520);
    "logical sector zero" dynamic ["sector-logical"] i => i.u32(META + 65568, 0);
    "physical sector" dynamic ["sector-physical"] i => i.u32(META + 65572, 1024);
    "no disk identifier" dynamic ["disk-id"] i => i.put(META + 65552, &[0; 16]);

    // Parent locator.
    "parent without locator" differencing ["locator-missing"] i => i.u16(META + 10, 5);
    "locator without parent" dynamic ["locator-unexpected"] i => { i.u16(META + 10, 6); set_locator(i, &[("parent_linkage", PARENT_GUID)]) };
    "locator type" differencing ["locator-type"] i => i.put(LOCATOR, b"x");
    "locator reserved" differencing ["locator-reserved"] i => i.u16(LOCATOR + 16, 1);
    "locator count" differencing ["locator-entry", "locator-linkage", "locator-path"] i => i.u16(LOCATOR + 18, 60000);
    "locator key outside" differencing ["locator-entry", "locator-path"] i => i.u32(LOCATOR + 32, 1 << 30);
    "locator value outside" differencing ["locator-entry", "locator-path"] i => i.u16(LOCATOR + 42, 60000);
    "locator key in the table" differencing ["locator-entry", "locator-linkage"] i => i.u32(LOCATOR + 20, 4);
    "locator key empty" differencing ["locator-entry", "locator-path"] i => i.u16(LOCATOR + 40, 0);
    "locator key odd" differencing ["locator-entry", "locator-path"] i => i.u16(LOCATOR + 40, 25);
    "locator not UTF-16" differencing ["locator-text", "locator-linkage"] i => i.u16(LOCATOR + 44, 0xdc00);
    "locator NUL" differencing ["locator-text", "locator-linkage"] i => i.u16(LOCATOR + 44, 0);
    "locator key twice" differencing ["locator-duplicate"] i => set_locator(i, &[("parent_linkage", PARENT_GUID), ("relative_path", "a"), ("relative_path", "b")]);
    "no linkage" differencing ["locator-linkage"] i => set_locator(i, &[("relative_path", "a")]);
    "linkage without braces" differencing ["locator-linkage"] i => set_locator(i, &[("parent_linkage", &PARENT_GUID[1..37]), ("relative_path", "a")]);
    "linkage no GUID" differencing ["locator-linkage"] i => set_locator(i, &[("parent_linkage", "{03020100-0504-0706-0809-0a0b0c0d0e0g}"), ("relative_path", "a")]);
    "no path" differencing ["locator-path"] i => set_locator(i, &[("parent_linkage", PARENT_GUID)]);

    // Block allocation table.
    "state 4" dynamic ["bat-state"] i => i.bat(3, 4, 0);
    "state 5" dynamic ["bat-state"] i => i.bat(3, 5, 4);
    "BAT reserved bit 3" dynamic ["bat-reserved"] i => i.u64(BAT, 6 | 8 | 4 << 20);
    "BAT reserved bit 19" dynamic ["bat-reserved"] i => i.u64(BAT + 24, 1 << 19);
    "partial without parent" dynamic ["bat-partial"] i => i.bat(1, 7, 5);
    "present at offset zero" dynamic ["bat-offset-missing"] i => i.bat(3, 6, 0);
    "zero with an offset" dynamic ["bat-offset-zero"] i => i.bat(2, 2, 5);
    "not present with an offset" dynamic ["bat-offset-zero"] i => i.bat(3, 0, 9);
    "unmapped with a foreign offset" dynamic ["bat-stale-offset"] i => i.bat(3, 3, 4);
    "block in the log" dynamic ["bat-in-log"] i => i.bat(3, 6, 1);
    "block in the metadata" dynamic ["bat-in-metadata"] i => i.bat(3, 6, 2);
    "block in the BAT" dynamic ["bat-in-bat"] i => i.bat(3, 6, 3);
    "block in another region" dynamic ["region-unknown", "bat-in-region"] i => i.len(7 * MIB).bat(3, 6, 6).regions(|i, at| { i.u32(at + 8, 3).region_entry(at, 2, OTHER_ID, 6 * MIB, MIB as u32, 0); });
    "two blocks at one place" dynamic ["bat-overlap"] i => i.bat(3, 6, 4);
    "blocks overlap partly" dynamic ["bat-overlap"] i => i.len(9 * MIB).u32(META + 65536, 2 << 20).bat(0, 6, 4).bat(1, 6, 5).bat(3, 6, 7);
    "block behind the file" dynamic ["bat-beyond"] i => i.bat(3, 6, 6);
    "block far behind the file" dynamic ["bat-beyond"] i => i.bat(3, 6, (1 << 44) - 1);
    "last block cut" dynamic ["bat-beyond"] i => i.len(6 * MIB - 4096);
    "bitmap without parent" dynamic ["bat-bitmap-unexpected"] i => i.len(7 * MIB).u64(META + 65544, 4100 * MIB).bat(BITMAP_ENTRY, 6, 6);
    "bitmap state without parent" dynamic ["bat-bitmap-state"] i => i.u64(META + 65544, 4100 * MIB).bat(BITMAP_ENTRY, 2, 0);
    "bitmap state" differencing ["bat-bitmap-state", "bat-bitmap-missing", "space-unused"] i => i.bat(BITMAP_ENTRY, 3, 5);
    "no bitmap" differencing ["bat-bitmap-missing", "space-unused"] i => i.bat(BITMAP_ENTRY, 0, 0);
    "bitmap at offset zero" differencing ["bat-offset-missing", "space-unused"] i => i.bat(BITMAP_ENTRY, 6, 0);
    "bitmap over a block" differencing ["bat-overlap", "space-unused"] i => i.bat(BITMAP_ENTRY, 6, 6);
    "bitmap in the log" differencing ["bat-in-log", "space-unused"] i => i.bat(BITMAP_ENTRY, 6, 1);
    "bitmap behind the file" differencing ["bat-beyond", "space-unused"] i => i.bat(BITMAP_ENTRY, 6, 70);
    "bitmap reserved bits" differencing ["bat-reserved"] i => i.u64(BAT + 8 * BITMAP_ENTRY, 6 | 16 | 5 << 20);
    "entry behind the disk" dynamic ["bat-tail"] i => i.bat(8, 6, 4);
    "entry behind the disk of a child" differencing ["bat-tail"] i => i.bat(100, 6, 4);
    "bitmap behind the disk of a child" differencing ["bat-tail"] i => i.bat(2 * BITMAP_ENTRY + 1, 6, 4);

    // Space.
    "trailing MiB" dynamic ["space-trailing"] i => i.len(7 * MIB);
    "trailing bytes" dynamic ["space-trailing"] i => i.len(6 * MIB + 512);
    "lost block" dynamic ["space-unused"] i => i.bat(0, 0, 0);
    "lost last block" dynamic ["space-trailing"] i => i.bat(1, 0, 0);
}
