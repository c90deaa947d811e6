//! `/proc/self/mountinfo`: what is mounted where, parsed without panics.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use qrvsa_core::{Error, ErrorKind, Result};

/// The table of mounts of this process.
pub(crate) const PATH: &str = "/proc/self/mountinfo";

/// Tells one mount from all others that are there, also from a later one at the same place as long as it is there itself: the
/// kernel gives both numbers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Mount id.
    pub id: u64,
    /// Device number of the filesystem: major, minor.
    pub device: (u32, u32),
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub identity: Identity,
    pub mount_point: PathBuf,
    /// Options of the mount point, such as `rw,nosuid,relatime`.
    pub mount_options: String,
    pub fs_type: String,
    pub source: OsString,
    /// Options of the filesystem, such as `rw,user_id=0`.
    pub super_options: String,
}

/// All mounts of this namespace, in the order they were made.
pub(crate) fn read() -> Result<Vec<Entry>> {
    let text = std::fs::read(PATH).map_err(|e| {
        let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
        Error::new(ErrorKind::Posix(errno), PATH)
    })?;
    Ok(parse(&text))
}

/// The topmost mount whose root is exactly `path` (canonical).
pub(crate) fn topmost_at(path: &Path) -> Result<Option<Entry>> {
    Ok(read()?.into_iter().rev().find(|e| e.mount_point == path))
}

fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let text = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let _parent = fields.next()?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let _root = fields.next()?;
    let mount_point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mount_options = text(fields.next()?);
    fields.by_ref().find(|f| *f == b"-")?;
    let fs_type = text(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = text(fields.next().unwrap_or_default());
    Some(Entry { identity: Identity { id, device }, mount_point, mount_options, fs_type, source, super_options })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = |b: u8| (b'0'..=b'7').contains(&b).then(|| u32::from(b - b'0'));
        if byte == b'\\'
            && let [a, b, c, after @ ..] = tail
            && let (Some(a), Some(b), Some(c)) = (octal(*a), octal(*b), octal(*c))
            && let Ok(value) = u8::try_from(a * 64 + b * 8 + c)
        {
            out.push(value);
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

impl Entry {
    /// Whether this is a mount of ours with that source.
    pub fn is_ours(&self, fs_name: &str) -> bool {
        self.fs_type == crate::FS_TYPE && self.source.as_bytes() == fs_name.as_bytes()
    }

    /// Whether this is that mount of ours, and not another that was given its numbers.
    pub fn is_that(&self, identity: Identity, fs_name: &str) -> bool {
        self.identity == identity && self.is_ours(fs_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_the_kernel_writes_them() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
            37 35 0:52 / /mnt/a\\040b rw,relatime - fuse.qrvsa tank/data rw,user_id=0\n";
        let all = parse(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].identity, Identity { id: 36, device: (98, 0) });
        assert_eq!(all[0].fs_type, "ext3");
        assert_eq!(all[0].super_options, "rw,errors=continue");
        assert_eq!(all[1].mount_point, Path::new("/mnt/a b"));
        assert!(all[1].is_ours("tank/data") && !all[1].is_ours("tank"));
        let identity = Identity { id: 37, device: (0, 52) };
        assert!(all[1].is_that(identity, "tank/data") && !all[1].is_that(identity, "tank"));
        let reused = parse(b"37 35 0:52 / /mnt/b rw,relatime - tmpfs tank/data rw\n");
        assert!(reused[0].identity == identity && !reused[0].is_that(identity, "tank/data"));
    }

    #[test]
    fn escapes_at_the_end_of_a_field() {
        assert_eq!(unescape(b"a\\134"), b"a\\");
        assert_eq!(unescape(b"a\\13"), b"a\\13");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(text: Vec<u8>) {
            let _ = parse(&text);
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(topmost_at(Path::new("/")).unwrap().is_some());
    }
}
