"""After a restart, in order or not, the daemon imports its pools and restores its mounts by itself."""
import errno
import os
import signal
import time

import trees
from lib import GIB, MIB, Daemon, check, is_mounted, options, run, same, wait_for
from proc import ended
from syscalls import read_file, write_file


@options(seconds=120)
def test_mounts_come_back(t):
    """Two pools and three mounts come back after SIGTERM and after kill -9; an unmounted one stays unmounted."""
    daemon = Daemon(t).start()
    one, two = daemon.pool("one", size=GIB), daemon.pool("two", geometry=(1, 1), size=GIB)
    one.mount()
    two.mount()
    daemon.cli("fs", "create", "one/home")
    home, gone = t.mkdir("home"), t.mkdir("gone")
    daemon.cli("mount", "one/home", home)
    t.defer(lambda: daemon.cli("umount", home, ok=False) if is_mounted(home) else None)
    daemon.cli("fs", "create", "two/extra")
    daemon.cli("mount", "two/extra", gone)
    daemon.cli("umount", gone)
    for i, d in enumerate((one.mountpoint, two.mountpoint, home)):
        write_file(os.path.join(d, "f"), b"%d" % i)
    for name, action in (("SIGTERM", daemon.restart), ("kill -9", one.crash)):
        one.sync()
        two.sync()
        action()
        one.wait_mounted()
        two.wait_mounted()
        for i, d in enumerate((one.mountpoint, two.mountpoint, home)):
            same(read_file(os.path.join(d, "f")), b"%d" % i, "%s after %s" % (d, name))
        check(not is_mounted(gone), "a directory that was unmounted is mounted after %s", name)
        same(sorted(daemon.pools()), ["one", "two"], "pools after " + name)
        write_file(os.path.join(home, "again"), b"x")
    daemon.cli("umount", home)
    one.umount()
    daemon.cli("pool", "export", "one")
    daemon.restart()
    two.wait_mounted()
    same(daemon.pools(), ["two"], "pools after an export and a restart")


@options(seconds=120)
def test_a_mount_that_is_remembered_comes_back(t):
    """After kill -9 the kernel goes on answering stat of the mount point from its cache; the mount comes back all the same."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    write_file(os.path.join(pool.mountpoint, "f"), b"x")
    pool.sync()
    remembered = 0
    for _ in range(40):
        # once asked for the birth time, which there is not, the kernel does not ask for it again
        run(["stat", pool.mountpoint])
        os.stat(pool.mountpoint)
        daemon.kill()
        try:
            os.stat(pool.mountpoint)
            remembered += 1
        except OSError as e:
            # what changed a moment ago is remembered for a second only; a slow kill takes longer
            same(e.errno, errno.ENOTCONN, "error of stat of a mount point whose daemon is gone")
        daemon.start()
        pool.wait_mounted()
        same(read_file(os.path.join(pool.mountpoint, "f")), b"x", "after kill -9")
        if remembered == 5:
            break
    check(remembered, "the kernel never answered from its cache")


@options(seconds=120)
def test_a_missing_pool_does_not_stop_the_others(t):
    """A pool whose devices are gone, or a mount point that is gone, costs that mount and a clear log line, nothing else."""
    daemon = Daemon(t).start()
    one, two = daemon.pool("one", size=GIB), daemon.pool("two", geometry=(1, 1), size=GIB)
    one.mount()
    two.mount()
    write_file(os.path.join(two.mountpoint, "f"), b"x")
    daemon.stop()
    for d in one.devices:
        os.rename(d, d + ".away")
    daemon.start()
    two.wait_mounted()
    same(read_file(os.path.join(two.mountpoint, "f")), b"x", "the other pool's file")
    check("one" in daemon.log_text(), "the log does not name the pool that is missing")
    daemon.stop()
    for d in one.devices:
        os.rename(d + ".away", d)
    daemon.start()
    one.wait_mounted()


@options(seconds=120)
def test_signals_and_busy_mounts(t):
    """SIGTERM with a busy mount ends the daemon in order and in time; SIGINT too; processes on the mount get errors, not hangs."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "f"), 50 * MIB, t.seed)
    for sig in (signal.SIGTERM, signal.SIGINT):
        holder = t.spawn(["bash", "-c", "cd '%s' && exec 3>>held && while echo x >&3; do sleep 0.05; done" % pool.mountpoint])
        held = os.path.join(pool.mountpoint, "held")
        before = os.path.getsize(held) if os.path.exists(held) else 0
        wait_for(lambda: os.path.exists(held) and os.path.getsize(held) > before + 10, 60, "a program to write on the mount")
        begin = time.monotonic()
        os.kill(daemon.pid, sig)
        same(ended(daemon.child, 90), 0, "exit status after signal %d" % sig)
        daemon.child = None
        t.step("ended %.1f s after signal %d", time.monotonic() - begin, sig)
        ended(holder, 60)
        daemon.start()
        pool.wait_mounted()
        same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "data that was not synced before the signal")
    pool.check()


@options(seconds=120)
def test_stuck_readers_are_freed_by_a_crash(t):
    """A process in the middle of a read when the daemon is killed gets an error at once, and works again after the restart."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    trees.random_file(os.path.join(pool.mountpoint, "f"), 100 * MIB, t.seed)
    rounds = t.path("rounds")
    reader = t.spawn(["bash", "-c", "while cat '%s/f' > /dev/null; do echo x >> '%s'; done" % (pool.mountpoint, rounds)])
    wait_for(lambda: os.path.exists(rounds), 60, "the reader to have read the file once")
    daemon.kill()
    ended(reader, 60)
    daemon.start()
    pool.wait_mounted()
    run(["ls", pool.mountpoint], timeout=20)
