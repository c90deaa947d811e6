"""File content: sparse files, fallocate, append, direct I/O, mmap, truncation, sizes, times, copy_file_range."""
import errno
import fcntl
import mmap
import os
import threading
import time

import syscalls
from lib import GIB, KIB, MIB, check, options, same
from syscalls import extents, fallocate, read_file, refuses, write_file


@options(anywhere=True)
def test_sparse(t):
    """Holes read as zeros, take no space, and SEEK_HOLE and SEEK_DATA find them, also after a restart."""
    pool = t.filesystem()
    path = os.path.join(pool.mountpoint, "sparse")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    places = [0, 10 * MIB, 10 * MIB + 300 * KIB, GIB, 3 * 1024 * GIB]
    for at in places:
        os.pwrite(fd, b"data" * 1024, at)
    os.ftruncate(fd, 4 * 1024 * GIB)
    os.fsync(fd)
    os.close(fd)
    pool.restart()
    fd = os.open(path, os.O_RDWR)
    check(os.fstat(fd).st_blocks * 512 < 4 * MIB, "five blocks of data take %d bytes", os.fstat(fd).st_blocks * 512)
    same(os.fstat(fd).st_size, 4 * 1024 * GIB, "size")
    found = extents(fd)
    for at in places:
        check(any(a <= at and at + 4096 <= b for a, b in found), "SEEK_DATA misses the data at %d: %s", at, found)
        same(os.pread(fd, 4097, at), b"data" * 1024 + b"\0", "data and the hole after it at %d" % at)
    check(all(b - a <= 2 * MIB for a, b in found), "holes are reported as data: %s", found)
    same(os.pread(fd, 4096, 2 * GIB), bytes(4096), "a hole")
    refuses(errno.ENXIO, os.lseek, fd, 4 * 1024 * GIB, os.SEEK_DATA)
    refuses(errno.ENXIO, os.lseek, fd, 4 * 1024 * GIB + 1, os.SEEK_HOLE)
    same(os.lseek(fd, 3 * 1024 * GIB + 10 * MIB, os.SEEK_HOLE), 3 * 1024 * GIB + 10 * MIB, "SEEK_HOLE in a hole")
    os.close(fd)


@options(anywhere=True)
def test_fallocate(t):
    """fallocate: preallocation, keep size, punch hole, zero range; reads agree in any order; the size is right."""
    pool = t.filesystem()
    path = os.path.join(pool.mountpoint, "f")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fallocate(fd, 0, 0, MIB)
    same((os.fstat(fd).st_size, os.pread(fd, MIB, 0)), (MIB, bytes(MIB)), "preallocated range")
    fallocate(fd, syscalls.FALLOC_KEEP_SIZE, MIB, MIB)
    same(os.fstat(fd).st_size, MIB, "size after KEEP_SIZE")
    model = bytearray(os.urandom(2 * MIB))
    os.pwrite(fd, model, 0)

    def both(mode, at, n):
        fallocate(fd, mode, at, n)
        end = min(at + n, len(model))
        if at < end:
            model[at:end] = bytes(end - at)
        if not mode & syscalls.FALLOC_KEEP_SIZE and at + n > len(model):
            model.extend(bytes(at + n - len(model)))
        check(os.pread(fd, len(model) + 10, 0) == bytes(model), "content after fallocate(%d, %d, %d)", mode, at, n)
    punch, zero, keep = syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_KEEP_SIZE, syscalls.FALLOC_ZERO_RANGE, syscalls.FALLOC_KEEP_SIZE
    for at, n in ((0, 4096), (100, 1), (128 * KIB - 1, 2), (200_001, 333_333), (MIB, 512 * KIB), (2 * MIB - 10, 20), (3 * MIB, 10)):
        both(punch, at, n)
    for at, n in ((5000, 5000), (131072, 131072), (2 * MIB - 7, 3), (2 * MIB - 100, 5000)):
        both(zero, at, n)
    both(zero | keep, len(model) - 5, 100)
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    fallocate(fd, punch, 0, len(model))
    os.fsync(fd)
    pool.sync()
    check(os.fstat(fd).st_blocks < before or before == 0, "punching a hole over everything frees nothing")
    refuses(errno.EINVAL, fallocate, fd, 0, 0, 0)
    refuses(errno.EINVAL, fallocate, fd, 0, -1, 10)
    os.close(fd)
    os.mkdir(path + "d")
    ro = os.open(path, os.O_RDONLY)
    refuses(errno.EBADF, fallocate, ro, 0, 0, 10)
    os.close(ro)


@options(anywhere=True)
def test_truncate_and_extend(t):
    """What truncation cut off is gone: growing again shows zeros, at every edge of blocks and records."""
    pool = t.filesystem()
    path = os.path.join(pool.mountpoint, "f")
    for size in (1, 100, 4095, 4096, 4097, 131071, 131072, 131073, 300_000, 5 * MIB + 3):
        for cut in sorted({0, 1, size // 2, max(size - 1, 0), size // 4096 * 4096}):
            write_file(path, b"\xaa" * size)
            os.truncate(path, cut)
            os.truncate(path, size + 5000)
            check(read_file(path) == b"\xaa" * cut + bytes(size + 5000 - cut), "after cutting %d bytes to %d and growing", size, cut)
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 10)
    os.pwrite(fd, b"end", 1000)
    same(os.pread(fd, 2000, 0), b"\xaa" * 10 + bytes(990) + b"end", "a gap left by a write behind the end")
    os.close(fd)
    refuses(errno.EINVAL, os.truncate, path, -1)
    refuses(errno.EISDIR, os.truncate, pool.mountpoint, 0)
    pool.restart()
    same(read_file(path), b"\xaa" * 10 + bytes(990) + b"end", "after a restart")


@options(anywhere=True)
def test_append(t):
    """O_APPEND from several processes loses nothing and tears nothing."""
    pool = t.filesystem()
    path = write_file(os.path.join(pool.mountpoint, "log"))
    count, writers = 500, 4

    def writer(who):
        def go():
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            for i in range(count):
                line = b"%d %05d " % (who, i) + b"x" * (i % 300) + b"\n"
                if os.write(fd, line) != len(line):
                    raise OSError("a short append")
            os.close(fd)
        return go
    results = [None] * writers
    threads = [threading.Thread(target=lambda k=k: results.__setitem__(k, syscalls.in_child(writer(k)))) for k in range(writers)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    same(results, [None] * writers, "writers")
    seen = {}
    for line in read_file(path).splitlines():
        who, i, tail = line.split(b" ", 2)
        same(int(i), seen.get(who, 0), "order of the lines of writer %s" % who)
        same(tail, b"x" * (int(i) % 300), "a line")
        seen[who] = int(i) + 1
    same(sorted(seen.values()), [count] * writers, "lines of each writer")
    # O_APPEND beats pwrite's offset on Linux
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    size = os.fstat(fd).st_size
    os.pwrite(fd, b"tail", 0)
    same(os.pread(fd, 10, size), b"tail", "pwrite on O_APPEND")
    os.close(fd)


@options(anywhere=True)
def test_direct_io(t):
    """O_DIRECT reads what was written buffered and the other way round."""
    pool = t.filesystem()
    path = os.path.join(pool.mountpoint, "d")
    data = os.urandom(MIB)
    write_file(path, data)
    buf = mmap.mmap(-1, MIB)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    same(os.readv(fd, [buf]), MIB, "bytes of a direct read")
    check(buf[:] == data, "a direct read after a buffered write")
    new = os.urandom(64 * KIB)
    small = mmap.mmap(-1, 64 * KIB)
    small[:] = new
    same(os.pwritev(fd, [small], 128 * KIB), 64 * KIB, "bytes of a direct write")
    data = data[:128 * KIB] + new + data[192 * KIB:]
    check(read_file(path) == data, "a buffered read after a direct write")
    same(os.preadv(fd, [buf], MIB), 0, "a direct read at the end")
    same(os.pwritev(fd, [small], MIB), 64 * KIB, "a direct write that extends")
    os.close(fd)
    pool.restart()
    check(read_file(path) == data + new, "after a restart")


@options(anywhere=True)
def test_mmap(t):
    """Shared mappings: what is stored is seen by read, what is written is seen in the mapping, and msync makes it last."""
    pool = t.filesystem()
    path = write_file(os.path.join(pool.mountpoint, "m"), bytes(300_000))
    fd = os.open(path, os.O_RDWR)
    m = mmap.mmap(fd, 300_000)
    m[100_000:100_005] = b"store"
    same(os.pread(fd, 5, 100_000), b"store", "read after a store into the mapping")
    os.pwrite(fd, b"write", 200_000)
    same(m[200_000:200_005], b"write", "the mapping after a write")
    m.flush()
    os.ftruncate(fd, 150_000)
    os.ftruncate(fd, 300_000)
    same(m[200_000:200_005], bytes(5), "the mapping after truncation and growth")
    other = mmap.mmap(fd, 300_000, prot=mmap.PROT_READ)
    m[0:3] = b"two"
    same(other[0:3], b"two", "a second mapping")
    private = mmap.mmap(fd, 300_000, flags=mmap.MAP_PRIVATE)
    private[0:3] = b"own"
    same(os.pread(fd, 3, 0), b"two", "a private store must not reach the file")
    m.flush()
    os.fsync(fd)
    for x in (m, other, private):
        x.close()
    os.close(fd)
    pool.restart()
    data = read_file(path)
    same((data[0:3], data[100_000:100_005], len(data)), (b"two", b"store", 300_000), "after a restart")
    # a program run from the mount
    program = os.path.join(pool.mountpoint, "prog")
    write_file(program, read_file("/bin/true"), 0o755)
    os.chmod(program, 0o755)
    same(syscalls.shell(program, "/").rc, 0, "running a program from the mount")


@options(anywhere=True)
def test_open_flags(t):
    """O_EXCL, O_TRUNC, O_NOFOLLOW, O_DIRECTORY, O_TMPFILE where there is one, modes of open on directories."""
    pool = t.filesystem()
    d = pool.mountpoint
    path = write_file(os.path.join(d, "f"), b"abc")
    refuses(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
    same(os.stat(path).st_size, 0, "size after O_TRUNC")
    os.symlink("f", os.path.join(d, "s"))
    refuses(errno.ELOOP, os.open, os.path.join(d, "s"), os.O_RDONLY | os.O_NOFOLLOW)
    refuses(errno.EEXIST, os.open, os.path.join(d, "s"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    refuses(errno.ENOTDIR, os.open, path, os.O_RDONLY | os.O_DIRECTORY)
    refuses(errno.ENOTDIR, os.open, os.path.join(path, "x"), os.O_RDONLY)
    refuses(errno.EISDIR, os.open, d, os.O_WRONLY)
    old = os.umask(0o027)
    os.close(os.open(os.path.join(d, "masked"), os.O_CREAT | os.O_WRONLY, 0o666))
    os.umask(old)
    same(os.stat(os.path.join(d, "masked")).st_mode & 0o7777, 0o640, "mode under umask 027")
    try:
        fd = os.open(d, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        same(e.errno, errno.EOPNOTSUPP, "error where O_TMPFILE is missing")
    else:
        os.write(fd, b"tmp")
        syscalls.link_open_file(fd, os.path.join(d, "named"))
        os.close(fd)
        same(read_file(os.path.join(d, "named")), b"tmp", "a linked O_TMPFILE")


@options(anywhere=True)
def test_times(t):
    """Nanosecond times, set and kept; UTIME_NOW and UTIME_OMIT; each operation moves the times it must."""
    pool = t.filesystem()
    d = pool.mountpoint
    path = write_file(os.path.join(d, "f"), b"x")
    for at, mt in ((0, 1), (1_234_567_890_123_456_789, 987_654_321_987_654_321), (4_102_444_800_000_000_001, 2_147_483_648_000_000_007), (-5, -1_000_000_001)):
        os.utime(path, ns=(at, mt))
        s = os.stat(path)
        same((s.st_atime_ns, s.st_mtime_ns), (at, mt), "times")
    pool.restart()
    s = os.stat(path)
    same(s.st_mtime_ns, -1_000_000_001, "mtime after a restart")
    os.symlink("f", os.path.join(d, "s"))
    os.utime(os.path.join(d, "s"), ns=(5, 6), follow_symlinks=False)
    same(os.lstat(os.path.join(d, "s")).st_mtime_ns, 6, "mtime of a symbolic link")

    def moves(action, file_m, file_c, dir_m, what):
        os.utime(path, ns=(10, 10)) if os.path.exists(path) else None
        os.utime(d, ns=(10, 10))
        c = os.stat(path).st_ctime_ns if os.path.exists(path) else 0
        time.sleep(0.02)
        action()
        if os.path.exists(path):
            s2 = os.stat(path)
            same(s2.st_mtime_ns != 10, file_m, what + " moves mtime")
            same(s2.st_ctime_ns > c, file_c, what + " moves ctime")
        same(os.stat(d).st_mtime_ns != 10, dir_m, what + " moves the directory's mtime")

    def write():
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"y")
        os.close(fd)
    moves(write, True, True, False, "write")
    moves(lambda: os.truncate(path, 5), True, True, False, "truncate")

    def allocate(mode, offset, length):
        fd = os.open(path, os.O_RDWR)
        fallocate(fd, mode, offset, length)
        os.close(fd)
    for mode in (0, syscalls.FALLOC_KEEP_SIZE, syscalls.FALLOC_KEEP_SIZE | syscalls.FALLOC_PUNCH_HOLE, syscalls.FALLOC_ZERO_RANGE):
        moves(lambda mode=mode: allocate(mode, 0, 3), True, True, False, "fallocate %d" % mode)
    moves(lambda: os.chmod(path, 0o600), False, True, False, "chmod")
    moves(lambda: os.chown(path, 1, 1), False, True, False, "chown")
    moves(lambda: os.link(path, path + "2"), False, True, True, "link")
    moves(lambda: os.setxattr(path, "user.x", b"1"), False, True, False, "setxattr")
    moves(lambda: write_file(os.path.join(d, "new")), False, False, True, "create")
    moves(lambda: os.unlink(path), False, False, True, "unlink")
    # a second of room for the kernel's coarse clock
    before = time.time() - 1
    write_file(path)
    check(before <= os.stat(path).st_mtime <= time.time() + 1, "a new file has the time %s", os.stat(path).st_mtime)


@options(anywhere=True)
def test_locks(t):
    """flock, POSIX and open-file-description locks exclude other processes and go with their holder."""
    pool = t.filesystem()
    path = write_file(os.path.join(pool.mountpoint, "l"), bytes(100))

    def refused(lock):
        def go():
            fd = os.open(path, os.O_RDWR)
            try:
                lock(fd)
            except BlockingIOError:
                return
            raise OSError("the lock was granted twice")
        return go

    def granted(lock):
        def go():
            lock(os.open(path, os.O_RDWR))
        return go

    def flock(fd):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def lockf(fd, at=0, n=10):
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, n, at)
    for name, lock in (("flock", flock), ("POSIX lock", lockf)):
        fd = os.open(path, os.O_RDWR)
        lock(fd)
        same(syscalls.in_child(refused(lock)), None, name + " against another process")
        os.close(fd)
        same(syscalls.in_child(granted(lock)), None, name + " after its holder closed")
        same(syscalls.in_child(granted(lock)), None, name + " after its holder ended")
    fd = os.open(path, os.O_RDWR)
    lockf(fd, 0, 10)
    same(syscalls.in_child(granted(lambda f: lockf(f, 10, 10))), None, "a lock on other bytes")
    same(syscalls.in_child(refused(lambda f: lockf(f, 9, 10))), None, "a lock that overlaps by one byte")
    os.close(fd)
    # a blocked lock is granted when the holder lets go
    fd = os.open(path, os.O_RDWR)
    lockf(fd)
    got = []
    waiter = threading.Thread(target=lambda: got.append(syscalls.in_child(lambda: fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX))))
    waiter.start()
    time.sleep(0.3)
    same(got, [], "a waiting lock while it is held")
    os.close(fd)
    waiter.join(60)
    same(got, [None], "a waiting lock after its release")


@options(anywhere=True)
def test_copy_file_range_and_statfs(t):
    """copy_file_range and sendfile copy right; statfs tells sizes that fit what is written."""
    pool = t.filesystem()
    d = pool.mountpoint
    data = os.urandom(3 * MIB + 17)
    src = write_file(os.path.join(d, "src"), data)
    a, b = os.open(src, os.O_RDONLY), os.open(os.path.join(d, "dst"), os.O_RDWR | os.O_CREAT)
    left = len(data)
    while left:
        n = os.copy_file_range(a, b, left)
        check(n > 0, "copy_file_range stops with %d bytes left", left)
        left -= n
    check(read_file(os.path.join(d, "dst")) == data, "a copy by copy_file_range")
    same(os.copy_file_range(a, b, 100, 1000, 5 * MIB), 100, "copy_file_range with offsets")
    same(os.pread(b, 100, 5 * MIB), data[1000:1100], "copied range")
    os.close(a)
    os.close(b)
    s = os.statvfs(d)
    same(s.f_namemax, 255, "longest name")
    check(0 < s.f_bavail <= s.f_bfree <= s.f_blocks, "statfs: %s", s)
    if t.against:
        return
    check(s.f_favail > 0 or s.f_files == 0, "no inodes left: %s", s)
    raw = pool.k * pool.size
    check(0.85 * raw < s.f_blocks * s.f_frsize <= raw, "df shows %d bytes for %d bytes of data devices", s.f_blocks * s.f_frsize, raw)
    before = pool.free_bytes()
    fd = os.open(os.path.join(d, "big"), os.O_WRONLY | os.O_CREAT)
    for _ in range(100):
        os.write(fd, os.urandom(MIB))
    os.fsync(fd)
    os.close(fd)
    pool.sync()
    used = before - pool.free_bytes()
    check(95 * MIB < used < 115 * MIB, "100 MiB written, df shows %.1f MiB less", used / MIB)
    same(os.stat(os.path.join(d, "big")).st_blocks * 512 // MIB, 100, "MiB by st_blocks")
