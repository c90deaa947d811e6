//! Mounting, remounting, unmounting, and what is left after each.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use nix::mount::{MntFlags, umount2};
use qrvsa_core::ErrorKind;
use qrvsa_core::fs::AtimeMode;
use qrvsa_core::fs::ops::MountAtime;
use qrvsa_fuse::remount::{change, remount};
use qrvsa_fuse::{Exit, MountOptions, Unmount, mount};

use crate::support::memfs::MemFs;
use crate::support::{Mounted, PATIENCE, can_mount, errno, once_nobody_writes_it};

fn mount_line(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    text.lines().rev().find(|l| l.split(' ').nth(1) == path.to_str()).map(str::to_owned)
}

#[test]
fn shown_as_what_it_is() {
    if !can_mount() {
        return;
    }
    let options = MountOptions::parse("tank/a b", "nosuid,nodev,noatime").unwrap();
    let m = Mounted::with(options);
    let line = mount_line(m.root()).unwrap();
    assert!(line.starts_with("tank/a\\040b "), "{line}");
    assert!(line.contains(" fuse.qrvsa rw,nosuid,nodev,noatime,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    assert_eq!(m.mount.mount_point(), m.root().canonicalize().unwrap());
    assert_eq!(m.mount.fs_name(), "tank/a b");
}

#[test]
fn readahead_is_raised() {
    use std::os::unix::fs::MetadataExt;
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let dev = fs::metadata(m.root()).unwrap().dev();
    let file = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(dev), libc::minor(dev));
    match fs::read_to_string(&file) {
        Ok(kib) => assert_eq!(kib.trim(), "2048"),
        Err(error) => eprintln!("skipped: {file}: {error}"),
    }
}

#[test]
fn unmounting_makes_everything_durable_and_tells() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let (sender, receiver) = mpsc::channel();
    m.mount.on_exit(move |exit| sender.send(exit.clone()).unwrap());
    fs::write(m.path("a"), "x").unwrap();
    assert!(m.mount.is_alive());
    m.mount.unmount(Unmount::Normal).unwrap();
    assert!(!m.mount.is_alive());
    assert_eq!(m.fs.count("sync_all"), 1);
    assert_eq!(m.fs.open_count(), 0);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), Exit::Unmounted);
    assert_eq!(m.mount.wait(), Exit::Unmounted);
    assert!(!m.path("a").exists() && mount_line(m.root()).is_none());
    // Nothing left to do, and callbacks that come late are called.
    m.mount.unmount(Unmount::Force).unwrap();
    let (sender, receiver) = mpsc::channel();
    m.mount.on_exit(move |_| sender.send(()).unwrap());
    receiver.recv_timeout(PATIENCE).unwrap();
    // The same contents can be mounted again.
    let again = mount(m.fs.clone(), m.root(), &MountOptions::new(m.mount.fs_name())).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"x");
    again.unmount(Unmount::Normal).unwrap();
}

#[test]
fn an_unmount_from_outside_ends_the_session() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let (sender, receiver) = mpsc::channel();
    m.mount.on_exit(move |exit| sender.send(exit.clone()).unwrap());
    let status = Command::new("umount").arg("-i").arg(m.root()).status().unwrap();
    assert!(status.success());
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), Exit::Unmounted);
    assert_eq!(m.mount.wait(), Exit::Unmounted);
    assert_eq!(m.fs.count("sync_all"), 1);
}

#[test]
fn busy_lazy_and_forced() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = File::create(m.path("a")).unwrap();
    f.write_at(b"1", 0).unwrap();
    assert_eq!(m.mount.unmount(Unmount::Normal).unwrap_err().kind(), ErrorKind::Busy);
    assert!(m.mount.is_alive());
    m.mount.unmount(Unmount::Lazy).unwrap();
    assert!(mount_line(m.root()).is_none());
    assert!(m.mount.is_alive() && m.mount.is_detached(), "an open file keeps it going");
    let users = m.mount.users();
    assert!(users.contains(&format!("open in process {} ", std::process::id())), "{users}");
    f.write_at(b"2", 1).unwrap();
    assert_eq!(m.mount.unmount(Unmount::Normal).unwrap_err().kind(), ErrorKind::Busy);
    drop(f);
    assert_eq!(m.mount.wait(), Exit::Unmounted);

    let m = Mounted::new();
    let f = File::create(m.path("a")).unwrap();
    fs::remove_file(m.path("a")).unwrap();
    m.mount.unmount(Unmount::Force).unwrap();
    assert!(!m.mount.is_alive() && mount_line(m.root()).is_none());
    assert_eq!(errno(f.write_at(b"2", 0)), libc::ENOTCONN);
    assert_eq!(m.fs.open_count(), 0, "opens the kernel never released are released");
    assert_eq!(m.fs.inode_count(), 1);
    assert_eq!(m.fs.count("sync_all"), 1);
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    use std::os::unix::fs::MetadataExt;
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let dev = fs::metadata(m.root()).unwrap().dev();
    let f = File::create(m.path("a")).unwrap();
    let control = Path::new("/sys/fs/fuse/connections");
    let mounted = !control.join(libc::minor(dev).to_string()).exists()
        && nix::mount::mount(Some("none"), control, Some("fusectl"), nix::mount::MsFlags::empty(), None::<&Path>)
            .is_ok();
    let aborted = fs::write(control.join(format!("{}/abort", libc::minor(dev))), "1");
    if mounted {
        let _ = umount2(control, MntFlags::MNT_DETACH);
    }
    if let Err(error) = aborted {
        eprintln!("skipped: no control filesystem: {error}");
        return;
    }
    let exit = m.mount.wait();
    assert!(matches!(&exit, Exit::Failed(why) if why.contains("aborted")), "it is nobody's unmount: {exit:?}");
    assert!(mount_line(m.root()).is_none());
    assert_eq!(m.fs.open_count(), 0);
    drop(f);
}

#[test]
fn a_forced_unmount_from_outside_is_one() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let status = Command::new("umount").args(["-i", "-f"]).arg(m.root()).status().unwrap();
    assert!(status.success());
    assert_eq!(m.mount.wait(), Exit::Unmounted);
}

/// A bind mount, gone at the end.
struct Bound(tempfile::TempDir);

impl Bound {
    fn to(what: &Path) -> Bound {
        let dir = tempfile::Builder::new().prefix("qrvsa-fuse-bound-").tempdir().unwrap();
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
        nix::mount::mount(Some(what), dir.path(), none, flags, none).unwrap();
        Bound(dir)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_filesystem_that_is_shown_elsewhere_serves_on() {
    if !can_mount() || !crate::support::is_root() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "x").unwrap();
    let bound = Bound::to(m.root());
    let error = m.mount.unmount(Unmount::Normal).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let place = bound.0.path().canonicalize().unwrap();
    assert!(error.to_string().contains("still shown elsewhere"), "{error}");
    let users = m.mount.users();
    assert!(users.contains(&format!("shown on {}", place.display())), "{users}");
    assert!(m.mount.is_alive() && m.mount.is_detached());
    assert!(mount_line(m.root()).is_none());
    assert_eq!(fs::read(place.join("a")).unwrap(), b"x");
    for how in [Unmount::Normal, Unmount::Lazy] {
        assert_eq!(m.mount.unmount(how).is_err(), how == Unmount::Normal);
    }
    drop(bound);
    assert_eq!(m.mount.wait(), Exit::Unmounted);
    assert!(!m.mount.is_detached());
    assert_eq!(m.fs.count("sync_all"), 1);
}

/// The kernel may give the next mount the numbers of the one that went, but need not: `mountinfo` tests the comparison itself.
#[test]
fn another_mount_with_its_numbers_is_not_taken_for_it() {
    if !can_mount() || !crate::support::is_root() {
        return;
    }
    let m = Mounted::new();
    let at = m.root().display();
    let both = format!("umount -i '{at}' && mount -t tmpfs later '{at}'");
    assert!(Command::new("sh").args(["-c", &both]).status().unwrap().success());
    let exit = m.mount.wait();
    let left = mount_line(m.root());
    let _ = umount2(m.root(), MntFlags::MNT_DETACH);
    assert_eq!(exit, Exit::Unmounted);
    assert!(left.is_some_and(|line| line.contains("tmpfs")), "it was taken away");
}

#[test]
fn what_ends_just_now_is_not_detached() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = File::create(m.path("a")).unwrap();
    m.mount.unmount(Unmount::Lazy).unwrap();
    assert!(m.mount.is_detached());
    let gate = m.fs.sync_gate.lock().unwrap();
    drop(f);
    let deadline = std::time::Instant::now() + PATIENCE;
    while m.mount.is_detached() {
        assert!(std::time::Instant::now() < deadline, "its connection is closed, but it counts as detached");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(m.mount.is_alive(), "not everything is durable yet");
    std::thread::scope(|scope| {
        let unmounted = scope.spawn(|| m.mount.unmount(Unmount::Normal));
        drop(gate);
        unmounted.join().unwrap().unwrap();
    });
    assert!(!m.mount.is_alive());
    assert_eq!(m.fs.count("sync_all"), 1);
}

#[test]
fn what_could_not_be_made_durable_is_told() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    m.fs.sync_errno.store(libc::EIO as u64, Ordering::Relaxed);
    let error = m.mount.unmount(Unmount::Normal).unwrap_err();
    assert_eq!(error.errno(), nix::errno::Errno::EIO);
    assert!(error.to_string().contains("unmounted, but"), "{error}");
    assert!(!m.mount.is_alive() && mount_line(m.root()).is_none());
    assert_eq!(m.mount.lost(), Some(nix::errno::Errno::EIO));
}

#[test]
fn dropping_the_handle_unmounts() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("qrvsa-fuse-").tempdir().unwrap();
    let fs_ = Arc::new(MemFs::new());
    let m = mount(fs_.clone(), dir.path(), &MountOptions::new("t")).unwrap();
    let (sender, receiver) = mpsc::channel();
    m.on_exit(move |_| sender.send(()).unwrap());
    drop(m);
    receiver.recv_timeout(PATIENCE).unwrap();
    assert!(mount_line(dir.path()).is_none());
    assert_eq!(Arc::strong_count(&fs_), 1, "the filesystem is given back");
}

#[test]
fn a_mount_point_in_use_is_refused() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let other = Arc::new(MemFs::new());
    for name in [m.mount.fs_name(), "testpool/other"] {
        let error = mount(other.clone(), m.root(), &MountOptions::new(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("{} (fuse.qrvsa)", m.mount.fs_name())), "{error}");
    }
    fs::write(m.path("a"), "still there").unwrap();
}

#[test]
fn two_mounts_do_not_meet() {
    if !can_mount() {
        return;
    }
    let (a, b) = (Mounted::new(), Mounted::with(MountOptions::new("testpool/two")));
    fs::write(a.path("x"), "a").unwrap();
    assert!(!b.path("x").exists());
    fs::write(b.path("x"), "b").unwrap();
    // One inside the other.
    fs::create_dir(a.path("in")).unwrap();
    let inner = Arc::new(MemFs::new());
    let c = mount(inner, &a.path("in"), &MountOptions::new("testpool/three")).unwrap();
    fs::write(a.path("in/x"), "c").unwrap();
    assert_eq!(a.mount.unmount(Unmount::Normal).unwrap_err().kind(), ErrorKind::Busy);
    c.unmount(Unmount::Normal).unwrap();
    assert!(!a.path("in/x").exists());
    a.mount.unmount(Unmount::Normal).unwrap();
    assert_eq!(fs::read(b.path("x")).unwrap(), b"b");
}

#[test]
fn read_only_from_the_start_and_remounted() {
    if !can_mount() {
        return;
    }
    let m = Mounted::with(MountOptions::parse("testpool/data", "ro").unwrap());
    assert_eq!(errno(fs::write(m.path("a"), "x")), libc::EROFS);
    remount(m.root(), "remount,rw").unwrap();
    fs::write(m.path("a"), "x").unwrap();
    remount(m.root(), "ro,nosuid,noexec,noatime").unwrap();
    let line = mount_line(m.root()).unwrap();
    assert!(line.contains(" ro,nosuid,noexec,noatime"), "{line}");
    assert_eq!(errno(fs::write(m.path("a"), "y")), libc::EROFS);
    assert_eq!(fs::read(m.path("a")).unwrap(), b"x");
    // What mount(8) repeats from the table does no harm, and what is not named stays.
    remount(m.root(), "rw,user_id=0,group_id=0,default_permissions,allow_other").unwrap();
    let line = mount_line(m.root()).unwrap();
    assert!(line.contains(" rw,nosuid,noexec,noatime"), "{line}");
    let f = OpenOptions::new().write(true).open(m.path("a")).unwrap();
    assert_eq!(remount(m.root(), "ro").unwrap_err().kind(), ErrorKind::Busy, "a file is open for writing");
    f.write_at(b"z", 0).unwrap();
    drop(f);
    remount(m.root(), "ro").unwrap();
}

#[test]
fn a_mount_is_given_other_options_as_far_as_a_remount_can() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let at = m.root().canonicalize().unwrap();
    let options = |list: &str| MountOptions::parse(m.mount.fs_name(), list).unwrap();
    change(&at, &options(""), &options("ro,nosuid")).unwrap();
    assert!(mount_line(&at).unwrap().contains(" ro,nosuid,relatime"), "{:?}", mount_line(&at));
    assert_eq!(errno(fs::write(m.path("a"), "x")), libc::EROFS);
    // all of them: what somebody has changed since, too
    remount(&at, "rw,suid,noexec").unwrap();
    change(&at, &options("ro,nosuid"), &options("ro,nosuid")).unwrap();
    assert!(mount_line(&at).unwrap().contains(" ro,nosuid,relatime"), "{:?}", mount_line(&at));
    let refused = change(&at, &options("ro,nosuid"), &options("rw,threads=3")).unwrap_err();
    assert!(refused.kind() == ErrorKind::Invalid && refused.to_string().contains("threads"), "{refused}");
    assert_eq!(errno(fs::write(m.path("a"), "x")), libc::EROFS);
    let other = MountOptions::parse("testpool/elsewhere", "").unwrap();
    assert_eq!(change(&at, &other, &other).unwrap_err().kind(), ErrorKind::NotFound);
    change(&at, &options("ro,nosuid"), &options("")).unwrap();
    let _writer = fs::File::create(m.path("a")).unwrap();
    assert_eq!(change(&at, &options(""), &options("ro")).unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn the_filesystem_learns_what_the_mount_wants_about_access_times() {
    if !can_mount() {
        return;
    }
    let m = Mounted::with(MountOptions::parse("testpool/data", "strictatime,nodiratime").unwrap());
    let ask = m.fs.ask.lock().unwrap().clone().unwrap();
    let all = |mode, no_dirs| MountAtime { mode, no_dirs };
    assert_eq!(ask(), all(Some(AtimeMode::Strict), true));
    remount(m.root(), "remount,ro").unwrap();
    assert_eq!(ask(), all(Some(AtimeMode::Never), true));
    remount(m.root(), "remount,rw,diratime").unwrap();
    assert_eq!(ask(), all(Some(AtimeMode::Strict), false));
    remount(m.root(), "remount,noatime").unwrap();
    assert_eq!(ask(), all(Some(AtimeMode::Never), false));
    remount(m.root(), "remount,relatime").unwrap();
    assert_eq!(ask(), all(Some(AtimeMode::Relative), false));
    // by whoever
    let output = Command::new("mount").args(["-i", "-o", "remount,noatime"]).arg(m.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(ask(), all(Some(AtimeMode::Never), false));
    m.mount.unmount(Unmount::Normal).unwrap();
    // a mount that has ended wants nothing, once its thread has
    let start = std::time::Instant::now();
    while ask() != MountAtime::default() {
        assert!(start.elapsed() < PATIENCE, "an ended mount still says {:?}", ask());
        std::thread::yield_now();
    }

    let m = Mounted::new();
    let ask = m.fs.ask.lock().unwrap().clone().unwrap();
    assert_eq!(ask(), MountAtime::default(), "no option, so it is the filesystem's affair");
    remount(m.root(), "remount,nosuid").unwrap();
    assert_eq!(ask(), MountAtime::default());
}

#[test]
fn opens_without_access_times_are_told_apart() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "x").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    let quiet = |name: &str, more: i32| {
        OpenOptions::new().read(true).custom_flags(libc::O_NOATIME | more).open(m.path(name)).unwrap()
    };
    let counts = || (m.fs.count("read_quietly"), m.fs.count("readdir_quietly"));
    assert_eq!(fs::read(m.path("a")).unwrap(), b"x");
    assert_eq!(fs::read_dir(m.path("d")).unwrap().count(), 0);
    assert_eq!(counts(), (0, 0));
    m.forget("a");
    let mut buf = [0; 4];
    assert_eq!(quiet("a", 0).read_at(&mut buf, 0).unwrap(), 1);
    assert!(counts().0 > 0);
    // the listing in the kernel's cache goes with a change of names
    fs::write(m.path("d/b"), "").unwrap();
    let d = quiet("d", libc::O_DIRECTORY);
    let mut entries = [0u8; 1024];
    // SAFETY: an open descriptor, and a buffer of the length given.
    let len = unsafe { libc::syscall(libc::SYS_getdents64, d.as_raw_fd(), entries.as_mut_ptr(), entries.len()) };
    assert!(len > 0 && counts().1 > 0, "{len} bytes of entries, {:?}", counts());
}

#[test]
fn mount_remounts_without_a_helper() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let run = |options: &str| {
        let output = Command::new("mount").args(["-i", "-o", options]).arg(m.root()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("remount,ro");
    assert_eq!(errno(fs::write(m.path("a"), "x")), libc::EROFS);
    run("remount,rw");
    fs::write(m.path("a"), "x").unwrap();
}

#[test]
fn session_threads_do_not_wait_for_write_back() {
    if !can_mount() {
        return;
    }
    if let Err(error) = crate::support::io_flusher() {
        eprintln!("skipped: threads cannot be marked as I/O flushers here: {error}");
        return;
    }
    let m = Mounted::new();
    for _ in 0..20 {
        nix::sys::statvfs::statvfs(m.root()).unwrap();
        assert_eq!(m.fs.io_flusher.load(Ordering::Relaxed), 1);
    }
}

/// Names the directory in the environment of a test process that runs as an ordinary user.
const USER_DIRECTORY: &str = "QRVSA_FUSE_TEST_USER_DIRECTORY";

/// Runs this very test again as an ordinary user, in a mount namespace where everybody may open `/dev/fuse`, as is usual.
#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    if let Some(dir) = std::env::var_os(USER_DIRECTORY) {
        return mount_as_ordinary_user(Path::new(&dir));
    }
    if !can_mount() || !crate::support::is_root() {
        return;
    }
    if !Command::new("fusermount3").arg("-V").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: there is no fusermount3");
        return;
    }
    let dir = tempfile::Builder::new().prefix("qrvsa-fuse-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (device, mount_point, program) = (dir.path().join("fuse"), dir.path().join("m"), dir.path().join("test"));
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&device, nix::sys::stat::SFlag::S_IFCHR, mode, libc::makedev(10, 229)).unwrap();
    fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).unwrap();
    fs::create_dir(&mount_point).unwrap();
    std::os::unix::fs::chown(&mount_point, Some(1000), Some(1000)).unwrap();
    // Where it was built the user may have no way to it.
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--exact", "mounting::an_ordinary_user_mounts_through_the_helper", "--nocapture"]);
    command.env(USER_DIRECTORY, &mount_point).current_dir("/");
    let enter = move || -> nix::Result<()> {
        use nix::mount::{MsFlags, mount};
        // SAFETY: a system call with an integer.
        nix::errno::Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let (none, recursive) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, recursive, none)?;
        mount(Some(&device), "/dev/fuse", none, MsFlags::MS_BIND, none)?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(nix::unistd::Gid::from_raw(1000))?;
        nix::unistd::setuid(nix::unistd::Uid::from_raw(1000))
    };
    // SAFETY: between fork and exec only system calls are made; the paths were allocated before.
    unsafe { command.pre_exec(move || enter().map_err(Into::into)) };
    let output = once_nobody_writes_it(|| command.output());
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("mounted as an ordinary user"), "{text}");
}

fn mount_as_ordinary_user(dir: &Path) {
    let fs_ = Arc::new(MemFs::new());
    let mut options = MountOptions::parse("testpool/of,a user", "noallow_other,noexec").unwrap();
    let m = mount(fs_.clone(), dir, &options).unwrap();
    let line = mount_line(dir).unwrap();
    assert!(line.starts_with("testpool/of,a\\040user "), "{line}");
    assert!(line.contains(" fuse.qrvsa rw,nosuid,nodev,noexec,"), "{line}");
    // The root directory is root's, and the user is not.
    assert_eq!(errno(fs::write(dir.join("a"), "x")), libc::EACCES);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    let open = File::open(dir).unwrap();
    assert_eq!(m.unmount(Unmount::Normal).unwrap_err().kind(), ErrorKind::Busy);
    drop(open);
    m.unmount(Unmount::Normal).unwrap();
    assert!(mount_line(dir).is_none());
    assert_eq!(fs_.count("sync_all"), 1);
    options.allow_other = true;
    if let Err(error) = mount(fs_.clone(), dir, &options) {
        // Refused unless /etc/fuse.conf allows it; the reason is told.
        assert!(error.to_string().contains("user_allow_other"), "{error}");
    }
    println!("mounted as an ordinary user");
}

/// A mount whose daemon is gone: the device is opened, mounted, and closed.
fn make_stale(path: &Path, source: &str, fs_type: &str) {
    use std::os::fd::AsRawFd;
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some(source), path, Some(fs_type), flags, Some(data.as_str())).unwrap();
}

#[test]
fn a_dead_mount_of_the_same_filesystem_is_replaced() {
    if !can_mount() || !crate::support::is_root() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("qrvsa-fuse-").tempdir().unwrap();
    struct Cleared<'a>(&'a Path);
    impl Drop for Cleared<'_> {
        fn drop(&mut self) {
            while umount2(self.0, MntFlags::MNT_DETACH).is_ok() {}
        }
    }
    let _cleared = Cleared(dir.path());
    make_stale(dir.path(), "testpool/data", "fuse.qrvsa");
    make_stale(dir.path(), "testpool/data", "fuse.qrvsa");
    assert_eq!(errno(fs::read_dir(dir.path())), libc::ENOTCONN);
    let other = mount(Arc::new(MemFs::new()), dir.path(), &MountOptions::new("testpool/other")).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Busy, "a dead mount of something else stays");
    let m = mount(Arc::new(MemFs::new()), dir.path(), &MountOptions::new("testpool/data")).unwrap();
    fs::write(dir.path().join("a"), "x").unwrap();
    m.unmount(Unmount::Normal).unwrap();
    assert!(mount_line(dir.path()).is_none(), "both dead mounts are gone");
    make_stale(dir.path(), "testpool/data", "fuse.sshfs");
    let foreign = mount(Arc::new(MemFs::new()), dir.path(), &MountOptions::new("testpool/data")).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Busy);
}

#[test]
fn invalidation_shows_what_changed_behind_the_mount() {
    use qrvsa_core::fs::ops::Operations;
    use std::os::unix::fs::MetadataExt;
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "old").unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"old");
    let ino = fs::metadata(m.path("a")).unwrap().ino();
    m.fs.write(ino, 0, b"new contents", false, false).unwrap();
    m.mount.invalidate(ino).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"new contents");
}
