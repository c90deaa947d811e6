//! Disk images of other programs, told by their first or last bytes: copied as they are, they would be no disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Result;

/// Bytes at an offset by which a format is told, and its name for people and for `qemu-img`.
const MAGICS: [(u64, &[u8], &str, &str); 6] = [
    (0, b"QFI\xfb", "a qcow2 image", "qcow2"),
    (0, b"KDMV", "a VMDK image", "vmdk"),
    (0, b"COWD", "a VMDK image", "vmdk"),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK image", "vmdk"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image", "vdi"),
    (0, VHD, "a VHD image", "vpc"),
];
/// At the start of a dynamic VHD image, and of its last 512 bytes.
const VHD: &[u8] = b"conectix";
const VHD_FOOTER_BYTES: u64 = 512;

/// The format of a file of `size` bytes, if it is an image of another program.
fn format_of(file: &File, size: u64) -> Option<(&'static str, &'static str)> {
    let has = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, at).is_ok() && bytes == magic
    };
    let footer = size.checked_sub(VHD_FOOTER_BYTES).map(|at| (at, VHD, "a VHD image", "vpc"));
    let found = MAGICS.into_iter().chain(footer).find(|(at, magic, ..)| has(*at, magic));
    found.map(|(_, _, name, driver)| (name, driver))
}

/// Refuses what is an image of another program.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), with the way out.
pub(super) fn refuse_foreign(file: &File, path: &Path, size: u64) -> Result<()> {
    if let Some((name, driver)) = format_of(file, size) {
        let path = path.display();
        crate::fail!(
            Unsupported,
            "{path} is {name}; make it raw with `qemu-img convert -f {driver} -O raw`, or copy its bytes with --raw-source"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn images_of_others_are_told_from_disks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let verdict = |at: usize, magic: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            std::fs::write(&path, &bytes).unwrap();
            refuse_foreign(&File::open(&path).unwrap(), &path, 4096)
        };
        for (at, magic, name, _) in MAGICS.into_iter().chain([(4096 - 512, VHD, "a VHD image", "vpc")]) {
            let error = verdict(at as usize, magic).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(&format!("is {name}; ")), "{error}");
        }
        verdict(0, b"QFI").unwrap();
        verdict(8, VHD).unwrap();
        std::fs::write(&path, b"QF").unwrap();
        refuse_foreign(&File::open(&path).unwrap(), &path, 2).unwrap();
    }
}
