"""Random operations: on the mount and on the host's filesystem side by side, and on one file against a model in memory."""
import errno
import mmap
import os
import random
import stat
import threading

import trees
from lib import KIB, MIB, Failure, check, options, same
from syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, RENAME_EXCHANGE, RENAME_NOREPLACE, fallocate, rename2


class Side:
    """One of two directories on which the same operations are done."""

    def __init__(self, top):
        self.top, self.open = top, {}

    def path(self, rel):
        return os.path.join(self.top, rel)


def outcome(function):
    """What a call gave: its value, or its errno."""
    try:
        return "ok", function()
    except OSError as e:
        return "errno", errno.errorcode.get(e.errno, e.errno)


class Twins:
    """Random operations on two directories; every result and, at the end, the whole trees have to be equal."""

    def __init__(self, sides, seed):
        self.sides, self.r, self.seed = sides, random.Random(seed), seed
        self.names = ["a", "b", "c", "d", "e/a", "e/b", "e", "f", "f/a", "f/g", "f/g/a", "f/g/b", "x" * 255]
        self.count = 0

    def name(self):
        return self.r.choice(self.names)

    def step(self):
        r = self.r
        kind = r.choice(["write"] * 6 + ["read"] * 4 + ["mkdir", "unlink", "rmdir", "rename", "rename", "link", "symlink", "truncate", "truncate",
                         "chmod", "utime", "stat", "list", "xattr", "rename2", "fallocate", "open", "close", "fd", "fd", "append", "chown"])
        a, b, at, n = self.name(), self.name(), r.choice([0, r.randrange(200_000), r.randrange(2 * MIB)]), r.choice([1, 4096, r.randrange(1, 60_000)])
        data, m, slot = r.randbytes(n), r.choice([0o644, 0o600, 0o4755, 0o1777]), r.randrange(3)
        when, flags = r.randrange(2_000_000_000_000_000_000), r.choice([RENAME_EXCHANGE, RENAME_NOREPLACE])
        mode = r.choice([0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE])

        def act(s):
            p, q = s.path(a), s.path(b)
            if kind in ("write", "append", "read"):
                how = {"write": os.O_RDWR | os.O_CREAT, "append": os.O_RDWR | os.O_CREAT | os.O_APPEND, "read": os.O_RDONLY}[kind]
                fd = os.open(p, how, 0o644)
                try:
                    return os.pread(fd, n, at) if kind == "read" else os.pwrite(fd, data, at)
                finally:
                    os.close(fd)
            if kind == "mkdir":
                return os.mkdir(p, 0o755)
            if kind == "unlink":
                return os.unlink(p)
            if kind == "rmdir":
                return os.rmdir(p)
            if kind == "rename":
                return os.rename(p, q)
            if kind == "rename2":
                return rename2(p, q, flags)
            if kind == "link":
                return os.link(p, q, follow_symlinks=False)
            if kind == "symlink":
                return os.symlink(b, p)
            if kind == "truncate":
                return os.truncate(p, at)
            if kind == "chmod":
                return os.chmod(p, m)
            if kind == "chown":
                return os.chown(p, n, -1, follow_symlinks=False)
            if kind == "utime":
                return os.utime(p, ns=(when, when), follow_symlinks=False)
            if kind == "stat":
                x = os.lstat(p)
                return x.st_mode, x.st_nlink if not stat.S_ISDIR(x.st_mode) else 0, x.st_size if not stat.S_ISDIR(x.st_mode) else 0, x.st_uid
            if kind == "list":
                return sorted(os.listdir(p))
            if kind == "xattr":
                return os.setxattr(p, "user.x%d" % slot, data[:500]) if n % 3 else os.removexattr(p, "user.x%d" % slot)
            if kind == "fallocate":
                fd = os.open(p, os.O_RDWR)
                try:
                    return fallocate(fd, mode, at, n)
                finally:
                    os.close(fd)
            if kind == "open":
                if slot in s.open:
                    os.close(s.open.pop(slot))
                s.open[slot] = os.open(p, os.O_RDWR | os.O_CREAT, 0o600)
                return None
            if kind == "close":
                return os.close(s.open.pop(slot)) if slot in s.open else None
            # a descriptor that may long be without a name
            if slot in s.open:
                fd = s.open[slot]
                return os.pwrite(fd, data, at), os.pread(fd, n, at // 2), os.fstat(fd).st_size, os.fstat(fd).st_nlink
            return None
        results = [outcome(lambda s=s: act(s)) for s in self.sides]
        self.count += 1
        if results[0] != results[1]:
            raise Failure("operation %d of seed %d, %s(%s, %s, at %d, %d bytes): %.200r here, %.200r on the host" % (
                self.count, self.seed, kind, a[:20], b[:20], at, n, results[1], results[0]))

    def close(self):
        for s in self.sides:
            for fd in s.open.values():
                os.close(fd)
            s.open.clear()

    def compare(self, what):
        here = trees.describe(self.sides[0].top, times=False)
        trees.compare(here, self.sides[1].top, what, times=False)


@options(seconds=240, long_seconds=420, anywhere=True)
def test_same_as_the_host(t):
    """Random operations by several threads give the same results and trees as on the host's filesystem, restarts included."""
    pool = t.filesystem()
    threads, rounds, steps = 3, t.size(2, 5), t.size(2000, 8000)
    twins = []
    for i in range(threads):
        places = [t.mkdir("host", "t%d" % i), os.path.join(pool.mountpoint, "t%d" % i)]
        os.makedirs(places[1], exist_ok=True)
        twins.append(Twins([Side(p) for p in places], t.seed + i))
    for n in range(rounds):
        failures = []

        def work(w):
            try:
                for _ in range(steps):
                    w.step()
            except BaseException as e:
                failures.append(e)
        running = [threading.Thread(target=work, args=(w,), daemon=True) for w in twins]
        for x in running:
            x.start()
        for x in running:
            x.join()
        if failures:
            raise failures[0]
        for i, w in enumerate(twins):
            w.close()
            w.compare("thread %d before restart %d" % (i, n + 1))
        pool.restart()
        for i, w in enumerate(twins):
            w.compare("thread %d after restart %d" % (i, n + 1))
        t.step("round %d: %d operations the same", n + 1, sum(w.count for w in twins))
    if not t.against:
        pool.check()


class Exerciser:
    """One file, changed and read in every way there is, against its content in memory."""

    MOST = 3 * MIB

    def __init__(self, path, seed):
        self.path, self.r = path, random.Random(seed)
        self.model = bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.history = []

    def span(self):
        r = self.r
        at = r.choice([r.randrange(self.MOST), r.randrange(self.MOST) // 4096 * 4096, r.randrange(self.MOST) // 131072 * 131072, len(self.model)])
        n = r.choice([1, 2, 4095, 4096, 4097, 65536, 131072, r.randrange(1, 300 * KIB)])
        return min(at, self.MOST - 1), min(n, self.MOST - min(at, self.MOST - 1))

    def put(self, at, data):
        if at > len(self.model):
            self.model.extend(bytes(at - len(self.model)))
        self.model[at:at + len(data)] = data

    def step(self):
        r = self.r
        kind = r.choice(["write"] * 5 + ["read"] * 5 + ["truncate", "punch", "zero", "allocate", "mapwrite", "mapread", "fsync", "reopen", "dwrite", "dread", "whole", "holes"])
        at, n = self.span()
        self.history = self.history[-40:] + [(kind, at, n, len(self.model))]
        if kind == "write":
            data = r.randbytes(n)
            same(os.pwrite(self.fd, data, at), n, "bytes written")
            self.put(at, data)
        elif kind == "read":
            self.expect(os.pread(self.fd, n, at), at, n)
        elif kind == "truncate":
            size = r.choice([at, len(self.model) // 2, 0 if r.random() < 0.1 else at])
            os.ftruncate(self.fd, size)
            if size <= len(self.model):
                del self.model[size:]
            else:
                self.model.extend(bytes(size - len(self.model)))
        elif kind in ("punch", "zero", "allocate"):
            grow = kind != "punch" and r.random() < 0.5
            mode = {"punch": FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, "zero": FALLOC_ZERO_RANGE, "allocate": 0}[kind]
            fallocate(self.fd, mode | (0 if grow or kind == "punch" else FALLOC_KEEP_SIZE), at, n)
            if kind != "allocate":
                end = min(at + n, len(self.model))
                if at < end:
                    self.model[at:end] = bytes(end - at)
            if grow and at + n > len(self.model):
                self.model.extend(bytes(at + n - len(self.model)))
        elif kind in ("mapwrite", "mapread") and self.model:
            at = min(at, len(self.model) - 1)
            n = min(n, len(self.model) - at)
            with mmap.mmap(self.fd, len(self.model)) as m:
                if kind == "mapwrite":
                    data = r.randbytes(n)
                    m[at:at + n] = data
                    self.put(at, data)
                else:
                    self.expect(m[at:at + n], at, n)
        elif kind in ("dwrite", "dread"):
            at, n = at // 4096 * 4096, max(4096, n // 4096 * 4096)
            with mmap.mmap(-1, n) as m:
                if kind == "dwrite" and at + n <= self.MOST:
                    data = r.randbytes(n)
                    m[:] = data
                    same(os.pwritev(self.direct, [m], at), n, "bytes written directly")
                    self.put(at, data)
                elif kind == "dread":
                    got = os.preadv(self.direct, [m], at)
                    self.expect(m[:got], at, n)
        elif kind == "fsync":
            os.fsync(self.fd)
        elif kind == "reopen":
            self.close()
            self.open()
        elif kind == "whole":
            self.whole()
        elif kind == "holes":
            self.holes()
        same(os.fstat(self.fd).st_size, len(self.model), "size")

    def open(self):
        self.fd, self.direct = os.open(self.path, os.O_RDWR), os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def close(self):
        os.close(self.fd)
        os.close(self.direct)

    def expect(self, got, at, n):
        wanted = self.model[at:at + n]
        if got != wanted:
            first = next((i for i, (x, y) in enumerate(zip(got, wanted)) if x != y), min(len(got), len(wanted)))
            raise Failure("read of %d at %d differs at %d (%d bytes for %d); before: %s" % (n, at, at + first, len(got), len(wanted), self.history))

    def whole(self):
        self.expect(os.pread(self.fd, self.MOST + 1, 0), 0, self.MOST + 1)

    def holes(self):
        """What SEEK_HOLE calls a hole has to be zeros."""
        at = 0
        while at < len(self.model):
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as e:
                same(e.errno, errno.ENXIO, "error of SEEK_DATA")
                start = len(self.model)
            check(not any(self.model[at:start]), "data in what is called a hole, %d to %d; before: %s", at, start, self.history)
            if start >= len(self.model):
                return
            at = os.lseek(self.fd, start, os.SEEK_HOLE)
            check(at > start, "no data where SEEK_DATA found some, at %d", start)


@options(seconds=180, long_seconds=300, anywhere=True)
def test_one_file_against_a_model(t):
    """Reads, writes, truncation, holes, mappings and direct I/O in random order agree with a model, restarts included."""
    pool = t.filesystem()
    files = [Exerciser(os.path.join(pool.mountpoint, "x%d" % i), t.seed + i) for i in range(2)]
    for n in range(t.size(3, 8)):
        for _ in range(t.size(800, 2500)):
            for x in files:
                x.step()
        for x in files:
            x.whole()
            x.close()
        pool.restart()
        for x in files:
            x.open()
            x.whole()
            x.holes()
        t.step("round %d right", n + 1)
    for x in files:
        x.close()
    if not t.against:
        pool.check()
