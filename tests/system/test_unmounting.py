"""Unmounting what is still used: by open files, by a bind mount, by a mount in another namespace; and a connection that dies."""
import errno
import os
import sys

from lib import GIB, Daemon, check, is_mounted, options, run, same, wait_for
from proc import ended
from syscalls import read_file, write_file

#: An unmount that has to end whatever shows the filesystem; on a machine that has nothing else to do it takes two seconds.
SECONDS = 30

#: Run in a mount namespace of its own: lets go of all that tests mounted, but for one mount and what it lies in; says that by
#: making a file, and stays.
HOLDER = """
import ctypes, os, re, sys, time
keep, ready = (os.fsencode(arg) for arg in sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
with open("/proc/self/mounts", "rb") as f:
    mounts = [line.split() for line in f]
for _, at, kind, *_ in reversed(mounts):
    at = re.sub(rb"\\\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), at)
    ours = kind == b"fuse.qrvsa" or b"/qrvsa-test-" in at
    if ours and keep != at and not keep.startswith(at + b"/"):
        libc.umount2(at, 2)  # MNT_DETACH: asks no server
open(ready, "w").close()
time.sleep(600)
"""


def mount_state(daemon, source):
    """(state, message) of a mount, or None."""
    found = [(m["state"], m["message"]) for m in daemon.json("mount") if m["source"] == source]
    check(len(found) < 2, "%s is listed twice: %s", source, found)
    return found[0] if found else None


def mount_states(daemon):
    return sorted(m["state"] for m in daemon.json("mount"))


def bind(t, what, name):
    """Shows a directory in another place, until the end of the test."""
    place = t.mkdir(name)
    run(["mount", "--bind", what, place])
    t.defer(lambda: run(["umount", "-l", place], ok=False) if is_mounted(place) else None)
    return place


def refused_with(code, action):
    """The call has to fail with this error number."""
    try:
        action()
    except OSError as e:
        same(e.errno, code, "error")
        return
    check(False, "it was accepted; wanted %s", errno.errorcode[code])


@options(seconds=120)
def test_lazily_unmounted_is_not_mounted_twice(t):
    """What `umount --lazy` detached is not mounted again before its last file is closed; then it is, with all that was written."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    path = os.path.join(pool.mountpoint, "f")
    held = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(held, b"one ")
    daemon.cli("umount", "--lazy", pool.mountpoint)
    check(not is_mounted(pool.mountpoint), "it is still in the tree")
    same(mount_state(daemon, "tank")[0], "detached", "state")
    for where in (pool.mountpoint, t.mkdir("other")):
        line = daemon.refused("still", "mount", "tank", where, code=7)
        check("process %d " % os.getpid() in line, "it does not say who has it open: %s", line)
    os.write(held, b"two ")
    os.close(held)
    wait_for(lambda: mount_state(daemon, "tank") is None, 30, "the detached mount to end", 0.05)
    pool.mount()
    with open(path, "ab") as f:
        f.write(b"three")
    same(read_file(path), b"one two three", "contents")
    daemon.cli("umount", pool.mountpoint)
    # what the user unmounted does not come back
    pool.mount()
    held = os.open(path, os.O_RDONLY)
    daemon.cli("umount", "--lazy", pool.mountpoint)
    daemon.kill()
    os.close(held)
    daemon.start()
    check(not is_mounted(pool.mountpoint), "the restart brought a mount back that had been unmounted")
    pool.check()


@options(seconds=120)
def test_unmount_while_shown_elsewhere(t):
    """With a bind mount, `umount`, `pool export` and the end of the daemon say what is the matter, or go on; none hangs."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    write_file(os.path.join(pool.mountpoint, "f"), b"x")
    place = bind(t, pool.mountpoint, "bound")
    line = daemon.refused("detached", "umount", pool.mountpoint, code=7, timeout=SECONDS)
    check(place in line, "it does not say where it is shown: %s", line)
    same(mount_state(daemon, "tank")[0], "detached", "state")
    same(read_file(os.path.join(place, "f")), b"x", "contents where it is shown")
    daemon.refused("still", "mount", "tank", pool.mountpoint, code=7)
    run(["umount", place])
    wait_for(lambda: mount_state(daemon, "tank") is None, 30, "the mount to end with the bind mount", 0.05)

    pool.mount()
    place = bind(t, pool.mountpoint, "bound")
    daemon.refused("detached", "pool", "export", "tank", code=7, timeout=SECONDS)
    same(daemon.pools(), ["tank"], "pools")
    same(mount_states(daemon), ["detached", "waiting"], "states after a refused export")
    run(["umount", place])
    wait_for(lambda: mount_states(daemon) == ["waiting"], 30, "the detached mount to end with the bind mount", 0.05)
    pool.restart()
    same(mount_states(daemon), ["mounted"], "states after a restart")

    place = bind(t, pool.mountpoint, "bound again")
    daemon.refused("detached", "pool", "export", "tank", code=7, timeout=SECONDS)
    daemon.cli("pool", "export", "--force", "tank", timeout=SECONDS)
    same((daemon.pools(), daemon.json("mount")), ([], []), "pools and mounts")
    refused_with(errno.EIO, lambda: write_file(os.path.join(place, "late"), b"x"))
    run(["umount", place])
    daemon.cli("pool", "import", "--search", t.path("disks"), "tank")

    # by a process with mounts of its own, as a container has
    pool.mount()
    ready = t.path("ready")
    holder = t.spawn(["unshare", "--mount", "--propagation", "private", sys.executable, "-c", HOLDER, pool.mountpoint, ready])
    wait_for(lambda: os.path.exists(ready), 30, "a mount namespace", 0.05)
    daemon.refused("namespace", "umount", pool.mountpoint, code=7, timeout=SECONDS)
    holder.kill()
    ended(holder, 30)
    wait_for(lambda: mount_state(daemon, "tank") is None, 30, "the mount to end with the namespace", 0.05)

    pool.mount()
    place = bind(t, pool.mountpoint, "bound")
    write_file(os.path.join(place, "last"), b"y")
    daemon.stop(wait=SECONDS)
    run(["umount", place])
    daemon.start()
    pool.wait_mounted()
    same(read_file(os.path.join(pool.mountpoint, "last")), b"y", "contents after the daemon ended in order")
    pool.check()


@options(seconds=120)
def test_writes_after_a_forced_export_fail(t):
    """A file held open over `pool export --force` takes no more writes: what was taken before is there after the import."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    path = os.path.join(pool.mountpoint, "f")
    held = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(held, b"before")
    daemon.refused("unmount", "pool", "export", "tank", code=7)
    daemon.cli("pool", "export", "--force", "tank", timeout=SECONDS)
    for _ in range(3):
        refused_with(errno.EIO, lambda: os.write(held, b"after"))
    refused_with(errno.EIO, lambda: os.fsync(held))
    os.close(held)
    daemon.cli("pool", "import", "--search", t.path("disks"), "tank")
    pool.mount()
    same(read_file(path), b"before", "contents")
    pool.check()


@options(seconds=120)
def test_an_aborted_connection_is_no_unmount(t):
    """A mount whose connection somebody aborts is shown as waiting, with the reason, and is there again after a restart."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    write_file(os.path.join(pool.mountpoint, "f"), b"x")
    connection = str(os.minor(os.stat(pool.mountpoint).st_dev))
    control = t.mkdir("control")
    run(["mount", "-t", "fusectl", "none", control])
    t.defer(lambda: run(["umount", control]))
    with open(os.path.join(control, connection, "abort"), "w") as f:
        f.write("1")
    wait_for(lambda: mount_state(daemon, "tank")[0] == "waiting", 30, "the mount to be seen dead", 0.05)
    state = mount_state(daemon, "tank")
    check("aborted" in state[1], "it does not say why: %s", state)
    check("by somebody else" not in daemon.log_text(), "it is taken for an unmount\n%s", daemon.log_tail())
    check(not is_mounted(pool.mountpoint), "the dead mount is still there")
    daemon.restart()
    pool.wait_mounted()
    same(read_file(os.path.join(pool.mountpoint, "f")), b"x", "contents")
    # `umount -f` of a mount in use fails, but aborts
    with open(os.path.join(pool.mountpoint, "f"), "rb"):
        run(["umount", "-i", "-f", pool.mountpoint], ok=False)
        wait_for(lambda: mount_state(daemon, "tank")[0] == "waiting", 30, "the mount to be seen dead", 0.05)
    pool.crash()
    pool.umount()


@options(seconds=120)
def test_unmount_says_what_could_not_be_stored(t):
    """On a pool that lost all its devices, `umount` ends, and says that what was written last is not stored."""
    daemon = Daemon(t).start()
    pool = daemon.pool(geometry=(1, 0), size=GIB)
    pool.mount()
    write_file(os.path.join(pool.mountpoint, "f"), b"x" * 100000)
    for device in pool.devices:
        os.truncate(device, 0)
    wait_for(lambda: daemon.cli("pool", "sync", "tank", ok=False).rc != 0, 60, "the pool to stop writing")
    line = daemon.refused("unmounted, but", "umount", pool.mountpoint, timeout=SECONDS * 2)
    check("durable" in line, "%s", line)
    check(not is_mounted(pool.mountpoint), "it is still mounted")
    same(daemon.json("mount"), [], "mounts")
    check(daemon.alive(), "the daemon is gone")
    daemon.cli("pool", "export", "--force", "tank", ok=False)


@options(seconds=120)
def test_a_suspended_pool_is_exported_with_its_mount(t):
    """A pool that has stopped writing is exported without force, mounted as it is; with its devices back it is imported and mounted
    again by hand, with what was acknowledged."""
    daemon = Daemon(t).start()
    pool = daemon.pool(geometry=(1, 0), size=GIB)
    pool.mount()
    write_file(os.path.join(pool.mountpoint, "f"), b"x" * 100000)
    daemon.cli("pool", "sync", "tank")
    copies = t.mkdir("copies")
    for device in pool.devices:
        run(["cp", "--sparse=always", device, copies])
    write_file(os.path.join(pool.mountpoint, "g"), b"y" * 100000)
    for device in pool.devices:
        os.truncate(device, 0)
    wait_for(lambda: daemon.cli("pool", "sync", "tank", ok=False).rc != 0, 60, "the pool to stop writing")
    line = daemon.refused("restart the daemon", "fs", "create", "tank/more")
    t.step("%s", line)
    daemon.cli("pool", "export", "tank", timeout=SECONDS * 2)
    check(not is_mounted(pool.mountpoint), "it is still mounted")
    same((daemon.json("mount"), daemon.json("pool", "list")), ([], []), "mounts and pools")
    for device in pool.devices:
        run(["cp", "--sparse=always", os.path.join(copies, os.path.basename(device)), device])
    daemon.cli("pool", "import", "--search", os.path.dirname(pool.devices[0]), "tank")
    daemon.cli("mount", "tank", pool.mountpoint)
    same(os.path.getsize(os.path.join(pool.mountpoint, "f")), 100000, "size of what was synced")
