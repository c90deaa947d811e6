//! Who keeps a mount from ending: where else its filesystem is shown, and which processes have files of it open.
//!
//! Asks `/proc` only, never the filesystem itself. What it does not see: working directories, mappings without an open file,
//! and mounts in other namespaces.

use std::path::PathBuf;

use crate::mountinfo::{self, Identity};

/// Processes that are named.
const NAMED_MAX: usize = 5;

/// Other places of this mount namespace that show the filesystem.
pub(crate) fn other_places(identity: Identity) -> Vec<PathBuf> {
    let all = mountinfo::read().unwrap_or_default();
    let others = all.into_iter().filter(|e| e.identity.device == identity.device && e.identity.id != identity.id);
    others.map(|e| e.mount_point).collect()
}

/// Processes with files open that were opened through one of these mounts, by number and name.
fn processes(mounts: &[u64]) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let files = std::fs::read_dir(entry.path().join("fdinfo")).into_iter().flatten().flatten();
        let opened = |text: String| mount_of(&text).is_some_and(|id| mounts.contains(&id));
        if files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).any(opened) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim_end().to_owned()));
        }
    }
    found.sort();
    found
}

/// The mount a file was opened through, of a file of `/proc/PID/fdinfo`.
fn mount_of(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Who uses it, to be put after "still".
pub(crate) fn describe(identity: Identity) -> String {
    let all = mountinfo::read().unwrap_or_default();
    let shown: Vec<_> = all.iter().filter(|e| e.identity.device == identity.device).map(|e| e.identity.id).collect();
    let mounts: Vec<u64> = shown.into_iter().chain([identity.id]).collect();
    say(&other_places(identity), &processes(&mounts))
}

fn say(places: &[PathBuf], processes: &[(u32, String)]) -> String {
    let mut parts = Vec::new();
    if !places.is_empty() {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        parts.push(format!("shown on {}", places.join(", ")));
    }
    if !processes.is_empty() {
        let mut named: Vec<_> = processes.iter().take(NAMED_MAX).map(|(pid, name)| format!("{pid} ({name})")).collect();
        if processes.len() > NAMED_MAX {
            named.push("others".to_owned());
        }
        parts.push(format!("open in process {}", named.join(", ")));
    }
    if parts.is_empty() {
        return "in use, by a working directory or by a mount in another namespace (a container)".to_owned();
    }
    parts.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named() {
        assert!(say(&[], &[]).starts_with("in use"));
        assert_eq!(say(&["/a".into(), "/b".into()], &[]), "shown on /a, /b");
        let many: Vec<_> = (1..=9).map(|pid| (pid, "cat".to_owned())).collect();
        assert_eq!(say(&[], &many[..1]), "open in process 1 (cat)");
        assert!(
            say(&["/a".into()], &many)
                .ends_with("and open in process 1 (cat), 2 (cat), 3 (cat), 4 (cat), 5 (cat), others")
        );
    }

    #[test]
    fn an_open_file_is_found_by_its_mount() {
        let file = tempfile::tempfile().unwrap();
        let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let mount = mount_of(&std::fs::read_to_string(info).unwrap()).unwrap();
        assert!(processes(&[mount]).iter().any(|(pid, _)| *pid == std::process::id()));
        assert_eq!(mount_of("pos:\t0\nflags:\t02\n"), None);
    }
}
