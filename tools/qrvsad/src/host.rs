//! Questions to the system the daemon runs on: mounts, memory, shutdown.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use qrvsa_core::{Error, ErrorKind, Result};

/// Takes the lock on a file, which is made if missing, mode 0600; the kernel drops it with the process. `None`: another
/// process has it.
///
/// # Errors
/// One line for people.
pub fn lock_file(path: &Path) -> std::result::Result<Option<File>, String> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| format!("cannot open the lock {}: {e}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(format!("cannot lock {}: {e}", path.display())),
    }
}

/// Whether a FUSE mount is there whose server is gone.
#[must_use]
pub fn is_stale_mount(path: &Path) -> bool {
    if std::fs::symlink_metadata(path).is_err_and(|e| is_stale_error(&e)) {
        return true;
    }
    // For a while the kernel answers from its cache what somebody has asked the server before. This it never does.
    MountTable::read().device(path).is_some()
        && matches!(nix::sys::statfs::statfs(path), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Whether the error is what the kernel answers for a FUSE mount whose server is gone.
#[must_use]
pub fn is_stale_error(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOTCONN as i32)
}

/// Detaches dead FUSE mounts, which may be stacked, from a directory; returns whether there were any.
///
/// # Errors
/// What `umount2` says.
pub fn detach_stale_mounts(path: &Path) -> Result<bool> {
    const STACKED_MAX: usize = 64;
    for detached in 0..STACKED_MAX {
        if !is_stale_mount(path) {
            return Ok(detached > 0);
        }
        umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| {
            Error::new(ErrorKind::Posix(errno), format!("cannot detach the dead mount on {}", path.display()))
        })?;
    }
    Err(Error::new(ErrorKind::Busy, format!("more than {STACKED_MAX} dead mounts are stacked on {}", path.display())))
}

/// Whether anything is mounted exactly there. Does not touch the path, so it cannot hang on it.
#[must_use]
pub fn is_mountpoint(path: &Path) -> bool {
    std::fs::read("/proc/self/mountinfo").is_ok_and(|table| mountpoints(&table).any(|point| point == path))
}

/// The mount points of a mountinfo table: the fifth field, with octal escapes for blanks and backslashes.
fn mountpoints(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape_octal(field))))
}

/// Refuses storage that is a file of a QRVSA mount, itself or through loop devices, partitions and mappings. The
/// daemon would wait for itself: it could neither end nor be killed. A path that does not exist is judged by its directory.
///
/// # Errors
/// `Invalid`.
pub fn refuse_own_mounts(path: &Path) -> Result<()> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    match stands_on(path, &fuse_devices(&table), Path::new("/sys/dev/block"), 0) {
        Some(file) => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{} lies in a QRVSA mount, and the daemon would wait for itself; use other storage",
                file.display()
            ),
        )),
        None => Ok(()),
    }
}

/// What is mounted where.
#[derive(Debug, Default)]
pub struct MountTable(Vec<MountEntry>);

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted.
    pub at: PathBuf,
    /// The directory of the filesystem that is seen there.
    pub top: PathBuf,
    /// Its device number, if it is a QRVSA mount.
    pub ours: Option<u64>,
}

impl MountTable {
    /// The table of this system. Touches no mount.
    #[must_use]
    pub fn read() -> MountTable {
        MountTable::parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    fn parse(table: &[u8]) -> MountTable {
        let path = |field: Option<&[u8]>| Some(PathBuf::from(OsString::from_vec(unescape_octal(field?))));
        let entry = |line: &[u8]| {
            let mut fields = line.split(|b| *b == b' ').skip(3);
            let (top, at) = (path(fields.next())?, path(fields.next())?);
            Some(MountEntry { at, top, ours: fuse_devices(line).pop() })
        };
        MountTable(table.split(|b| *b == b'\n').filter_map(entry).collect())
    }

    /// What is seen at a mount point.
    #[must_use]
    pub fn topmost(&self, at: &Path) -> Option<&MountEntry> {
        self.0.iter().rfind(|entry| entry.at == at)
    }

    /// The device number of the QRVSA mount seen at a mount point.
    #[must_use]
    pub fn device(&self, at: &Path) -> Option<u64> {
        self.topmost(at)?.ours
    }
}

/// The device numbers of the QRVSA mounts of a mountinfo table.
fn fuse_devices(table: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(table);
    let ours =
        text.lines().filter(|line| line.split_once(" - ").is_some_and(|(_, rest)| rest.starts_with("fuse.qrvsa ")));
    ours.filter_map(|line| device_number(line.split(' ').nth(2)?)).collect()
}

/// Reads `MAJOR:MINOR`.
fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The file on one of these filesystems that a file or block device stands on. `blocks` is the kernel's directory of block
/// devices by number.
fn stands_on(path: &Path, filesystems: &[u64], blocks: &Path, depth: u32) -> Option<PathBuf> {
    const DEPTH_MAX: u32 = 16;
    if depth > DEPTH_MAX || filesystems.is_empty() {
        return None;
    }
    let whole = std::path::absolute(path).ok()?;
    let parent = whole.parent().and_then(|parent| std::fs::metadata(parent).ok());
    let metadata = std::fs::metadata(&whole).ok().or(parent)?;
    if filesystems.contains(&metadata.dev()) {
        return Some(path.to_owned());
    }
    if !metadata.file_type().is_block_device() {
        return None;
    }
    block_stands_on(metadata.rdev(), filesystems, blocks, depth)
}

fn block_stands_on(device: u64, filesystems: &[u64], blocks: &Path, depth: u32) -> Option<PathBuf> {
    let entry = blocks.join(format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device)));
    let entry = std::fs::canonicalize(entry).ok()?;
    // a partition has what backs it in the directory above
    for directory in [entry.as_path(), entry.parent()?] {
        if let Ok(file) = std::fs::read(directory.join("loop/backing_file")) {
            let file = PathBuf::from(OsString::from_vec(file.trim_ascii_end().to_vec()));
            if let Some(found) = stands_on(&file, filesystems, blocks, depth + 1) {
                return Some(found);
            }
        }
        for slave in std::fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten() {
            let number = std::fs::read_to_string(slave.path().join("dev")).ok().and_then(|text| device_number(&text));
            let found = number.filter(|_| depth < 16).and_then(|n| block_stands_on(n, filesystems, blocks, depth + 1));
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (byte, tail) {
            out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

/// Whether systemd is taking the system down. Its mount units are stopped in parallel with the daemon then, which looks
/// like an administrator's `umount`, but must not make the daemon forget its mounts.
#[must_use]
pub fn system_is_stopping() -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    ["/usr/bin/systemctl", "/bin/systemctl"].iter().any(|systemctl| {
        Command::new(systemctl)
            .arg("is-system-running")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
    })
}

/// Memory of the machine, or of the control group the daemon is in, whichever is less, bytes. `None` when unknown.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let limit = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("memory.max")).ok()?;
        limit.trim().parse::<u64>().ok()
    });
    match (machine, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_in_a_mount_of_ours_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dev = std::fs::metadata(dir.path()).unwrap().dev();
        let file = dir.path().join("disk");
        let nowhere = Path::new("/nowhere");
        assert_eq!(stands_on(&file, &[dev], nowhere, 0), Some(file.clone()), "not there yet");
        std::fs::write(&file, b"x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("disk", &link).unwrap();
        assert_eq!(stands_on(&link, &[dev], nowhere, 0), Some(link));
        assert_eq!(stands_on(&file, &[dev + 1], nowhere, 0), None);

        // a mapping over a partition of a loop device over the file
        let blocks = dir.path().join("sys");
        std::fs::create_dir_all(blocks.join("7:0/loop")).unwrap();
        std::fs::create_dir_all(blocks.join("7:0/p1")).unwrap();
        std::fs::create_dir_all(blocks.join("253:0/slaves/loop0p1")).unwrap();
        std::fs::write(blocks.join("7:0/loop/backing_file"), format!("{}\n", file.display())).unwrap();
        std::os::unix::fs::symlink("7:0/p1", blocks.join("259:1")).unwrap();
        std::fs::write(blocks.join("253:0/slaves/loop0p1/dev"), "259:1\n").unwrap();
        let mapping = nix::sys::stat::makedev(253, 0);
        assert_eq!(block_stands_on(mapping, &[dev], &blocks, 0), Some(file));
        assert_eq!(block_stands_on(mapping, &[dev + 1], &blocks, 0), None);
    }

    #[test]
    fn only_qrvsa_mounts_count() {
        let table = b"42 27 0:39 / /mnt/a rw - fuse.qrvsa p rw\n43 27 0:40 / /mnt/b rw shared:1 - fuse.other p rw\n";
        assert_eq!(fuse_devices(table), [nix::sys::stat::makedev(0, 39)]);
        let table = b"42 27 0:39 / /mnt/a rw - fuse.qrvsa p rw\n44 42 0:39 /sub /mnt/b\\040b rw shared:1 - fuse.qrvsa p rw\n\
            43 27 0:40 / /mnt/a/c rw - ext4 /dev/x rw\n45 27 0:41 / /mnt/d rw - fuse.qrvsa q rw\n46 45 0:42 / /mnt/d rw - ext4 /dev/y rw\nx\n";
        let table = MountTable::parse(table);
        let ours = Some(nix::sys::stat::makedev(0, 39));
        assert_eq!(table.device(Path::new("/mnt/a")), ours);
        let bound = table.topmost(Path::new("/mnt/b b")).unwrap();
        assert_eq!((bound.top.as_path(), bound.ours), (Path::new("/sub"), ours));
        assert_eq!(table.device(Path::new("/mnt/a/c")), None);
        assert_eq!(table.device(Path::new("/mnt/d")), None, "something else is mounted on top");
    }

    #[test]
    fn mountinfo_is_read_with_escapes() {
        let table = b"36 35 98:0 / / rw - ext4 /dev/root rw\n\
            40 36 0:50 / /mnt/a\\040b\\134c rw - fuse.qrvsa tank rw\n\
            garbage\n\n41 36 0:51 / /mnt/x\\09 rw - tmpfs tmpfs rw\n";
        let points: Vec<_> = mountpoints(table).collect();
        assert_eq!(points, [Path::new("/"), Path::new("/mnt/a b\\c"), Path::new("/mnt/x\\09")]);
    }

    #[test]
    fn mountpoints_of_this_system() {
        assert!(is_mountpoint(Path::new("/proc")));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mountpoint(dir.path()));
        assert!(!is_stale_mount(dir.path()));
        assert!(!is_stale_mount(&dir.path().join("none")));
        assert!(!detach_stale_mounts(dir.path()).unwrap());
    }

    #[test]
    fn memory_is_known() {
        assert!(memory_bytes().unwrap() > 16 << 20);
    }
}
