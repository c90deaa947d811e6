"""mount(8) and umount(8): the helper, fstab entries, options, remounting, what /proc/mounts shows."""
import errno
import fcntl
import mmap
import os
import stat

import contract
import trees
from lib import GIB, MIB, Daemon, binary, check, is_mounted, options, run, same, wait_for
from proc import mounts
from syscalls import refuses, write_file

HELPER = "/sbin/mount.fuse.qrvsa"


def install_helper(t):
    """mount(8) looks for the helper in /sbin alone; what was there comes back at the end. One test at a time may do this."""
    lock = os.open(os.path.dirname(HELPER), os.O_RDONLY | os.O_DIRECTORY)
    t.defer(os.close, lock)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.lexists(HELPER):
        kept = t.path("helper.kept")
        run(["cp", "-a", "--remove-destination", HELPER, kept])
        t.defer(run, ["cp", "-a", "--remove-destination", kept, HELPER])
        os.unlink(HELPER)
    else:
        t.defer(os.unlink, HELPER)
    os.symlink(binary("qrvsa"), HELPER)


def prepared(t):
    install_helper(t)
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    directory = t.mkdir("mnt")
    t.defer(lambda: run(["umount", directory], ok=False) if is_mounted(directory) else None)
    return daemon, pool, directory


def entry(directory):
    return [m for m in mounts() if m[0] == directory][-1]


def environment(daemon):
    return dict(os.environ, **contract.helper_environment(daemon.socket))


def mount(daemon, source, directory, *more, ok=True, env=None):
    options_ = ["-o", ",".join(more)] if more else []
    return run(["/bin/mount", "-t", "fuse.qrvsa", *options_, source, directory], ok=ok, env=env or environment(daemon))


@options(seconds=90)
def test_mount_and_umount(t):
    """mount -t fuse.qrvsa POOL DIR returns when it serves and shows as fuse.qrvsa with the pool as source; umount works."""
    daemon, pool, directory = prepared(t)
    for _ in range(5):
        mount(daemon, "tank", directory)
        os.listdir(directory)
        same(entry(directory)[1:3], ("fuse.qrvsa", "tank"), "type and source")
        with open("/proc/mounts") as f:
            check(any(line.split()[:3] == ["tank", directory, "fuse.qrvsa"] for line in f), "/proc/mounts has no such line")
        write_file(os.path.join(directory, "f"), b"x")
        run(["/bin/umount", directory])
        check(not is_mounted(directory), "still mounted after umount")
    mount(daemon, "tank", directory)
    check(os.path.exists(os.path.join(directory, "f")), "the file is gone")
    held = os.open(os.path.join(directory, "f"), os.O_RDONLY)
    result = run(["/bin/umount", directory], ok=False)
    check(result.rc != 0 and "busy" in result.err, "umount of a busy mount: %s", result)
    os.close(held)
    # umount(8) returns before the daemon has made everything durable: mounting again waits for that, and really mounts
    large = os.path.join(directory, "large")
    digest = trees.random_file(large, 120 * MIB, t.seed)
    run(["/bin/umount", directory])
    mount(daemon, "tank", directory)
    check(is_mounted(directory), "mount returned, but nothing is mounted")
    same(trees.digest(large), digest, "a file written just before umount")
    run(["/bin/umount", directory])


@options(seconds=90)
def test_empty_environment(t):
    """The helper works with an empty PATH, as at boot."""
    daemon, pool, directory = prepared(t)
    env = contract.helper_environment(daemon.socket)
    mount(daemon, "tank", directory, env=env)
    same(entry(directory)[1], "fuse.qrvsa", "type")
    run(["/bin/umount", directory], env=env)
    run([HELPER, "tank", directory, "-o", "rw"], env=env)
    check(is_mounted(directory), "the helper called by hand did not mount")


@options(seconds=90)
def test_fstab(t):
    """An fstab entry with noauto, x-systemd.* and comment options mounts by directory or by source."""
    daemon, pool, directory = prepared(t)
    daemon.cli("fs", "create", "tank/home")
    fstab = t.path("fstab")
    opts = "noauto,nofail,x-systemd.requires=qrvsad.service,x-systemd.automount,x-gvfs-hide,noatime"
    with open(fstab, "w") as f:
        f.write("tank/home %s fuse.qrvsa %s 0 0\n" % (directory, opts))
    for what in (directory, "tank/home"):
        run(["/bin/mount", "-T", fstab, what], env=environment(daemon))
        same(entry(directory)[1:3], ("fuse.qrvsa", "tank/home"), "type and source")
        check("noatime" in entry(directory)[3].split(","), "noatime is not in effect: %s", entry(directory))
        # at boot the daemon has restored its mounts before fstab is read: what is there already is no failure
        run(["/bin/mount", "-T", fstab, what], env=environment(daemon))
        same(len([m for m in mounts() if m[0] == directory]), 1, "mounts there")
        run(["/bin/umount", directory])


@options(seconds=90)
def test_fstab_options_that_changed(t):
    """An fstab entry with other options than the mount that the daemon has restored: they hold, now and after a restart, or
    the helper exits with 32 and says which a remount cannot change."""
    daemon, pool, directory = prepared(t)
    fstab = t.path("fstab")

    def entry_and_mount(opts, ok=True):
        with open(fstab, "w") as f:
            f.write("tank %s fuse.qrvsa noauto,%s 0 0\n" % (directory, opts))
        return run(["/bin/mount", "-T", fstab, directory], env=environment(daemon), ok=ok)

    def in_force():
        return set(entry(directory)[3].split(",")) & {"ro", "rw", "nosuid", "noatime", "relatime"}

    entry_and_mount("defaults")
    write_file(os.path.join(directory, "f"), b"x")
    daemon.restart()
    wait_for(lambda: is_mounted(directory), 30, "the mount to come back")
    same(in_force(), {"rw", "relatime"}, "options in force")
    entry_and_mount("ro,nosuid")
    same(in_force(), {"ro", "nosuid", "relatime"}, "options in force")
    refuses(errno.EROFS, os.mkdir, os.path.join(directory, "d"))
    daemon.restart()
    wait_for(lambda: is_mounted(directory), 30, "the mount to come back")
    same(in_force(), {"ro", "nosuid", "relatime"}, "options after a restart")
    result = entry_and_mount("ro,threads=3", ok=False)
    same(result.rc, 32, "exit status")
    check("threads" in result.err and "mount it again" in result.err, "not told: %s", result)
    same(in_force(), {"ro", "nosuid", "relatime"}, "options after a refusal")
    # somebody's remount counts as well
    run(["/bin/mount", "-o", "remount,rw,suid", directory], env=environment(daemon))
    entry_and_mount("ro,nosuid")
    same(in_force(), {"ro", "nosuid", "relatime"}, "options in force")
    entry_and_mount("noatime")
    same(in_force(), {"rw", "noatime"}, "options in force")
    with open(os.path.join(directory, "f"), "w"):
        result = entry_and_mount("ro,noatime", ok=False)
        check(result.rc == 32 and "open for writing" in result.err, "read-only beside a writer: %s", result)
    run(["/bin/umount", directory])


@options(seconds=90)
def test_remount(t):
    """remount,ro makes writing EROFS, remount,rw brings it back; ro, nosuid, nodev, relatime, strictatime, lazytime, dev, suid are taken."""
    daemon, pool, directory = prepared(t)
    mount(daemon, "tank", directory)
    path = write_file(os.path.join(directory, "f"), b"x")
    run(["/bin/mount", "-o", "remount,ro", directory], env=environment(daemon))
    check("ro" in entry(directory)[3].split(","), "not ro: %s", entry(directory))
    refuses(errno.EROFS, os.open, path, os.O_WRONLY)
    refuses(errno.EROFS, os.mkdir, os.path.join(directory, "d"))
    os.stat(path)
    run(["/bin/mount", "-o", "remount,rw", directory], env=environment(daemon))
    write_file(path, b"y")
    run(["/bin/umount", directory])
    mount(daemon, "tank", directory, "ro")
    refuses(errno.EROFS, os.open, path, os.O_WRONLY)
    run(["/bin/umount", directory])
    for option in ("relatime", "strictatime", "lazytime", "nosuid", "nodev", "noexec", "dev", "suid", "rw", "noatime"):
        mount(daemon, "tank", directory, option)
        check(is_mounted(directory), "-o %s did not mount", option)
        run(["/bin/umount", directory])
    # dev and suid really work
    mount(daemon, "tank", directory, "dev", "suid")
    node = os.path.join(directory, "zero")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with open(node, "rb") as f:
        same(f.read(4), bytes(4), "reading a device node on the mount")


def reads(path, flags=0):
    """Reads a file, not from the page cache, or lists a directory."""
    fd = os.open(path, os.O_RDONLY | flags | (0 if os.path.isdir(path) else os.O_DIRECT))
    try:
        if os.path.isdir(path):
            os.listdir(fd)
        else:
            with mmap.mmap(-1, 4096) as buffer:
                os.preadv(fd, [buffer], 0)
    finally:
        os.close(fd)


def moved(path, flags=0):
    """Whether reading moves an access time that is long due. With another mtime the kernel lists a directory anew, too."""
    os.utime(path, (1, os.stat(path).st_mtime + 1))
    reads(path, flags)
    return os.stat(path).st_atime != 1


@options(seconds=120)
def test_access_times(t):
    """noatime, nodiratime, strictatime, ro and their remounts, and O_NOATIME, say what reading does to access times; the
    property of the filesystem says it for mounts without such a word. A restart keeps the options."""
    daemon, pool, directory = prepared(t)
    path, below = os.path.join(directory, "f"), os.path.join(directory, "d")

    def is_(words, file, tree):
        same((moved(path), moved(below)), (file, tree), "access times that move with %s" % words)

    def remount(words):
        run(["/bin/mount", "-o", "remount," + words, directory], env=environment(daemon))

    mount(daemon, "tank", directory)
    write_file(path, b"x" * 5000)
    os.mkdir(below)
    is_("the default", True, True)
    same((moved(path, os.O_NOATIME), moved(below, os.O_NOATIME)), (False, False), "access times that move with O_NOATIME")
    for words, file, tree in (("noatime", False, False), ("relatime,nodiratime", True, False)):
        remount(words)
        is_("remount," + words, file, tree)
    # mount(8) does not tell a helper that a word is taken back
    run(["/bin/mount", "-i", "-o", "remount,diratime", directory])
    is_("remount,diratime", True, True)
    os.utime(path, (1, 1))
    remount("ro")
    reads(path)
    same(os.stat(path).st_atime, 1, "access time of a file read in a read-only mount")
    remount("rw")
    reads(path)
    check(os.stat(path).st_atime != 1, "the access time does not move after remount,rw")
    run(["/bin/umount", directory])
    for words, file, tree in (("noatime", False, False), ("nodiratime", True, False)):
        mount(daemon, "tank", directory, words)
        is_(words, file, tree)
        run(["/bin/umount", directory])
    daemon.cli("fs", "set", "tank", "atime=off")
    mount(daemon, "tank", directory)
    is_("atime=off", False, False)
    run(["/bin/umount", directory])
    mount(daemon, "tank", directory, "strictatime")
    is_("strictatime against atime=off", True, True)
    times = set()
    for _ in range(5):
        reads(path)
        times.add(os.stat(path).st_atime_ns)
    same(len(times), 5, "access times of five reads with strictatime")
    daemon.restart()
    wait_for(lambda: is_mounted(directory), 30, "the mount to come back")
    is_("strictatime after a restart", True, True)
    run(["/bin/umount", directory])
    mount(daemon, "tank", directory)
    is_("atime=off, as before", False, False)


@options(seconds=90)
def test_refusals(t):
    """An unknown pool or option, a busy or missing directory: exit status and one line, nothing mounted, no daemon hurt."""
    daemon, pool, directory = prepared(t)
    for source, target, more in (("nothere", directory, ()), ("tank/nothere", directory, ()), ("tank", t.path("missing"), ()), ("tank", directory, ("nonsense=1",))):
        result = mount(daemon, source, target, *more, ok=False)
        check(0 < result.rc < 126 and result.rc != contract.PANIC_EXIT, "mount %s %s %s: exit %s", source, target, more, result.rc)
        check(result.err.strip() and "panicked" not in result.err, "no clear error: %r", result.err)
        check(not is_mounted(directory), "mounted all the same: %s %s", source, more)
        t.step("%s", result.err.strip())
    daemon.stop()
    result = mount(daemon, "tank", directory, ok=False)
    check(result.rc != 0 and result.err.strip(), "without a daemon: %s", result)
    daemon.start()
    mount(daemon, "tank", directory)


@options(seconds=90)
def test_several_mounts(t):
    """Filesystems of one pool are separate trees; a second mount of one is refused with the way out, a bind mount, which works."""
    daemon, pool, directory = prepared(t)
    daemon.cli("fs", "create", "tank/a")
    daemon.cli("fs", "create", "tank/b")
    second = t.mkdir("m-a2")
    places = {n: t.mkdir("m-" + n) for n in ("a", "b")}
    for n, place in places.items():
        daemon.cli("mount", "tank/" + n[0], place)
        t.defer(lambda p=place: run(["umount", p], ok=False) if is_mounted(p) else None)
    write_file(os.path.join(places["a"], "f"), b"a")
    same(os.listdir(places["b"]), [], "names in another filesystem")
    daemon.refused(r"already.*--bind|--bind", "mount", "tank/a", second)
    run(["mount", "--bind", places["a"], second])
    t.defer(lambda: run(["umount", second], ok=False) if is_mounted(second) else None)
    check(os.path.exists(os.path.join(second, "f")), "the bind mount does not show the file")
    run(["umount", second])
    check(os.path.exists(os.path.join(places["a"], "f")), "the mount is gone with its bind mount")
    daemon.cli("fs", "destroy", "tank/b", ok=False)
    check(is_mounted(places["b"]), "a mounted filesystem was destroyed")
