"""sqlite_writer.py DATABASE JOURNAL_MODE FIRST_ID [PAUSE]: inserts rows for ever; prints each id once its commit is acknowledged.

PAUSE is in seconds, after each commit, and at least as long as it held the lock: SQLite's locks have no queue, others look again
every 100 ms, and a writer without a pause keeps them out for minutes.

Prints `error ID TEXT` and ends when the database gives an error: the commit of ID is then neither known nor unknown.
"""
import hashlib
import sqlite3
import sys
import time

path, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0
db = sqlite3.connect(path, timeout=30, isolation_level=None)
got = db.execute("PRAGMA journal_mode=" + mode).fetchone()[0]
if got != mode.lower():
    sys.exit("journal mode is %s, not %s" % (got, mode))
# in rollback modes a transaction commits with the removal of the journal, which only EXTRA makes durable
db.execute("PRAGMA synchronous=" + ("FULL" if mode == "wal" else "EXTRA"))
db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB, sum TEXT)")
i = first
try:
    while True:
        body = hashlib.sha256(b"%d" % i).digest() * (1 + i % 200)
        db.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        db.execute("INSERT INTO t VALUES (?, ?, ?)", (i, body, hashlib.sha256(body).hexdigest()))
        if i % 7 == 0:
            db.execute("DELETE FROM t WHERE id % 7 = 0 AND id < ?", (i - 100,))
        db.execute("COMMIT")
        print(i, flush=True)
        i += 1
        if pause:
            time.sleep(max(pause, time.monotonic() - begin))
except sqlite3.Error as e:
    print("error", i, e, flush=True)
