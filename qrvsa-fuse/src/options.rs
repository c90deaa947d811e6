//! Mount options: what a mount can be told, and the `-o` syntax of it.

use nix::mount::MsFlags;
use qrvsa_core::{Result, fail};

/// Which reads update access times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atime {
    /// At most once a day, unless the file changed since.
    Relatime,
    /// Never.
    Noatime,
    /// At each read.
    Strictatime,
}

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// `pool/dataset`, shown as the source in `/proc/mounts`.
    pub fs_name: String,
    /// No writes.
    pub read_only: bool,
    /// Users other than the one who mounts may use it, within the usual permissions.
    pub allow_other: bool,
    /// Device nodes do not work.
    pub nodev: bool,
    /// Set-user-id and set-group-id bits have no effect.
    pub nosuid: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Access times; `None`: as the filesystem itself is set.
    pub atime: Option<Atime>,
    /// No access times of directories.
    pub nodiratime: bool,
    /// Each write is durable when it returns.
    pub sync: bool,
    /// Each directory change is durable when it returns.
    pub dirsync: bool,
    /// Session threads, 1 to 256. Operations block on devices, so this is how many can be under way.
    pub threads: usize,
    /// Readahead in KiB; 0 leaves the kernel's.
    pub readahead_kib: u32,
    /// Background requests (readahead, asynchronous direct I/O) the kernel may have under way, 1 to 4096.
    pub max_background: u16,
}

impl MountOptions {
    /// The defaults, for a filesystem of that name.
    pub fn new(fs_name: impl Into<String>) -> MountOptions {
        MountOptions {
            fs_name: fs_name.into(),
            read_only: false,
            allow_other: true,
            nodev: false,
            nosuid: false,
            noexec: false,
            atime: None,
            nodiratime: false,
            sync: false,
            dirsync: false,
            threads: 16,
            readahead_kib: 2048,
            max_background: 64,
        }
    }

    /// The defaults changed by a comma separated list, as after `-o`. Later words win.
    ///
    /// # Errors
    /// `Invalid`: an unknown word or a number out of range.
    pub fn parse(fs_name: impl Into<String>, list: &str) -> Result<MountOptions> {
        let mut options = MountOptions::new(fs_name);
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            options.apply(word)?;
        }
        options.check()?;
        Ok(options)
    }

    fn apply(&mut self, word: &str) -> Result<()> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        if is_for_others(name, value.is_some()) {
            return Ok(());
        }
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("nodev", None) => self.nodev = true,
            ("dev", None) => self.nodev = false,
            ("nosuid", None) => self.nosuid = true,
            ("suid", None) => self.nosuid = false,
            ("noexec", None) => self.noexec = true,
            ("exec", None) => self.noexec = false,
            // As mount(8) documents them: an ordinary user's mount is harmless unless told otherwise after.
            ("user" | "users", _) => (self.nodev, self.nosuid, self.noexec) = (true, true, true),
            ("owner" | "group", None) => (self.nodev, self.nosuid) = (true, true),
            ("noatime", None) => self.atime = Some(Atime::Noatime),
            ("relatime", None) => self.atime = Some(Atime::Relatime),
            ("strictatime" | "norelatime", None) => self.atime = Some(Atime::Strictatime),
            ("atime" | "nostrictatime", None) => self.atime = None,
            ("nodiratime", None) => self.nodiratime = true,
            ("diratime", None) => self.nodiratime = false,
            ("sync", None) => self.sync = true,
            ("async", None) => self.sync = false,
            ("dirsync", None) => self.dirsync = true,
            ("allow_other", None) => self.allow_other = true,
            ("noallow_other", None) => self.allow_other = false,
            ("threads", Some(value)) => self.threads = number(name, value)?,
            ("readahead", Some(value)) => self.readahead_kib = number(name, value)?,
            ("max_background", Some(value)) => self.max_background = number(name, value)?,
            ("remount", _) => fail!(Invalid, "remount changes an existing mount: it cannot make one"),
            _ => fail!(Invalid, "unknown mount option \"{word}\""),
        }
        Ok(())
    }

    /// Whether the options make sense.
    ///
    /// # Errors
    /// `Invalid`: which one does not.
    pub fn check(&self) -> Result<()> {
        if self.fs_name.is_empty() || self.fs_name.bytes().any(|b| b == 0 || b == b'\n') {
            fail!(Invalid, "the name of the filesystem is empty or has unprintable characters");
        }
        if !(1..=256).contains(&self.threads) {
            fail!(Invalid, "threads={}: must be 1 to 256", self.threads);
        }
        if self.readahead_kib > 64 * 1024 {
            fail!(Invalid, "readahead={}: must be at most 65536 (KiB)", self.readahead_kib);
        }
        if !(1..=4096).contains(&self.max_background) {
            fail!(Invalid, "max_background={}: must be 1 to 4096", self.max_background);
        }
        Ok(())
    }

    /// The flags of mount(2).
    pub(crate) fn flags(&self) -> MsFlags {
        let mut flags = match self.atime {
            None | Some(Atime::Relatime) => MsFlags::MS_RELATIME,
            Some(Atime::Noatime) => MsFlags::MS_NOATIME,
            Some(Atime::Strictatime) => MsFlags::MS_STRICTATIME,
        };
        flags.set(MsFlags::MS_RDONLY, self.read_only);
        flags.set(MsFlags::MS_NODEV, self.nodev);
        flags.set(MsFlags::MS_NOSUID, self.nosuid);
        flags.set(MsFlags::MS_NOEXEC, self.noexec);
        flags.set(MsFlags::MS_NODIRATIME, self.nodiratime);
        flags.set(MsFlags::MS_SYNCHRONOUS, self.sync);
        flags.set(MsFlags::MS_DIRSYNC, self.dirsync);
        flags
    }
}

/// Words for mount(8), systemd or other kinds of filesystem, which mean nothing here or are always so.
fn is_for_others(name: &str, has_value: bool) -> bool {
    name.starts_with("x-")
        || name.starts_with("X-")
        || match name {
            "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "_netdev"
            | "nouser"
            | "nousers"
            | "noowner"
            | "nogroup"
            | "lazytime"
            | "nolazytime"
            | "silent"
            | "loud"
            | "acl"
            | "iversion"
            | "noiversion"
            | "mand"
            | "nomand"
            | "default_permissions"
            | "user_xattr" => !has_value,
            "uhelper" | "helper" | "comment" => has_value,
            _ => false,
        }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    match value.parse() {
        Ok(number) => Ok(number),
        Err(_) => fail!(Invalid, "{name}={value}: not a number in range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(list: &str) -> Result<MountOptions> {
        MountOptions::parse("tank/a", list)
    }

    #[test]
    fn the_empty_list_is_the_default() {
        assert_eq!(parse("").unwrap(), MountOptions::new("tank/a"));
        let list = "defaults,rw,dev,suid,exec,auto,nouser,async,atime,lazytime,_netdev,nofail,noauto,x-systemd.automount,\
            x-gvfs-name=a,X-mount.mkdir=0755,default_permissions,comment=x,allow_other";
        assert_eq!(parse(list).unwrap(), MountOptions::new("tank/a"));
    }

    #[test]
    fn later_words_win() {
        let o =
            parse("ro,rw,nosuid,noatime,strictatime,threads=3,readahead=0,max_background=100,noallow_other").unwrap();
        assert!(!o.read_only && o.nosuid && !o.allow_other);
        assert_eq!((o.atime, o.threads, o.readahead_kib, o.max_background), (Some(Atime::Strictatime), 3, 0, 100));
        let o = parse("user,exec").unwrap();
        assert!(o.nodev && o.nosuid && !o.noexec);
        assert!(parse("ro,nodev,noexec,noatime,nodiratime,sync,dirsync").unwrap().flags().contains(
            MsFlags::MS_RDONLY
                | MsFlags::MS_NODEV
                | MsFlags::MS_NOEXEC
                | MsFlags::MS_NOATIME
                | MsFlags::MS_NODIRATIME
                | MsFlags::MS_SYNCHRONOUS
                | MsFlags::MS_DIRSYNC
        ));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, part) in [
            ("ro,frobnicate", "\"frobnicate\""),
            ("ro=1", "\"ro=1\""),
            ("threads=0", "threads=0"),
            ("threads=many", "threads=many"),
            ("threads", "\"threads\""),
            ("readahead=99999999", "readahead"),
            ("max_background=70000", "max_background=70000"),
            ("remount,ro", "remount"),
            ("nofail=1", "nofail=1"),
        ] {
            let error = parse(list).unwrap_err().to_string();
            assert!(error.contains(part), "{list}: {error}");
        }
        assert!(MountOptions::parse("", "").is_err());
        assert!(MountOptions::parse("a\0b", "").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(list in "\\PC{0,60}") {
            let _ = parse(&list);
        }
    }
}
