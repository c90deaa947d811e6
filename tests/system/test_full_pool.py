"""The full pool: an error at the write, nothing lost, removal always works, and the books are right."""
import errno
import hashlib
import os
import random

import trees
from lib import KIB, MIB, Daemon, Failure, check, options, same, wait_for


def fill(directory, seed, most, block=256 * KIB):
    """Writes files until the first ENOSPC; (bytes accepted, name -> (size, digest)). An error that comes later than the
    write, at fsync or close, is a lost buffered write, and fails the test."""
    r = random.Random(seed)
    accepted, files = 0, {}
    while accepted < most:
        name = "fill%05d" % len(files)
        h, size, full = hashlib.sha256(), 0, False
        try:
            fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as e:
            same(e.errno, errno.ENOSPC, "error of a create in the full pool")
            return accepted, files
        try:
            while size < 32 * MIB:
                data = r.randbytes(block)
                try:
                    n = os.write(fd, data)
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise
                    full = True
                    break
                h.update(data[:n])
                size += n
            try:
                os.fsync(fd)
            except OSError as e:
                raise Failure("write accepted the data, fsync says %s: a lost buffered write" % e) from None
        finally:
            os.close(fd)
        accepted += size
        files[name] = (size, h.hexdigest())
        if full:
            return accepted, files
    raise Failure("%d bytes accepted, more than there is room for" % accepted)


def verify(directory, files):
    for name, (size, digest) in files.items():
        path = os.path.join(directory, name)
        same(os.path.getsize(path), size, "size of " + name)
        same(trees.digest(path), digest, "content of " + name)


def empty(directory, files):
    for name in files:
        os.unlink(os.path.join(directory, name))


def settled_free(pool):
    """Free bytes once two commits in a row leave them as they are."""
    last = -1
    for _ in range(60):
        pool.sync()
        now = pool.free_bytes()
        if now == last:
            return now
        last = now
    return last


def wait_free(pool, wanted, what):
    """Waits until about so many bytes are free again: the kernel tells of the last close of a removed file a moment later."""
    def back():
        pool.sync()
        return abs(pool.free_bytes() - wanted) <= max(0.01 * wanted, 2 * MIB)
    wait_for(back, 60, lambda: "%s, %d bytes were free at the beginning, %d are now" % (what, wanted, pool.free_bytes()), 0.2)


@options(seconds=300, long_seconds=600)
def test_fill_and_empty_ten_times(t):
    """ENOSPC at the write, df within 2 % of what could be written, rm works, and ten rounds end where they began."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=t.size(160, 512) * MIB)
    directory = pool.mount()
    begin = settled_free(pool)
    raw = pool.k * pool.size
    check(begin > raw * 0.75, "only %d MiB of %d MiB are free in an empty pool", begin // MIB, raw // MIB)
    for n in range(10):
        promised = settled_free(pool)
        accepted, files = fill(directory, t.seed + n, raw * 2)
        t.step("round %d: df promised %.1f MiB, %.1f MiB were written", n + 1, promised / MIB, accepted / MIB)
        check(abs(accepted - promised) <= 0.02 * promised, "df promised %d bytes, %d could be written (%.1f %%)",
              promised, accepted, 100.0 * accepted / promised)
        if n in (0, 9):
            pool.restart()
            verify(directory, files)
            pool.check()
        try:
            with open(os.path.join(directory, "one more"), "wb") as f:
                f.write(bytes(4 * MIB))
            raise Failure("a full pool takes 4 MiB more")
        except OSError as e:
            same(e.errno, errno.ENOSPC, "error of a write into the full pool")
        if os.path.exists(os.path.join(directory, "one more")):
            os.unlink(os.path.join(directory, "one more"))
        empty(directory, files)
        wait_free(pool, begin, "round %d" % (n + 1))
    pool.check()


@options(seconds=240)
def test_full_with_small_files_and_overwrites(t):
    """A pool filled with small files: removal, truncation and overwriting go on, nothing that was accepted is lost."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=96 * MIB)
    directory = pool.mount()
    made = []
    try:
        for i in range(2_000_000):
            path = os.path.join(directory, "s%06d" % i)
            with open(path, "wb", buffering=0) as f:
                made.append(path)
                check(f.write(b"%06d" % i * 1000) == 6000, "a short write")
    except OSError as e:
        same(e.errno, errno.ENOSPC, "error of the full pool")
    t.step("full after %d files", len(made))
    last = made.pop()
    pool.restart()
    if os.path.exists(last):
        os.unlink(last)
    for i, path in enumerate(made):
        if i % 50 == 0:
            with open(path, "rb") as f:
                same(f.read(), b"%06d" % i * 1000, "content of " + path)
    # the reserve carries removals even when each frees next to nothing
    os.truncate(made[0], 0)
    for path in made[1::2]:
        os.unlink(path)
    pool.sync()

    def writes_again():
        pool.sync()
        try:
            with open(os.path.join(directory, "after"), "wb") as f:
                f.write(bytes(MIB))
            return True
        except OSError:
            return False
    wait_for(writes_again, 60, "room after half of the files were removed", 1)
    pool.check()
    for path in made[::2]:
        os.unlink(path)
    pool.check()


@options(seconds=120)
def test_full_pool_keeps_serving_databases(t):
    """In a full pool an overwrite in place either works or says ENOSPC; old content stays readable after a crash."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=128 * MIB)
    directory = pool.mount()
    path = os.path.join(directory, "data")
    old = os.urandom(8 * MIB)
    with open(path, "wb") as f:
        f.write(old)
        os.fsync(f.fileno())
    fill(directory, t.seed, pool.k * pool.size * 2)
    fd = os.open(path, os.O_RDWR)
    state = bytearray(old)
    refused = 0
    try:
        for _ in range(400):
            at, data = t.random.randrange(0, len(state) // 4096) * 4096, t.random.randbytes(4096)
            try:
                n = os.pwrite(fd, data, at)
                state[at:at + n] = data[:n]
            except OSError as e:
                same(e.errno, errno.ENOSPC, "error of an overwrite")
                refused += 1
        os.fsync(fd)
    finally:
        os.close(fd)
    t.step("%d of 400 overwrites refused", refused)
    pool.crash()
    with open(path, "rb") as f:
        check(f.read() == bytes(state), "content after overwrites in a full pool and a crash")
    pool.check()


@options(seconds=120)
def test_allocating_and_writing_beside_what_is_there(t):
    """In a nearly full pool fallocate over data that is there works, also in a file with a hole; and what a removal or a cut
    frees can be allocated and written at once."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=192 * MIB)
    pool.mount()
    block = random.Random(t.seed).randbytes(MIB)

    def free():
        s = os.statvfs(pool.mountpoint)
        return s.f_bavail * s.f_frsize

    path = os.path.join(pool.mountpoint, "holey")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    t.defer(os.close, fd)
    size = MIB
    os.pwrite(fd, block, 0)
    while free() > 24 * MIB:
        size += MIB
        os.pwrite(fd, block, size)
    os.fsync(fd)
    size += MIB
    check(size > 2 * free(), "%d bytes of data, %d free", size, free())
    os.posix_fallocate(fd, 0, size)
    same(os.fstat(fd).st_size, size, "size")
    for _ in range(5):
        # freed, and not committed yet
        os.ftruncate(fd, MIB)
        with open(path + "2", "w+b", buffering=0) as other:
            os.posix_fallocate(other.fileno(), 0, size - 32 * MIB)
            for at in range(0, size - 32 * MIB, MIB):
                same(os.pwrite(other.fileno(), block, at), MIB, "bytes written at %d" % at)
        os.unlink(path + "2")
        for at in range(0, size - 32 * MIB, MIB):
            same(os.pwrite(fd, block, at), MIB, "bytes written at %d" % at)
