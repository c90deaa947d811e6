"""SQLite on the mount, in WAL and in rollback mode, through kill -9 of the daemon in the middle of its commits."""
import hashlib
import os
import sqlite3
import time

from lib import GIB, Daemon, Failure, check, options, python, same, wait_for
from proc import ended


def acknowledged(path):
    """Ids the writer printed, that is, whose commit had returned."""
    ids = []
    with open(path) as f:
        for line in f:
            if line.endswith("\n") and line.strip().isdigit():
                ids.append(int(line))
    return ids


def verify(path, acks, highest_asked):
    """The database is sound, no acknowledged row is missing, no row is wrong, none came from nowhere."""
    db = sqlite3.connect(path, timeout=30)
    try:
        same(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)], "integrity_check")
        rows = db.execute("SELECT id, body, sum FROM t").fetchall()
    finally:
        db.close()
    for i, body, digest in rows:
        check(hashlib.sha256(body).hexdigest() == digest, "row %d is wrong", i)
    there = {r[0] for r in rows}
    # the writer removes every seventh id again once it is 100 old
    lost = [i for i in acks if i not in there and not (i % 7 == 0 and i < max(acks) - 90)]
    check(not lost, "%d acknowledged rows are missing: %s", len(lost), lost[:10])
    check(not there or max(there) <= highest_asked, "row %s was never written", max(there or {0}))
    return len(there)


def rounds(t, mode, count):
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    path = os.path.join(pool.mountpoint, "data.db")
    acks, first = [], 1
    for n in range(count):
        out = t.path("writer%d.out" % n)
        with open(out, "w") as f:
            writer = t.spawn(python("sqlite_writer.py", path, mode, first), stdout=f)
            wait_for(lambda: len(acknowledged(out)) > 20, 60, lambda: "the writer to get going; it says %s" % open(out).read()[-300:])
            time.sleep(t.random.uniform(0.2, 1.5))
            daemon.kill()
            try:
                ended(writer, 60)
            except Exception:
                raise Failure("the writer hangs after the daemon was killed") from None
        got = acknowledged(out)
        acks += got
        daemon.start()
        pool.wait_mounted()
        rows = verify(path, acks, acks[-1] + 1)
        t.step("%s, round %d: %d commits acknowledged in all, %d rows", mode, n + 1, len(acks), rows)
        first = acks[-1] + 2
    pool.check()


@options(seconds=180, long_seconds=300)
def test_wal(t):
    """WAL mode: integrity_check is ok and no acknowledged commit is missing after kill -9 of the daemon."""
    rounds(t, "wal", t.size(2, 5))


@options(seconds=180, long_seconds=300)
def test_rollback_journal(t):
    """Rollback mode: integrity_check is ok and no acknowledged commit is missing after kill -9 of the daemon."""
    rounds(t, "delete", t.size(2, 5))


@options(seconds=90, anywhere=True)
def test_two_writers(t):
    """Two processes write one database in either mode: locking and shared memory on the mount work."""
    pool = t.filesystem(size=GIB)
    for mode in ("wal", "delete"):
        path = os.path.join(pool.mountpoint, mode + ".db")
        outs = [t.path("%s-%d.out" % (mode, i)) for i in range(2)]
        writers = []
        for i, out in enumerate(outs):
            with open(out, "w") as f:
                writers.append(t.spawn(python("sqlite_writer.py", path, mode, 1 + i * 10_000_000, 0.005), stdout=f))
            wait_for(lambda o=out: acknowledged(o), 60, lambda o=out: "a first commit in mode %s: %s" % (mode, open(o).read()[-300:]))
        time.sleep(3)
        counts = [len(acknowledged(out)) for out in outs]
        # both go on, beside each other
        wait_for(lambda: all(len(acknowledged(out)) > n + 5 for out, n in zip(outs, counts)) or any(w.poll() is not None for w in writers), 60,
                 lambda: "both writers to go on in mode %s: %s commits, then %s" % (mode, counts, [len(acknowledged(out)) for out in outs]))
        for w in writers:
            w.terminate()
            ended(w, 60)
        for out in outs:
            check("error" not in open(out).read(), "a writer in mode %s: %s", mode, open(out).read()[-300:])
            check(len(acknowledged(out)) > 5, "a writer in mode %s made %d commits only", mode, len(acknowledged(out)))
        db = sqlite3.connect(path, timeout=30)
        same(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)], "integrity_check")
        there = {r[0] for r in db.execute("SELECT id FROM t")}
        db.close()
        lost = [i for out in outs for i in acknowledged(out) if i % 7 and i not in there]
        check(not lost, "acknowledged rows are missing: %s", lost[:10])
