"""sqlite_writer.py DATABASE JOURNAL_MODE FIRST_ID: inserts rows for ever; prints each id once its commit is acknowledged.

Prints `error ID TEXT` and ends when the database gives an error: the commit of ID is then neither known nor unknown.
"""
import hashlib
import sqlite3
import sys

path, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
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
        db.execute("INSERT INTO t VALUES (?, ?, ?)", (i, body, hashlib.sha256(body).hexdigest()))
        if i % 7 == 0:
            db.execute("DELETE FROM t WHERE id % 7 = 0 AND id < ?", (i - 100,))
        db.execute("COMMIT")
        print(i, flush=True)
        i += 1
except sqlite3.Error as e:
    print("error", i, e, flush=True)
