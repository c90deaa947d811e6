"""Bad input: each mistake gets its own clear error and exit status, nothing is overwritten, nothing panics."""
import os
import shutil
import socket

import trees
from lib import MIB, Daemon, Failure, binary, check, is_mounted, options, run, same, scribble

GOOD = 256 * MIB


def image(t, name, size=GOOD):
    return t.disk(name, size)


def fingerprint(path):
    """What a device holds, to see that nobody wrote to it."""
    return trees.digest(path)


def create(*devices, name="tank", geometry="2+2"):
    return ["pool", "create", name, *(["--geometry", geometry] if geometry else []), *devices]


@options(seconds=120)
def test_devices(t):
    """Too small, missing, duplicated, a directory, too few, in another pool, mounted, with a filesystem: refused, untouched."""
    daemon = Daemon(t).start()
    good = [image(t, "good%d" % i) for i in range(4)]
    said = {}

    def refused(what, pattern, *devices, **kwargs):
        before = {d: fingerprint(d) for d in good}
        said[what] = daemon.refused(pattern, *create(*devices, **kwargs))
        same({d: fingerprint(d) for d in good}, before, "devices after a refusal")
        check("tank" not in daemon.pools(), "a refused pool is listed")

    refused("too small", r"small|least|minimum", *good[:3], image(t, "small", 64 * 1024))
    check("small.img" in said["too small"], "the error does not name the device: %s", said["too small"])
    refused("missing", r"no such|not exist|not found", *good[:3], t.path("disks", "nothere"))
    refused("missing block device", r"no such|not exist|not found", *good[:3], "/dev/nothere")
    refused("directory", r"directory|neither|not a (block|regular)|regular file", *good[:3], t.mkdir("somedir"))
    refused("twice", r"twice|duplicate|same|more than once", *good[:3], good[0])
    alias = t.path("alias")
    os.symlink(good[0], alias)
    refused("twice by another name", r"twice|duplicate|same|more than once", *good[:3], alias)
    hard = t.path("disks", "hard.img")
    os.link(good[0], hard)
    refused("twice by a hard link", r"twice|duplicate|same|more than once", *good[:3], hard)
    os.unlink(hard)
    refused("character device", r"neither|not a|character", *good[:3], "/dev/null")
    refused("too few", r"at least 4|needs 4|4 devices|fewer|only 3", *good[:3])
    refused("geometry 0+2", r"geometry|k", *good[:3], geometry="0+2")
    refused("geometry 200+100", r"geometry|255", *good, geometry="200+100")
    refused("geometry nonsense", r"geometry|K\+M", *good, geometry="two+two")
    refused("name too long", r"name|long", *good, name="n" * 300)
    refused("name empty", r"name|empty", *good, name="")
    for bad in ("a/b", "..", "white space", "-x", "n\u00e4me"):
        result = daemon.cli("pool", "create", bad, "--geometry", "2+2", *good, ok=False)
        check(result.rc not in (0, 101), "the pool name %r: %s", bad, result)
    refused("size nonsense", r"size|invalid|no such|not found|not exist", *good[:3], t.path("disks", "new.img") + ":12parsecs")
    check(not os.path.exists(t.path("disks", "new.img")), "a refused create made a file")
    check(len(set(said.values())) >= 9, "different mistakes share their errors: %s", said)

    # a filesystem on it, and mounted
    fs, backing = t.loop("fs", GOOD)
    run(["mkfs.ext4", "-q", fs])
    before = fingerprint(backing)
    refused("with a filesystem", r"ext4.*--force|--force.*ext4|filesystem.*--force", *good[:3], fs)
    same(fingerprint(backing), before, "the device with a filesystem")
    mnt = t.mkdir("fsmnt")
    run(["mount", fs, mnt])
    t.defer(run, ["umount", mnt], 30, False)
    refused("mounted", r"mounted|in use|busy", *good[:3], fs)
    line = daemon.refused(r"mounted|in use|busy", *create("--force", *good[:3], fs))
    check(os.path.exists(mnt) and is_mounted(mnt), "the mount is gone after: %s", line)
    run(["umount", mnt])
    # --force is enough for a filesystem that nobody uses
    daemon.cli(*create("--force", *good[:3], fs))
    check("tank" in daemon.pools(), "not created with --force")
    # now they are members
    line = daemon.refused(r"in use|already|belongs|member|pool", *create(*good, name="second"))
    check("tank" in line, "the error does not name the pool the device is in: %s", line)
    daemon.refused(r"exist", *create(*[image(t, "x%d" % i) for i in range(4)], name="tank"))
    daemon.refused(r"in use|already|member|belongs|busy", *create("--force", *good, name="second"))


@options(seconds=120)
def test_members_of_an_exported_pool(t):
    """Devices of an exported pool are not taken for another without --force; the pool imports again untouched."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GOOD)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "f"), 5 * MIB, t.seed)
    pool.umount()
    daemon.cli("pool", "export", "tank")
    line = daemon.refused(r"--force", *create(*pool.devices, name="second"))
    check("tank" in line, "the error does not name the pool: %s", line)
    daemon.refused(r"no|not found|unknown", "pool", "status", "tank")
    daemon.cli("pool", "import", "--search", t.path("disks"), "tank")
    pool.mount(pool.mountpoint)
    same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "the file")


@options(seconds=120)
def test_unknown_things(t):
    """Unknown pools, devices, filesystems, properties, mount points in use, and verbs: each its own error and exit status."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GOOD)
    directory = pool.mount()
    nope = r"no |not|unknown"
    for args in (["pool", "status", "nope"], ["pool", "sync", "nope"], ["pool", "scrub", "nope"], ["pool", "export", "nope"], ["pool", "destroy", "nope"],
                 ["check", "nope"], ["mount", "nope", directory], ["mount", "tank/nope", t.mkdir("m2")], ["fs", "create", "nope/x"], ["fs", "list", "nope"],
                 ["fs", "destroy", "tank/nope"], ["pool", "offline", "tank", "/nope"], ["pool", "online", "tank", "/nope"],
                 ["pool", "replace", "tank", "/nope", image(t, "r")], ["umount", t.mkdir("m3")], ["pool", "import", "--search", t.mkdir("empty"), "nope"],
                 ["fs", "get", "tank", "nonsense"], ["fs", "set", "tank", "nonsense=1"], ["debug", "locate", "/etc/passwd"], ["debug", "locate", os.path.join(directory, "nope")]):
        daemon.refused(nope, *args)
    daemon.refused(r"in use|busy|mounted|exist", "mount", "tank", directory)
    occupied = t.mkdir("occupied")
    run(["mount", "-t", "tmpfs", "none", occupied])
    t.defer(run, ["umount", occupied], 30, False)
    daemon.refused(r"in use|busy|mount", "mount", "tank", occupied)
    daemon.refused(r"director|no such|not", "mount", "tank", t.path("not there"))
    daemon.refused(r"director|not", "mount", "tank", image(t, "file"))
    daemon.refused(r"long|name", "fs", "create", "tank/" + "x" * 300)
    daemon.cli("fs", "create", "tank/one")
    daemon.refused(r"exist", "fs", "create", "tank/one")
    held = os.open(directory, os.O_RDONLY)
    daemon.refused(r"mount|busy|in use|--force", "pool", "export", "tank")
    os.close(held)
    daemon.refused(r"--force|mount|busy|in use", "pool", "destroy", "tank")
    check("tank" in daemon.pools(), "the pool went")
    # usage errors are the parser's, several lines, but never success and never a panic
    for args in ([], ["pool"], ["nonsense"], ["pool", "create"], ["umount"], ["pool", "create", "x", "--geometry"], ["--nonsense"]):
        result = daemon.cli(*args, ok=False)
        check(result.rc not in (0, 101) and result.err.strip(), "qrvsa %s: %s", args, result)
    # without a daemon
    result = run([binary("qrvsa"), "--socket", t.path("nobody.sock"), "pool", "list"], ok=False)
    check(result.rc not in (0, 101) and len(result.err.strip().splitlines()) == 1, "without a daemon: %s", result)
    check("nobody.sock" in result.err, "the error does not name the socket: %s", result.err)
    for what in ("qrvsa", "qrvsad"):
        same(run([binary(what), "--help"]).rc, 0, what + " --help")
        same(run([binary(what), "--version"]).rc, 0, what + " --version")


@options(seconds=180)
def test_damaged_labels(t):
    """Any part of a label damaged: the pool imports from the other labels, or says clearly why not; scrub or import heals them."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GOOD)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "f"), 5 * MIB, t.seed)
    pool.sync()
    daemon.stop()
    keep = t.mkdir("keep")
    for d in pool.devices:
        run(["cp", "--sparse=always", d, keep])

    def restore():
        for d in pool.devices:
            run(["cp", "--sparse=always", os.path.join(keep, os.path.basename(d)), d])

    def works(what, healthy=None):
        daemon.start()
        pool.wait_mounted()
        same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "the file, " + what)
        status = pool.status()
        if healthy is not None:
            same(status.healthy, healthy, "healthy, " + what)
        t.step("%s: %s", what, status.health)
        daemon.stop()
        restore()

    # the first and the last MiB of one device, of m devices, at one end of all
    for what, parts in (("start of one", [(0, "front")]), ("end of one", [(1, "back")]), ("both ends of one", [(2, "front"), (2, "back")]),
                        ("both ends of two", [(0, "front"), (0, "back"), (3, "front"), (3, "back")]), ("start of all", [(i, "front") for i in range(4)]),
                        ("end of all", [(i, "back") for i in range(4)])):
        for i, where in parts:
            # labels only: the first or last 64 KiB
            scribble(pool.devices[i], 0 if where == "front" else GOOD - 64 * 1024, 64 * 1024)
        works(what)
    # single bytes all over both labels of all devices: whatever is hit, no panic, and right or refused
    for n in range(t.size(6, 30)):
        for d in pool.devices[:2]:
            for base in (0, GOOD - MIB):
                for _ in range(20):
                    scribble(d, base + t.random.randrange(MIB), 1)
        works("single bytes, round %d" % (n + 1))
    # everything at both ends of three devices: refused, clearly
    for d in pool.devices[:3]:
        scribble(d, 0, 4 * MIB)
        scribble(d, GOOD - 4 * MIB, 4 * MIB)
    daemon.start()
    check(not is_mounted(pool.mountpoint) or not os.path.exists(os.path.join(pool.mountpoint, "f")), "a pool of one device is mounted")
    line = daemon.refused(r"device|found|missing|label", "pool", "import", "--search", t.path("disks"), "tank")
    check("3" in line or "1" in line or "missing" in line, "the error does not say how much is missing: %s", line)
    daemon.stop()
    restore()
    works("as it was", healthy=True)


@options(seconds=120)
def test_second_daemon(t):
    """A second daemon on the same state, socket or devices is refused, and the first goes on unhurt."""
    first = Daemon(t, "first").start()
    pool = first.pool(size=GOOD)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "f"), 5 * MIB, t.seed)
    pool.sync()
    for sock, state in ((first.socket, t.mkdir("other.state")), (t.path("other.sock"), first.state)):
        result = run([binary("qrvsad"), "--socket", sock, "--state", state], timeout=30, ok=False)
        check(result.rc not in (0, 101), "a second daemon on the same %s started: %s", "socket" if sock == first.socket else "state", result)
        check(any("use" in line or "another" in line or "lock" in line for line in result.err.lower().splitlines() + result.out.lower().splitlines()),
              "no clear error: %s", result)
    second = Daemon(t, "second").start()
    second.refused(r"in use|busy|locked|another", "pool", "import", "--search", t.path("disks"), "tank")
    second.refused(r"in use|busy|locked|another|belongs|member", *create(*pool.devices, name="mine"))
    second.refused(r"in use|busy|locked|another|belongs|member", *create("--force", *pool.devices, name="mine"))
    same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "the file")
    check(pool.status().healthy, "%s", pool.status())
    pool.restart()
    same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "the file after a restart")


@options(seconds=120)
def test_clones_and_strangers(t):
    """A copy of a member beside it is recognised; a device of another pool or of an older time is never used as a member."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GOOD)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "f"), 5 * MIB, t.seed)
    pool.umount()
    daemon.cli("pool", "export", "tank")
    clone = t.path("disks", "clone.img")
    run(["cp", "--sparse=always", pool.devices[0], clone])
    result = daemon.cli("pool", "import", "--search", t.path("disks"), "tank", ok=False)
    t.step("import beside a clone: exit %s, %s", result.rc, result.err.strip())
    check("clone.img" in result.err or result.rc == 0, "the clone is not named: %s", result)
    check(result.rc != 101, "panic")
    if result.rc == 0:
        check(len(pool.status().devices) == 4, "a clone became a member: %s", pool.status())
        check("clone" in daemon.log_text() or "clone" in result.err, "neither the log nor the answer tells of the clone")
        daemon.cli("pool", "export", "tank")
    os.unlink(clone)
    # a device of another pool under the name of a member
    other = [t.path("other%d.img" % i) for i in range(4)]
    daemon.cli("pool", "create", "other", "--geometry", "2+2", *["%s:%d" % (o, GOOD) for o in other])
    daemon.cli("pool", "export", "other")
    own = pool.devices[1] + ".own"
    os.rename(pool.devices[1], own)
    shutil.copyfile(other[1], pool.devices[1])
    os.rename(own, t.path("own.img"))
    daemon.cli("pool", "import", "--search", t.path("disks"), "tank")
    status = pool.status()
    check(not status.healthy, "a device of another pool counts as a member: %s", status)
    pool.mount(pool.mountpoint)
    same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "the file")
    pool.umount()
    daemon.cli("pool", "export", "tank")
    os.rename(t.path("own.img"), pool.devices[1])
    # an older copy of a member in its place
    daemon.cli("pool", "import", "--search", t.path("disks"), "tank")
    pool.wait_healthy()
    daemon.stop()
    run(["cp", "--sparse=always", pool.devices[2], t.path("older.img")])
    daemon.start()
    pool.mount(pool.mountpoint)
    new = trees.random_file(os.path.join(pool.mountpoint, "f"), 9 * MIB, t.seed + 1)
    pool.umount()
    daemon.stop()
    run(["cp", "--sparse=always", t.path("older.img"), pool.devices[2]])
    daemon.start()
    pool.mount(pool.mountpoint)
    same(trees.digest(os.path.join(pool.mountpoint, "f")), new, "the file with an older copy of a member")
    pool.scrub()
    same(pool.scrub().damaged, 0, "damage after a scrub")


@options(seconds=90)
def test_replacement_devices(t):
    """replace refuses a device that is too small, a member, or carries a filesystem; the pool stays as it was."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GOOD)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "f"), 5 * MIB, t.seed)
    daemon.refused(r"small", "pool", "replace", "tank", pool.devices[0], image(t, "small", 32 * MIB))
    daemon.refused(r"in use|member|already|same", "pool", "replace", "tank", pool.devices[0], pool.devices[1])
    fs, backing = t.loop("fs", GOOD)
    run(["mkfs.xfs", "-q", "-f", fs], ok=False)
    run(["mkfs.ext4", "-q", "-F", fs])
    before = trees.digest(backing)
    daemon.refused(r"--force", "pool", "replace", "tank", pool.devices[0], fs)
    same(trees.digest(backing), before, "the refused replacement")
    check(pool.status().healthy, "%s", pool.status())
    same(trees.digest(os.path.join(pool.mountpoint, "f")), digest, "the file")


@options(seconds=60)
def test_nonsense_on_the_socket(t):
    """Garbage, huge and half requests on the socket do not end or block the daemon."""
    daemon = Daemon(t).start()
    held = []
    for data in (b"", b"\0" * 100_000, os.urandom(100_000), b"GET /\r\n\r\n", b"POST /pools HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n{",
                 b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{nope",
                 b"GET /" + b"%00../" * 1000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"[" * 100_000):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(daemon.socket)
        try:
            s.sendall(data)
        except OSError:
            pass
        held.append(s)  # half a request stays open
    check(daemon.alive(), "the daemon died")
    same(daemon.pools(), [], "pools")
    for s in held:
        s.close()
    same(daemon.pools(), [], "pools")
    if os.stat(daemon.socket).st_mode & 0o077:
        raise Failure("the socket is open to others: %o" % os.stat(daemon.socket).st_mode)
