//! `qrvsa vhdx` as a person uses it: what the program does with files beside what the engine does.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;
use std::process::{Command, Output};

fn qrvsa(dir: &Path, args: &[&str]) -> Output {
    let socket = dir.join("no-daemon");
    Command::new(env!("CARGO_BIN_EXE_qrvsa"))
        .env("QRVSA_SOCKET", socket)
        .current_dir(dir)
        .arg("vhdx")
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn works(dir: &Path, args: &[&str]) {
    let ran = qrvsa(dir, args);
    assert!(ran.status.success(), "{args:?}: {ran:?}");
}

/// Fails with this code and a line that has these parts.
fn fails(dir: &Path, args: &[&str], code: i32, parts: &[&str]) {
    let ran = qrvsa(dir, args);
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(code), "{args:?}: {ran:?}");
    assert!(parts.iter().all(|part| text.contains(part)), "{args:?}: {text}");
}

#[test]
fn children_are_as_large_as_their_parents() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    works(dir, &["create", "p.vhdx", "10M", "--block-size", "1M"]);
    fails(dir, &["create", "c.vhdx", "5M", "--parent", "p.vhdx"], 2, &["smaller than that of its parent"]);
    assert!(!dir.join("c.vhdx").exists());
    works(dir, &["create", "c.vhdx", "10M", "--parent", "p.vhdx"]);
    works(dir, &["create", "d.vhdx", "20M", "--parent", "p.vhdx"]);
}

#[test]
fn merging_through_a_link_removes_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    works(dir, &["create", "p.vhdx", "10M", "--block-size", "1M"]);
    works(dir, &["create", "c.vhdx", "--parent", "p.vhdx"]);
    std::os::unix::fs::symlink("c.vhdx", dir.join("link.vhdx")).unwrap();
    works(dir, &["merge", "--delete", "link.vhdx"]);
    let mut left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["p.vhdx"]);
}

#[test]
fn a_repair_tells_what_is_wrong_with_the_parents() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    works(dir, &["create", "p.vhdx", "10M", "--block-size", "1M"]);
    works(dir, &["create", "c.vhdx", "--parent", "p.vhdx"]);
    works(dir, &["repair", "c.vhdx"]);
    std::fs::remove_file(dir.join("p.vhdx")).unwrap();
    for args in [&["repair", "c.vhdx"][..], &["repair", "-n", "c.vhdx"], &["check", "c.vhdx"]] {
        let ran = qrvsa(dir, args);
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert!(String::from_utf8_lossy(&ran.stdout).contains("[parent-missing]"), "{ran:?}");
    }
}

/// What a command tells with its code it tells whether or not anybody reads the rest.
#[test]
fn codes_do_not_hang_on_who_reads() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    works(dir, &["create", "p.vhdx", "10M", "--block-size", "1M"]);
    works(dir, &["create", "c.vhdx", "--parent", "p.vhdx"]);
    works(dir, &["create", "d.vhdx", "10M", "--block-size", "1M"]);
    std::fs::remove_file(dir.join("p.vhdx")).unwrap();
    std::fs::write(dir.join("x.vhdx"), "no image").unwrap();
    for json in [&[][..], &["--json"]] {
        for (args, code, says) in [
            (["check", "d.vhdx"], 0, ""),
            (["map", "d.vhdx"], 0, ""),
            (["info", "d.vhdx"], 0, ""),
            (["check", "c.vhdx"], 1, ""),
            (["repair", "c.vhdx"], 1, ""),
            (["check", "x.vhdx"], 2, "x.vhdx"),
            (["info", "x.vhdx"], 8, "x.vhdx"),
        ] {
            let ran = Command::new(env!("CARGO_BIN_EXE_qrvsa"))
                .current_dir(dir)
                .arg("vhdx")
                .args(args)
                .args(json)
                .stdin(std::process::Stdio::null())
                .stdout(std::io::pipe().unwrap().1)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert_eq!(ran.status.code(), Some(code), "{args:?}: {text}");
            assert!(if says.is_empty() { text.is_empty() } else { text.contains(says) }, "{args:?}: {text}");
        }
    }
}

#[test]
fn errors_name_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("s.raw"), vec![1; 8 << 20]).unwrap();
    for args in ["s.raw d.raw", "s.raw d.vhdx", "s.raw d.vhdx --to fixed"] {
        // No file may be longer than 4 MiB; blocks of 512 bytes.
        let script = format!("trap '' XFSZ; ulimit -f 8192; exec \"$0\" vhdx convert {args}");
        let ran = Command::new("/bin/sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_qrvsa")])
            .env("QRVSA_SOCKET", dir.join("no-daemon"))
            .current_dir(dir)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && text.contains(" d.") && !text.contains("unfinished"), "{args}: {text}");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1, "{args}");
    }
}
