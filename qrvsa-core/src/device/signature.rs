//! What already lies on a device: well-known filesystems, volume managers, partition tables and images, so that nobody
//! overwrites them without saying so.

use std::sync::Arc;
use std::time::Duration;

use super::{Device, IoBatch, Outcome, Request};
use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::error::{Error, ErrorKind, Result};

/// Bytes examined at the start: past the second ZFS label.
const HEAD_BYTES: u64 = 512 << 10;
/// Bytes examined at the end: two ZFS labels, and the 0.90 superblock of mdraid in the last 128 KiB.
const TAIL_BYTES: u64 = 1 << 20;
/// Blocks examined beyond the head: what VMFS writes, and where a second LUKS header may lie.
const FAR_BLOCKS: [u64; 4] = [512 << 10, 1 << 20, 2 << 20, 4 << 20];
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// What was read of a device: its two ends, and blocks between.
struct Ends {
    /// Where each run begins, and its bytes.
    runs: Vec<(u64, Vec<u8>)>,
    size: u64,
}

impl Ends {
    /// Bytes at `offset` from the start, if examined.
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.runs.iter().find_map(|(start, bytes)| {
            let from = usize::try_from(offset.checked_sub(*start)?).ok()?;
            bytes.get(from..from.checked_add(len)?)
        })
    }

    fn has(&self, offset: u64, magic: &[u8]) -> bool {
        self.at(offset, magic.len()) == Some(magic)
    }

    /// As `has`, counted from the end.
    fn has_before_end(&self, distance: u64, magic: &[u8]) -> bool {
        self.size.checked_sub(distance).is_some_and(|offset| self.has(offset, magic))
    }

    fn u32_le(&self, offset: u64) -> Option<u32> {
        self.at(offset, 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    }
}

/// Magic bytes at a fixed place from the start.
const FIXED: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS filesystem"),
    (0x1_0040, b"_BHRfS_M", "a btrfs filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (54, b"FAT12   ", "a FAT filesystem"),
    (54, b"FAT16   ", "a FAT filesystem"),
    (82, b"FAT32   ", "a FAT filesystem"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"QFI\xfb", "a QCOW image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"<<< Oracle VM VirtualBox Disk Image >>>", "a VDI image"),
    (0, b"hsqs", "a SquashFS filesystem"),
    (0, b"sqsh", "a SquashFS filesystem"),
    (0, b"\0\0\0ReFS\0", "a ReFS filesystem"),
    (0, b"dmvdo001", "a VDO volume"),
    (32, b"NXSB", "an APFS container"),
    (32, b"ORCLDISK", "an Oracle ASM disk"),
    (0x204, STRATIS, "a Stratis pool member"),
    (0x1204, STRATIS, "a Stratis pool member"),
    (0, b"bluestore block device", "a Ceph BlueStore device"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS filesystem"),
    // revision 2.0, then the magic
    (0x400, &[2, 0, 0, 0, 0, 0, 0x34, 0x34], "a NILFS2 filesystem"),
    // the magic, then the version that belongs to it
    (0x400, b"H+\0\x04", "an HFS+ filesystem"),
    (0x400, b"HX\0\x05", "an HFS+ filesystem"),
    // the third block, whatever a block is
    (0x400, b"OCFSV2", "an OCFS2 filesystem"),
    (0x800, b"OCFSV2", "an OCFS2 filesystem"),
    (0x1000, b"OCFSV2", "an OCFS2 filesystem"),
    (0x2000, b"OCFSV2", "an OCFS2 filesystem"),
    (0x2000, b"OracleCFS", "an OCFS filesystem"),
    (0x2014, b"ReIsErFs", "a ReiserFS filesystem"),
    (0x2034, b"ReIsErFs", "a ReiserFS filesystem"),
    (0x8000, b"JFS1", "a JFS filesystem"),
    (0x8001, b"CD001", "an ISO 9660 filesystem"),
    // any of the descriptors with which a volume of ECMA-167 may begin
    (0x8001, b"BEA01", "a UDF filesystem"),
    (0x8001, b"BOOT2", "a UDF filesystem"),
    (0x8001, b"CDW02", "a UDF filesystem"),
    (0x8001, b"NSR02", "a UDF filesystem"),
    (0x8001, b"NSR03", "a UDF filesystem"),
    (0x8001, b"TEA01", "a UDF filesystem"),
    (0x1_0000, b"\x01\x16\x19\x70", "a GFS2 filesystem"),
    (0x1_0000, b"ReIsEr4", "a Reiser4 filesystem"),
    (0x1_0034, b"ReIsEr", "a ReiserFS filesystem"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache or bcachefs device"),
    (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs filesystem"),
    (1 << 20, b"\x0d\xd0\x01\xc0", "a VMFS volume member"),
    (2 << 20, b"\x5e\xf1\xab\x2f", "a VMFS filesystem"),
];

const STRATIS: &[u8] = b"!Stra0tis\x86\xff\x02^Arh";

/// Magic bytes at a fixed distance before the end.
const BEFORE_END: &[(u64, &[u8], &str)] = &[
    // in the last sector but one, of 512 or 4096 bytes
    (1024, b"Intel Raid ISM Cfg Sig. ", "an Intel RAID member"),
    (8192, b"Intel Raid ISM Cfg Sig. ", "an Intel RAID member"),
    // the anchor header of DDF, and the place 256 sectors before it that some controllers take; in either byte order
    (512, b"\xde\x11\xde\x11", "a DDF RAID member"),
    (512, b"\x11\xde\x11\xde", "a DDF RAID member"),
    (257 * 512, b"\xde\x11\xde\x11", "a DDF RAID member"),
    (257 * 512, b"\x11\xde\x11\xde", "a DDF RAID member"),
    (512, b"\x37\xfc\x4d\x1e", "an Adaptec RAID member"),
    (512, b"$XIDE$", "an LSI RAID member"),
    (1024, b"NVIDIA", "an NVIDIA RAID member"),
    // 60 bytes into the last block: of version 8, not closed, of version 9
    (4096 - 60, b"\x83\x74\x02\x6b", "a DRBD device"),
    (4096 - 60, b"\x83\x74\x02\x6c", "a DRBD device"),
    (4096 - 60, b"\x83\x74\x02\x6d", "a DRBD device"),
    // the second volume header
    (1024, b"H+\0\x04", "an HFS+ filesystem"),
    (1024, b"HX\0\x05", "an HFS+ filesystem"),
    (512, b"conectix", "a VHD image"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
];

const MDRAID_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

/// Looks for well-known signatures at both ends of the device and says what it found first, with an article
/// (`"an XFS filesystem"`). Says nothing of this engine's own labels, which the pool knows.
///
/// # Errors
/// [`ErrorKind::Io`] if the device cannot be read: then nothing is known.
pub fn contains_foreign_data(dev: &Arc<dyn Device>) -> Result<Option<String>> {
    let size = dev.info().size_bytes;
    let far = FAR_BLOCKS.into_iter().filter(|offset| offset + BLOCK_SIZE as u64 <= size);
    let mut runs = both_ends(size, HEAD_BYTES, TAIL_BYTES);
    runs.extend(far.map(|offset| (offset, BLOCK_SIZE as u64)));
    let ends = Ends { runs: read_runs(dev, &runs)?, size };
    Ok(detect(&ends).map(str::to_string))
}

/// Offset and length of what lies at the ends of a device of `size` bytes, a multiple of 4 KiB as the lengths are.
fn both_ends(size: u64, head: u64, tail: u64) -> Vec<(u64, u64)> {
    vec![(0, size.min(head)), (size - size.min(tail), size.min(tail))]
}

/// Reads runs, each an offset and a length; returns each with its offset.
fn read_runs(dev: &Arc<dyn Device>, runs: &[(u64, u64)]) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut batch = IoBatch::new();
    for (offset, len) in runs {
        let len = usize::try_from(*len).expect("at most a mebibyte");
        let bufs = (0..len / BLOCK_SIZE).map(|_| AlignedBuf::zeroed(BLOCK_SIZE)).collect();
        batch.push(dev, Request::Read { offset: *offset, bufs });
    }
    let mut found = Vec::new();
    for ((offset, _), outcome) in runs.iter().zip(batch.wait(READ_DEADLINE)) {
        let path = dev.info().path.display();
        match outcome {
            Outcome::Done(bufs) => found.push((*offset, bufs.iter().flat_map(|b| b.iter().copied()).collect())),
            Outcome::Failed(error) => {
                let what = format!("cannot tell what is on {path}");
                return Err(Error::new(ErrorKind::Io, what).with_source(error));
            }
            Outcome::TimedOut => crate::fail!(Io, "cannot tell what is on {path}: it does not answer"),
        }
    }
    Ok(found)
}

fn detect(ends: &Ends) -> Option<&'static str> {
    let fixed = FIXED.iter().find(|(offset, magic, _)| ends.has(*offset, magic)).map(|(_, _, name)| *name);
    fixed
        .or_else(|| ext(ends))
        .or_else(|| apple(ends))
        .or_else(|| ufs(ends))
        .or_else(|| luks(ends))
        .or_else(|| swap(ends))
        .or_else(|| lvm(ends))
        .or_else(|| mdraid(ends))
        .or_else(|| zfs(ends))
        .or_else(|| {
            let found = BEFORE_END.iter().find(|(distance, magic, _)| ends.has_before_end(*distance, magic));
            found.map(|(_, _, name)| *name)
        })
        .or_else(|| partition_table(ends))
}

fn ext(ends: &Ends) -> Option<&'static str> {
    const SUPERBLOCK: u64 = 0x400;
    const HAS_JOURNAL: u32 = 0x4;
    const EXTENTS: u32 = 0x40;
    // A two-byte magic alone is weak: block size and inode count must make sense, too.
    let plausible = ends.u32_le(SUPERBLOCK + 0x18)? <= 6 && ends.u32_le(SUPERBLOCK)? > 0;
    if !ends.has(SUPERBLOCK + 0x38, &[0x53, 0xef]) || !plausible {
        return None;
    }
    let (compatible, incompatible) = (ends.u32_le(SUPERBLOCK + 0x5c)?, ends.u32_le(SUPERBLOCK + 0x60)?);
    Some(match (incompatible & EXTENTS != 0, compatible & HAS_JOURNAL != 0) {
        (true, _) => "an ext4 filesystem",
        (false, true) => "an ext3 filesystem",
        (false, false) => "an ext2 filesystem",
    })
}

/// What has two letters only for a magic, and needs more to be believed.
fn apple(ends: &Ends) -> Option<&'static str> {
    const HFS: u64 = 0x400;
    // version 1, a block of the type that begins a volume
    if ends.has(88, b"CS") && ends.has(8, &[1, 0, 0x10, 0]) {
        return Some("a Core Storage volume");
    }
    if !ends.has(HFS, b"BD") {
        return None;
    }
    // HFS+ in a wrapper for systems that did not know it
    if ends.has(HFS + 0x7c, b"H+") || ends.has(HFS + 0x7c, b"HX") {
        return Some("an HFS+ filesystem");
    }
    let block = ends.u32_le(HFS + 0x14)?.swap_bytes();
    let label = *ends.at(HFS + 0x24, 1)?.first()?;
    (block > 0 && block.is_multiple_of(512) && (1..28).contains(&label)).then_some("an HFS filesystem")
}

fn ufs(ends: &Ends) -> Option<&'static str> {
    const MAGICS: [u32; 6] = [0x0001_1954, 0x1954_0119, 0x0019_5612, 0x0009_5014, 0x0061_2195, 0x0523_1994];
    let found = [0, 8 << 10, 64 << 10, 256 << 10].into_iter().any(|superblock| {
        let magic = ends.u32_le(superblock + 0x55c);
        magic.is_some_and(|m| MAGICS.contains(&m) || MAGICS.contains(&m.swap_bytes()))
    });
    found.then_some("a UFS filesystem")
}

/// The first header of LUKS is found by its fixed place; the second lies where the first one ends.
fn luks(ends: &Ends) -> Option<&'static str> {
    let found = (14..=22).any(|power| ends.has(1 << power, b"SKUL\xba\xbe"));
    found.then_some("a LUKS encrypted volume (second header)")
}

fn swap(ends: &Ends) -> Option<&'static str> {
    // At the end of the first page, whatever a page was.
    let found = [4096u64, 8192, 16384, 65536]
        .iter()
        .any(|page| ends.has(page - 10, b"SWAPSPACE2") || ends.has(page - 10, b"SWAP-SPACE"));
    found.then_some("swap space")
}

fn lvm(ends: &Ends) -> Option<&'static str> {
    let found = (0..4).any(|sector| ends.has(sector * 512, b"LABELONE") && ends.has(sector * 512 + 24, b"LVM2 001"));
    found.then_some("an LVM2 physical volume")
}

fn mdraid(ends: &Ends) -> Option<&'static str> {
    let old = (ends.size & !0xffff).checked_sub(0x1_0000);
    // 8 KiB before the end, aligned down to 4 KiB.
    let at_end = ends.size.checked_sub(8192).map(|offset| offset & !0xfff);
    let places = [Some(0), Some(4096), at_end, old];
    places.into_iter().flatten().any(|o| ends.has(o, &MDRAID_MAGIC)).then_some("a Linux software RAID member")
}

fn zfs(ends: &Ends) -> Option<&'static str> {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let end = ends.size & !(LABEL - 1);
    let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    // The second half of a label is the ring of uberblocks, in slots of at least 1 KiB.
    let ring = |label: u64| {
        (128..256).any(|slot| {
            let offset = label + slot * 1024;
            ends.has(offset, &MAGIC.to_le_bytes()) || ends.has(offset, &MAGIC.to_be_bytes())
        })
    };
    labels.into_iter().flatten().any(ring).then_some("a ZFS pool member")
}

fn partition_table(ends: &Ends) -> Option<&'static str> {
    if ends.has(512, b"EFI PART") || ends.has(4096, b"EFI PART") {
        return Some("a GPT partition table");
    }
    if ends.has(512, b"PM\0\0") {
        return Some("an Apple partition map");
    }
    if !ends.has(510, &[0x55, 0xaa]) {
        return None;
    }
    let entries = ends.at(446, 64)?;
    // The boot sector of a filesystem also ends so, but has no four entries that make sense.
    let sensible = entries.chunks_exact(16).all(|e| matches!(e.first(), Some(0 | 0x80)));
    let used = entries.chunks_exact(16).any(|e| e.get(4).is_some_and(|kind| *kind != 0));
    Some(if sensible && used { "an MBR partition table" } else { "a boot sector" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sim::{SimConfig, SimControl, SimDevice};
    use crate::device::{OpenOptions, open};
    use std::fs::File;
    use std::path::Path;
    use std::process::Command;

    const SIZE: u64 = 64 << 20;

    fn disk() -> (Arc<dyn Device>, SimControl) {
        SimDevice::create(SimConfig::new(SIZE))
    }

    fn found(places: &[(u64, &[u8])]) -> Option<String> {
        let (device, control) = disk();
        for (offset, bytes) in places {
            control.overwrite(*offset, bytes);
        }
        contains_foreign_data(&device).unwrap()
    }

    #[test]
    fn nothing_on_an_empty_or_random_device() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[(0, b"some other text"), (4096, b"more"), (SIZE - 4096, b"end")]), None);
        assert_eq!(found(&[(0x438, &[0x53, 0xef])]), None, "two bytes alone are no superblock");
        assert_eq!(found(&[(0x400, b"BD"), (88, b"CS")]), None, "nor these");
        let (tiny, _) = SimDevice::create(SimConfig::new(4096));
        assert_eq!(contains_foreign_data(&tiny).unwrap(), None);
    }

    #[test]
    fn every_fixed_signature() {
        for (offset, magic, name) in FIXED {
            assert_eq!(found(&[(*offset, magic)]).as_deref(), Some(*name));
        }
        for (distance, magic, name) in BEFORE_END {
            assert_eq!(found(&[(SIZE - distance, magic)]).as_deref(), Some(*name));
        }
    }

    /// Places that a small device does not have are not looked at, those that it has are.
    #[test]
    fn places_beyond_a_small_device() {
        for size in [4096, 64 << 10, 512 << 10, 1 << 20, (2 << 20) + 4096] {
            let (device, _) = SimDevice::create(SimConfig::new(size));
            assert_eq!(contains_foreign_data(&device).unwrap(), None);
        }
        let (device, control) = SimDevice::create(SimConfig::new((2 << 20) + 4096));
        control.overwrite(2 << 20, b"\x5e\xf1\xab\x2f");
        assert_eq!(contains_foreign_data(&device).unwrap().as_deref(), Some("a VMFS filesystem"));
    }

    #[test]
    fn signatures_with_structure() {
        let one = 1u32.to_le_bytes();
        let extents = 0x40u32.to_le_bytes();
        let uberblock = 0x00ba_b10cu64;
        let mut partition = [0u8; 16];
        (partition[0], partition[4]) = (0x80, 0x83);
        type Places<'a> = &'a [(u64, &'a [u8])];
        let cases: &[(Places<'_>, &str)] = &[
            (&[(0x400, &one), (0x438, &[0x53, 0xef])], "an ext2 filesystem"),
            (&[(0x400, &one), (0x438, &[0x53, 0xef]), (0x460, &extents)], "an ext4 filesystem"),
            (&[(4086, b"SWAPSPACE2")], "swap space"),
            (&[(65526, b"SWAP-SPACE")], "swap space"),
            (&[(512, b"LABELONE"), (536, b"LVM2 001")], "an LVM2 physical volume"),
            (&[(0, &MDRAID_MAGIC)], "a Linux software RAID member"),
            (&[(4096, &MDRAID_MAGIC)], "a Linux software RAID member"),
            (&[(SIZE - 8192, &MDRAID_MAGIC)], "a Linux software RAID member"),
            (&[(SIZE - 65536, &MDRAID_MAGIC)], "a Linux software RAID member"),
            (&[(128 << 10, &uberblock.to_le_bytes())], "a ZFS pool member"),
            (&[(SIZE - 1024, &uberblock.to_be_bytes())], "a ZFS pool member"),
            (&[(SIZE - (384 << 10), &uberblock.to_le_bytes())], "a ZFS pool member"),
            (&[(0x400, b"BD"), (0x47c, b"H+")], "an HFS+ filesystem"),
            (&[(0x400, b"BD"), (0x416, &[2, 0]), (0x424, &[4])], "an HFS filesystem"),
            (&[(8, &[1, 0, 0x10, 0]), (88, b"CS")], "a Core Storage volume"),
            (&[(0x1_055c, &0x1954_0119u32.to_le_bytes())], "a UFS filesystem"),
            (&[(0x255c, &0x0001_1954u32.to_be_bytes())], "a UFS filesystem"),
            (&[(16 << 10, b"SKUL\xba\xbe")], "a LUKS encrypted volume (second header)"),
            (&[(512 << 10, b"SKUL\xba\xbe")], "a LUKS encrypted volume (second header)"),
            (&[(4 << 20, b"SKUL\xba\xbe")], "a LUKS encrypted volume (second header)"),
            (&[(512, b"PM\0\0")], "an Apple partition map"),
            (&[(512, b"EFI PART")], "a GPT partition table"),
            (&[(446, &partition), (510, &[0x55, 0xaa])], "an MBR partition table"),
            (&[(446, b"boot code"), (510, &[0x55, 0xaa])], "a boot sector"),
        ];
        for (places, name) in cases {
            assert_eq!(found(places).as_deref(), Some(*name));
        }
    }

    #[test]
    fn an_unreadable_device_is_an_error() {
        let (device, control) = disk();
        control.vanish();
        assert_eq!(contains_foreign_data(&device).unwrap_err().kind(), ErrorKind::Io);
    }

    /// What the real tools write, for those that are installed.
    #[test]
    fn real_tools() {
        let tools: &[(&str, &[&str], u64, &str)] = &[
            ("mkfs.ext4", &["-q", "-F"], 16 << 20, "an ext4 filesystem"),
            ("mkfs.ext3", &["-q", "-F"], 16 << 20, "an ext3 filesystem"),
            ("mkfs.ext2", &["-q", "-F"], 16 << 20, "an ext2 filesystem"),
            ("mkfs.xfs", &["-q", "-f"], 320 << 20, "an XFS filesystem"),
            ("mkfs.btrfs", &["-q", "-f"], 128 << 20, "a btrfs filesystem"),
            ("mkfs.vfat", &[], 16 << 20, "a FAT filesystem"),
            ("mkfs.ntfs", &["-Q", "-F", "-q"], 16 << 20, "an NTFS filesystem"),
            ("mkfs.f2fs", &["-q", "-f"], 128 << 20, "an F2FS filesystem"),
            ("mkfs.hfsplus", &[], 16 << 20, "an HFS+ filesystem"),
            ("mkfs.jfs", &["-q"], 32 << 20, "a JFS filesystem"),
            ("mkfs.nilfs2", &["-q"], 256 << 20, "a NILFS2 filesystem"),
            ("mkfs.udf", &[], 16 << 20, "a UDF filesystem"),
            ("mkswap", &["-q"], 16 << 20, "swap space"),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (tool, arguments, size, name) in tools {
            let Some(program) =
                ["/sbin", "/usr/sbin", "/usr/bin"].map(|d| Path::new(d).join(tool)).into_iter().find(|p| p.exists())
            else {
                continue;
            };
            let path = dir.path().join(tool);
            File::create(&path).unwrap().set_len(*size).unwrap();
            let output = Command::new(&program).args(*arguments).arg(&path).output().unwrap();
            assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
            let device = open(&path, OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
            assert_eq!(contains_foreign_data(&device).unwrap().as_deref(), Some(*name), "{tool}");
        }
    }
}
