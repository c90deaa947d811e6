"""What fsync acknowledged is there after kill -9 and after a power cut; unsynced data is never older than five seconds."""
import mmap
import os
import sys
import time

import trees
from lib import COMMIT_SECONDS, GIB, KIB, MIB, Daemon, check, here, options, python, run, same, wait_for
from proc import ended
from syscalls import read_file, write_file

sys.path.insert(0, here("workers"))
from synced_writer import verify  # noqa: E402


def acks_of(path):
    with open(path) as f:
        return [line for line in f.read().split("\n")[:-1] if line]


def start_writer(t, directory, out):
    with open(out, "a") as f:
        return t.spawn(python("synced_writer.py", directory, t.seed), stdout=f)


@options(seconds=180, long_seconds=420)
def test_fsync_survives_kill(t):
    """kill -9 at random moments: all that fsync acknowledged is there, renames are whole, check --deep is clean."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=2 * GIB)
    directory = os.path.join(pool.mount(), "d")
    os.mkdir(directory)
    pool.sync()
    out = t.path("acks")
    write_file(out)
    for n in range(t.size(5, 20)):
        before = len(acks_of(out))
        writer = start_writer(t, directory, out)
        wait_for(lambda: len(acks_of(out)) > before + 3, 60, "the writer to get going")
        time.sleep(t.random.uniform(0, 2))
        daemon.kill()
        ended(writer, 60)
        daemon.start()
        pool.wait_mounted()
        wrong = verify(directory, t.seed, acks_of(out))
        check(not wrong, "after kill %d: %s", n + 1, wrong[:5])
        if n % 4 == 0:
            pool.check()
        t.step("kill %d: %d acknowledged, all there", n + 1, len(acks_of(out)))
    pool.check()
    same(pool.scrub().damaged, 0, "damage found by scrub")


@options(seconds=240, long_seconds=480)
def test_power_cut(t):
    """Copies of the device files taken at one frozen moment import elsewhere with everything acknowledged until then."""
    daemon = Daemon(t, "first").start()
    pool = daemon.pool(size=GIB)
    directory = os.path.join(pool.mount(), "d")
    os.mkdir(directory)
    pool.sync()
    out = t.path("acks")
    write_file(out)
    start_writer(t, directory, out)
    other = Daemon(t, "second").start()
    for n in range(t.size(3, 10)):
        time.sleep(t.random.uniform(0.5, 2.5))
        cut = t.mkdir("cut")
        daemon.freeze()
        # what was acknowledged before this line has to be in the copies
        acks = acks_of(out)
        for device in pool.devices:
            run(["cp", "--sparse=always", "--reflink=auto", device, cut], timeout=120)
        daemon.thaw()
        # a power cut that takes up to m devices along
        for device in t.random.sample(pool.devices, t.random.choice([0, 0, 1, 2])):
            os.unlink(os.path.join(cut, os.path.basename(device)))
        other.cli("pool", "import", "--search", cut, "tank")
        mnt = t.mkdir("mnt-cut")
        other.cli("mount", "tank", mnt)
        wrong = verify(os.path.join(mnt, "d"), t.seed, acks)
        check(not wrong, "cut %d: %s", n + 1, wrong[:5])
        other.cli("umount", mnt)
        other.cli("check", "tank", "--deep", timeout=300)
        other.cli("pool", "export", "tank")
        run(["rm", "-r", cut])
        t.step("cut %d: %d acknowledged, all there", n + 1, len(acks))


def no_commit_ends(daemon):
    """Whether none ends in a time in which one would begin and end: a pool without changes makes none."""
    before = daemon.json("pool", "status", "tank")["txg"]
    time.sleep(2 * COMMIT_SECONDS)
    return daemon.json("pool", "status", "tank")["txg"] == before


@options(seconds=90)
def test_unsynced_data_is_young(t):
    """Data nobody synced survives kill -9 once it is older than the commit interval; so does what `pool sync` committed."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    digest = trees.random_file(os.path.join(pool.mountpoint, "old"), 20 * MIB, t.seed)
    os.mkdir(os.path.join(pool.mountpoint, "dir"))
    small = write_file(os.path.join(pool.mountpoint, "dir", "small"), b"small")
    os.setxattr(small, "user.x", b"1")
    # the kernel may hold writes back for as long again before the daemon sees them, and a commit takes the time it takes
    time.sleep(2 * COMMIT_SECONDS + 1)
    wait_for(lambda: no_commit_ends(daemon), 60, "the commits to be over", 0)
    daemon.kill()
    daemon.start()
    pool.wait_mounted()
    same(trees.digest(os.path.join(pool.mountpoint, "old")), digest, "data older than the interval")
    same((read_file(small), os.getxattr(small, "user.x")), (b"small", b"1"), "a small file and its attribute")
    digest = trees.random_file(os.path.join(pool.mountpoint, "committed"), 20 * MIB, t.seed)
    pool.sync()
    pool.crash()
    same(trees.digest(os.path.join(pool.mountpoint, "committed")), digest, "data before pool sync")
    pool.check()


@options(seconds=90)
def test_order_of_operations(t):
    """After kill -9 the tree is one that existed: names, counted up without any fsync, are there up to some number, without gaps."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    for n in range(3):
        top = os.path.join(pool.mountpoint, "r%d" % n)
        os.mkdir(top)
        pool.sync()
        deadline, i = time.monotonic() + t.random.uniform(1, 7), 0
        while time.monotonic() < deadline:
            os.mkdir(os.path.join(top, "%06d" % i))
            os.rename(os.path.join(top, "%06d" % i), os.path.join(top, "x%06d" % i))
            if i >= 10:
                os.rmdir(os.path.join(top, "x%06d" % (i - 10)))
            i += 1
        daemon.kill()
        daemon.start()
        pool.wait_mounted()
        names = sorted(os.listdir(top))
        numbers = sorted(int(x.lstrip("x")) for x in names)
        t.step("%d made, there: %s", i, names)
        check(len(numbers) <= 11, "more names at once than ever were: %s", names)
        check(numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True, "a gap in what was made in order: %s", names)
        check(sum(not x.startswith("x") for x in names) <= 1, "a rename overtook a later operation: %s", names)
        pool.check()


@options(seconds=120)
def test_unlinked_open_files_are_cleaned_up(t):
    """Files that were open and nameless at a crash give their space back."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    pool.sync()
    empty = pool.free_bytes()
    held = []
    for i in range(20):
        path = os.path.join(pool.mountpoint, "f%d" % i)
        trees.random_file(path, 4 * MIB, t.seed + i)
        held.append(os.open(path, os.O_RDONLY))
        os.unlink(path)
    pool.sync()
    check(pool.free_bytes() < empty - 70 * MIB, "open files without a name take no space")
    daemon.kill()
    for fd in held:
        os.close(fd)
    daemon.start()
    pool.wait_mounted()

    def back():
        pool.sync()
        return pool.free_bytes() > empty - 4 * MIB
    wait_for(back, 60, "the space of nameless files to come back", 0.5)
    pool.check()


@options(seconds=120)
def test_fsync_variants(t):
    """fsync, fdatasync, O_SYNC, O_DSYNC, msync and fsync of a directory each make durable what they name."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    d = pool.mount()
    wanted = {}

    def start(name, flags=0):
        fd = os.open(os.path.join(d, name), os.O_RDWR | os.O_CREAT | flags, 0o644)
        wanted[name] = os.urandom(t.random.choice([10, 4096, 100 * KIB, 3 * MIB]))
        return fd, wanted[name]
    for n in range(4):
        fd, data = start("fsync%d" % n)
        os.write(fd, data)
        os.fsync(fd)
        fd, data = start("fdatasync%d" % n)
        os.write(fd, data)
        os.fdatasync(fd)
        for name, flag in (("osync", os.O_SYNC), ("odsync", os.O_DSYNC)):
            fd, data = start("%s%d" % (name, n), flag)
            for at in range(0, len(data), 64 * KIB):
                os.pwrite(fd, data[at:at + 64 * KIB], at)
        fd, data = start("msync%d" % n)
        os.ftruncate(fd, len(data))
        with mmap.mmap(fd, len(data)) as m:
            m[:] = data
            m.flush()
        fd, data = start("direct%d" % n)
        os.write(fd, data)
        os.close(fd)
        fd = os.open(os.path.join(d, "direct%d" % n), os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        with mmap.mmap(-1, 4096) as m:
            m[:] = data[:4096].ljust(4096, b"\0")
            os.pwritev(fd, [m], 0)
        os.fsync(fd)
        wanted["direct%d" % n] = data if len(data) > 4096 else data.ljust(4096, b"\0")
    top = os.open(d, os.O_RDONLY)
    write_file(os.path.join(d, "dir-fsync"), b"")
    os.mkdir(os.path.join(d, "dir"))
    os.symlink("target", os.path.join(d, "link"))
    os.rename(os.path.join(d, "fsync0"), os.path.join(d, "renamed"))
    os.unlink(os.path.join(d, "fsync1"))
    wanted["renamed"] = wanted.pop("fsync0")
    del wanted["fsync1"]
    os.fsync(top)
    daemon.kill()
    daemon.start()
    pool.wait_mounted()
    for name, data in wanted.items():
        check(read_file(os.path.join(d, name)) == data, "content of %s", name)
    same(sorted(n for n in os.listdir(d) if n not in wanted), ["dir", "dir-fsync", "link"], "names after fsync of the directory")
    same(os.readlink(os.path.join(d, "link")), "target", "the link")
    pool.check()
