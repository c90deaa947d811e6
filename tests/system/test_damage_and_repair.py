"""Damaged bytes on devices: never returned, repaired on disk, counted, named; what cannot be repaired is an error for exactly those files."""
import errno
import os

import trees
from lib import GIB, MIB, Daemon, check, device_bytes, options, same, scribble, wait_for

COLUMNS = 4


def prepared(t, files=8, size=3 * MIB, **kwargs):
    """A 2+2 pool with files on it, committed; (daemon, pool, name -> digest)."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB, **kwargs)
    pool.mount()
    digests = {}
    for i in range(files):
        name = "file%02d" % i
        digests[name] = trees.random_file(os.path.join(pool.mountpoint, name), size + i * 4099, t.seed + i)
    pool.sync()
    return daemon, pool, digests


def full_rows(pool, name):
    """The records of a file that have all k+m fragments."""
    records = pool.locate(os.path.join(pool.mountpoint, name))
    check(records, "debug locate shows no record of %s", name)
    for r in records:
        devices = [f.device for f in r.fragments]
        check(len(set(devices)) == len(devices), "two fragments of one record on one device: %s", r.fragments)
    check(any(len(r.fragments) == COLUMNS for r in records), "no record of %s has %d fragments", name, COLUMNS)
    return records


def damage(t, fragments):
    """Overwrites fragments; remembers what they held: [(fragment, old bytes)]."""
    kept = []
    for f in fragments:
        old = device_bytes(f.device, f.offset, f.length)
        check(len(old) == f.length, "debug locate points behind the end of %s", f)
        scribble(f.device, f.offset, f.length)
        kept.append((f, old))
    t.step("damaged %d fragments, %d bytes", len(kept), sum(f.length for f, _ in kept))
    return kept


def healed(kept):
    return sum(device_bytes(f.device, f.offset, f.length) == old for f, old in kept)


def read_everything(pool, digests):
    for name, digest in digests.items():
        same(trees.digest(os.path.join(pool.mountpoint, name)), digest, "content of " + name)


@options(seconds=180)
def test_reads_repair_any_m_columns(t):
    """Random bytes over any m columns of the same rows: right data, errors counted and logged by device and file, repaired on disk."""
    daemon, pool, digests = prepared(t)
    choices = [(a, b) for a in range(COLUMNS) for b in range(a + 1, COLUMNS)]
    fragments, read = [], []  # all that is damaged; the data columns among it, which every read meets
    data_files = set()
    for i, name in enumerate(digests):
        columns = choices[i % len(choices)]
        for r in full_rows(pool, name):
            if len(r.fragments) == COLUMNS and r.striped:
                fragments += [r.fragments[c] for c in columns]
                read += [r.fragments[c] for c in columns if c < pool.k]
                data_files |= {name for c in columns if c < pool.k}
            else:
                # a short record at the end lies in a narrower group: m of its columns as well
                fragments += r.fragments[-pool.m:]
    before = pool.status()
    daemon.stop()
    kept = damage(t, fragments)
    daemon.start()
    pool.wait_mounted()
    read_everything(pool, digests)
    t.step("all files read right")

    status = pool.status()
    hit = {f.device for f in read}
    for path in hit:
        counted = status.device(path).checksum_errors
        check(counted > before.device(path).checksum_errors, "no checksum error was counted for %s: %s", path, status)
    log = daemon.log_text()
    for path in hit:
        check(path in log, "the log does not name the damaged device %s", path)
    for name in data_files:
        check(name in log, "the log does not name the damaged file %s", name)
    # a damaged parity column may wait for the scrub
    kept_read = [(f, old) for f, old in kept if f in read]
    pool.sync()
    wait_for(lambda: healed(kept_read) == len(kept_read), 60, "what was read to be repaired on disk")
    found = pool.scrub()
    same(found.unrepairable, 0, "unrepairable after reading")
    same(healed(kept), len(kept), "fragments with their old content after the scrub")
    same(pool.scrub().damaged, 0, "damage found by a second scrub")
    read_everything(pool, digests)
    pool.check()


@options(seconds=180)
def test_scrub_repairs_what_nobody_read(t):
    """Scrub repairs damage in any column without a read; a second scrub reports zero."""
    daemon, pool, digests = prepared(t)
    fragments = []
    for i, name in enumerate(digests):
        for j, r in enumerate(full_rows(pool, name)):
            n = len(r.fragments)
            fragments += [r.fragments[(i + j) % n]] + ([r.fragments[(i + j + 1) % n]] if n > 1 and pool.m > 1 else [])
    kept = damage(t, fragments)
    found = pool.scrub()
    check(found.repaired > 0, "scrub reports no repair: %s", found)
    same(found.unrepairable, 0, "unrepairable")
    same(healed(kept), len(kept), "fragments with their old content after the scrub")
    same(pool.scrub().damaged, 0, "damage found by a second scrub")
    status = pool.status()
    for path in {f.device for f in fragments}:
        check(status.device(path).checksum_errors > 0, "no checksum error counted for %s", path)
    pool.restart()
    read_everything(pool, digests)


@options(seconds=180)
def test_two_whole_devices_scribbled(t):
    """Random blocks all over any two devices of 2+2, metadata and all: everything reads right, scrub makes it whole."""
    daemon, pool, digests = prepared(t)
    tree = trees.make(os.path.join(pool.mountpoint, "tree"), files=200, seed=t.seed)
    wanted = trees.describe(tree, links_inside=True)
    pool.sync()
    daemon.stop()
    for path in t.random.sample(pool.devices, 2):
        size = os.path.getsize(path)
        # sparse parts hold nothing: take the blocks that were written, every other one
        for start, end in written_parts(path):
            for offset in range(start, end, 128 * 1024):
                scribble(path, offset, min(64 * 1024, end - offset, size - offset))
    daemon.start()
    pool.wait_mounted()
    trees.compare(wanted, tree, "a tree with two devices full of random blocks")
    read_everything(pool, digests)
    same(pool.scrub().unrepairable, 0, "unrepairable")
    same(pool.scrub().damaged, 0, "damage found by a second scrub")
    pool.check()
    pool.restart()
    trees.compare(wanted, tree, "after the repair")


def written_parts(path):
    """The parts of a sparse device file that hold data, without the labels at its two ends."""
    keep = 4 * MIB
    fd = os.open(path, os.O_RDONLY)
    try:
        size, at = os.fstat(fd).st_size, keep
        while at < size - keep:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    return
                raise
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size - keep)
            if start < end:
                yield start, end
            at = max(end, start + 1)
    finally:
        os.close(fd)


@options(seconds=180)
def test_beyond_redundancy(t):
    """m+1 damaged columns: EIO for exactly the affected files, which status names; everything else stays readable."""
    daemon, pool, digests = prepared(t)
    victims = sorted(digests)[2:4]
    fragments = []
    for name in victims:
        row = next(r for r in full_rows(pool, name) if len(r.fragments) == COLUMNS)
        fragments += row.fragments[:pool.m + 1]
    daemon.stop()
    damage(t, fragments)
    daemon.start()
    pool.wait_mounted()
    for name, digest in digests.items():
        path = os.path.join(pool.mountpoint, name)
        if name in victims:
            try:
                trees.digest(path)
                check(False, "%s is damaged beyond redundancy, but reading it gave no error", name)
            except OSError as e:
                same(e.errno, errno.EIO, "the error of reading " + name)
        else:
            same(trees.digest(path), digest, "content of " + name)
    found = pool.scrub()
    check(found.unrepairable > 0, "scrub does not report what is lost: %s", found)
    status = pool.status()
    named = sorted({os.path.basename(p) for p in status.damaged_files})
    same(named, victims, "damaged files named in status")
    check(all(v in pool.status_text() for v in victims), "the status for people does not name the files")
    check(daemon.cli("check", "tank", "--deep", ok=False, timeout=300).rc != 0, "check --deep calls a pool with lost data consistent")
    # the undamaged part of a victim is readable, and a removed victim is no longer complained about
    row = next(r for r in full_rows(pool, victims[0]) if len(r.fragments) == COLUMNS)
    with open(os.path.join(pool.mountpoint, victims[0]), "rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        other = (row.offset + row.length + MIB) % size
        check(os.pread(f.fileno(), 4096, other), "the undamaged part of %s cannot be read", victims[0])
    for name in victims:
        os.unlink(os.path.join(pool.mountpoint, name))
    pool.sync()
    pool.scrub()
    wait_for(lambda: not pool.status().damaged_files, 60, "status to forget removed files")
    pool.check()
