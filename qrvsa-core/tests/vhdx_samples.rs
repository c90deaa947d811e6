//! Images written by Windows and by QEMU read as the programs that made them say.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qrvsa_core::vhdx::{ExtentKind, Image};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vhdx/samples");

/// Unpacks a sample into `dir`.
fn unpack(dir: &Path, name: &str) -> PathBuf {
    let to = dir.join(name);
    let status = Command::new("xz")
        .arg("-dkc")
        .arg(format!("{SAMPLES}/{name}.xz"))
        .stdout(File::create(&to).unwrap())
        .status()
        .expect("xz is installed: tools/dev/need.sh test");
    assert!(status.success());
    to
}

/// The SHA-256 of the disk, from the manifest.
fn expected(name: &str) -> String {
    let manifest = std::fs::read_to_string(format!("{SAMPLES}/MANIFEST.tsv")).unwrap();
    let line = manifest.lines().find(|l| l.split('\t').next().is_some_and(|path| path.ends_with(name))).unwrap();
    line.split('\t').nth(5).unwrap().split(' ').next().unwrap().to_string()
}

/// The SHA-256 of the disk as the engine reads it.
fn sha256(image: &Image) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum is installed");
    let mut pipe = child.stdin.take().unwrap();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < image.size() {
        let len = (image.size() - at).min(buf.len() as u64);
        image.read(at, &mut buf[..len as usize]).unwrap();
        pipe.write_all(&buf[..len as usize]).unwrap();
        at += len;
    }
    drop(pipe);
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    output.split(' ').next().unwrap().to_string()
}

/// Offsets and contents of everything that is not in a hole.
fn digest_of_data(image: &Image) -> (u64, u64) {
    let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
    let (mut at, mut bytes) = (0, 0);
    let zeros = vec![0; 64 << 10];
    let mut buf = vec![0; 64 << 10];
    while at < image.size() {
        let extent = image.status(at).unwrap();
        let end = extent.offset + extent.length;
        if extent.kind != ExtentKind::Zero {
            // In aligned pieces, so that it does not matter where extents end.
            let mut piece = at - at % buf.len() as u64;
            while piece < end {
                image.read(piece, &mut buf).unwrap();
                if buf != zeros {
                    hash.update(&piece.to_le_bytes());
                    hash.update(&buf);
                    bytes += buf.len() as u64;
                }
                piece += buf.len() as u64;
            }
            at = piece;
        } else {
            at = end;
        }
    }
    (hash.digest(), bytes)
}

#[test]
fn contents_are_those_of_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["iotest-dynamic-1G.vhdx", "fat-parent.vhdx", "ntfs-fixed.vhdx"] {
        let image = Image::open(&unpack(dir.path(), name), false).unwrap();
        assert_eq!(sha256(&image), expected(name), "{name}");
    }
    // Over its parent, which is there already.
    let name = "fat-differential.vhdx";
    let image = Image::open(&unpack(dir.path(), name), false).unwrap();
    assert_eq!(sha256(&image), expected(name));
}

#[test]
fn a_log_left_by_windows_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let name = "vhdx-log-replay.vhdx";
    let path = unpack(dir.path(), name);
    let before = std::fs::read(&path).unwrap();
    let image = Image::open(&path, false).unwrap();
    assert_eq!(sha256(&image), expected(name), "in memory");
    drop(image);
    assert!(std::fs::read(&path).unwrap() == before, "reading changes nothing");
    let image = Image::open(&path, true).unwrap();
    image.close().unwrap();
    drop(image);
    assert!(std::fs::read(&path).unwrap() != before);
    let image = Image::open(&path, false).unwrap();
    assert_eq!(digest_of_data(&image), digest_of_data(&Image::open(&unpack(dir.path(), name), false).unwrap()));
}

/// The digests were taken when the SHA-256 of all 10 GiB was that of the manifest.
#[test]
fn large_and_mostly_empty() {
    let dir = tempfile::tempdir().unwrap();
    for (name, digest) in LARGE {
        let image = Image::open(&unpack(dir.path(), name), false).unwrap();
        assert_eq!(image.size(), 10 << 30);
        if std::env::var_os("QRVSA_TEST_WHOLE_SAMPLES").is_some() {
            assert_eq!(sha256(&image), expected(name), "{name}");
        }
        assert_eq!(digest_of_data(&image), digest, "{name}");
    }
}

const LARGE: [(&str, (u64, u64)); 2] =
    [("swap.vhdx", (3_333_993_996_726_562_258, 65_536)), ("xfs5.vhdx", (13_380_213_428_443_768_583, 6_946_816))];
