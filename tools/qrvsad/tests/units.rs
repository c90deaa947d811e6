//! The systemd units: they are valid, and the daemon's keeps it in the host's mount namespace.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::PathBuf;
use std::process::Command;

fn units() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../systemd")
}

#[test]
fn the_daemon_stays_in_the_mount_namespace_of_the_host() {
    let unit = std::fs::read_to_string(units().join("qrvsad.service")).unwrap();
    let settings: Vec<&str> = unit
        .lines()
        .filter(|line| !line.starts_with(['#', '[']))
        .filter_map(|line| line.split_once('=').map(|(key, _)| key))
        .collect();
    assert!(settings.contains(&"ExecStart") && settings.contains(&"LimitMEMLOCK"));
    // Each of these makes systemd set up a mount namespace, see systemd.exec(5).
    const NAMESPACE: &[&str] = &[
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "LogNamespace",
        "MountAPIVFS",
        "MountFlags",
        "MountImages",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateUsers",
        "ProcSubset",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "TemporaryFileSystem",
    ];
    for setting in settings {
        assert!(!NAMESPACE.contains(&setting), "{setting} hides the daemon's mounts from the system");
    }
}

#[test]
fn systemd_accepts_them() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (unit, instance) in [
        ("qrvsad.service", "qrvsad.service"),
        ("qrvsa-scrub@.service", "qrvsa-scrub@tank.service"),
        ("qrvsa-scrub@.timer", "qrvsa-scrub@tank.timer"),
    ] {
        let text = std::fs::read_to_string(units().join(unit)).unwrap();
        // The programs are not installed where the test runs.
        let text = text.replace("/usr/bin/qrvsad", "/bin/true").replace("/usr/bin/qrvsa", "/bin/true");
        std::fs::write(dir.path().join(instance), text).unwrap();
        let path = dir.path().join(instance);
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(instance), "{said}");
    }
}
