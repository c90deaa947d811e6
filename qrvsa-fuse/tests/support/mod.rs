//! What the mount tests share: a filesystem in memory, mounted, that goes away whatever happens.

pub mod acl;
pub mod memfs;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memfs::MemFs;
use qrvsa_fuse::{Mount, MountOptions};

/// Far longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether mounts can be tested here; says why not.
pub fn can_mount() -> bool {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: there is no /dev/fuse on this machine");
        return false;
    }
    true
}

/// A mounted [`MemFs`]. Unmounts lazily when dropped, so that a failed test leaves nothing behind.
pub struct Mounted {
    pub fs: Arc<MemFs>,
    pub mount: Mount,
    dir: tempfile::TempDir,
}

impl Mounted {
    /// With a source that no other test has: tests run side by side, and the kernel gives the numbers of a mount that went
    /// to the next one at once.
    pub fn new() -> Mounted {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        Mounted::with(MountOptions::new(format!("testpool/data-{}-{made}", std::process::id())))
    }

    pub fn with(options: MountOptions) -> Mounted {
        let dir = tempfile::Builder::new().prefix("qrvsa-fuse-").tempdir().unwrap();
        let fs = Arc::new(MemFs::new());
        let mount = qrvsa_fuse::mount(fs.clone(), dir.path(), &options).unwrap();
        Mounted { fs, mount, dir }
    }

    /// Makes the kernel ask again for contents and attributes of a file.
    pub fn forget(&self, name: &str) {
        use std::os::unix::fs::MetadataExt;
        self.mount.invalidate(std::fs::metadata(self.path(name)).unwrap().ino()).unwrap();
    }

    /// Unmounts and mounts the same contents, so that the kernel remembers nothing.
    pub fn mount_again(&mut self) {
        self.mount.unmount(qrvsa_fuse::Unmount::Normal).unwrap();
        let options = MountOptions::new(self.mount.fs_name());
        self.mount = qrvsa_fuse::mount(self.fs.clone(), self.dir.path(), &options).unwrap();
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The result of a libc call as Rust has it.
pub fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The error number of a failed call, 0 of a good one.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |_| 0)
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (p, n) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: the pointers are to live, terminated strings and to value.len() bytes.
    check(unsafe { libc::lsetxattr(p.as_ptr(), n.as_ptr(), value.as_ptr().cast(), value.len(), flags) } as i64)?;
    Ok(())
}

pub fn get_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (p, n) = (c_path(path), CString::new(name).unwrap());
    let mut buf = vec![0u8; 65536];
    // SAFETY: as above, and the buffer has the length given.
    let len = check(unsafe { libc::lgetxattr(p.as_ptr(), n.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) } as i64)?;
    buf.truncate(len as usize);
    Ok(buf)
}

pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (p, n) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: live, terminated strings.
    check(unsafe { libc::lremovexattr(p.as_ptr(), n.as_ptr()) } as i64)?;
    Ok(())
}

pub fn list_xattr(path: &Path) -> Vec<String> {
    let p = c_path(path);
    let mut buf = vec![0u8; 65536];
    // SAFETY: a live, terminated string, and a buffer of the length given.
    let len = check(unsafe { libc::llistxattr(p.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) } as i64).unwrap();
    let mut names: Vec<String> = buf[..len as usize]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8(n.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

pub fn fallocate(file: &File, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: an open descriptor and integers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } as i64)?;
    Ok(())
}

pub fn lseek(file: &File, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: an open descriptor and integers.
    check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// Runs `f` as an ordinary user, on a thread of its own: Linux keeps credentials per thread.
pub fn as_user<T: Send>(uid: u32, gid: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let handle = scope.spawn(|| {
            // SAFETY: raw system calls change this thread only; the thread ends with the closure.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            f()
        });
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether the test may become another user; says why not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to become other users");
    }
    root
}

/// Whether this thread is marked as an I/O flusher; an error without `CAP_SYS_RESOURCE`.
pub fn io_flusher() -> io::Result<bool> {
    const PR_GET_IO_FLUSHER: libc::c_int = 58;
    const ZERO: libc::c_ulong = 0;
    // SAFETY: prctl with integer arguments only.
    check(unsafe { libc::prctl(PR_GET_IO_FLUSHER, ZERO, ZERO, ZERO, ZERO) } as i64).map(|marked| marked == 1)
}

/// Starts a program that was just written. A program that another test was starting meanwhile may have inherited the
/// descriptor, until it is there itself.
pub fn once_nobody_writes_it(mut start: impl FnMut() -> io::Result<Output>) -> Output {
    loop {
        match start() {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => std::thread::yield_now(),
            output => return output.unwrap(),
        }
    }
}
