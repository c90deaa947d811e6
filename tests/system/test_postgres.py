"""PostgreSQL on the mount: kill -9 of the daemon in the middle of pgbench loses no acknowledged transaction."""
import glob
import os
import pwd
import re
import subprocess
import time

from lib import GIB, Daemon, Failure, check, end_child, options, run, wait_for
from proc import ended, is_live, kill


class Server:
    """A PostgreSQL server as the user postgres, its data on the mount, its socket off it, no TCP."""

    def __init__(self, t, data):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda p: int(p.split("/")[4]))
        check(found, "PostgreSQL is not installed (apt-get install postgresql)")
        self.bin = os.path.dirname(found[-1])
        self.t, self.data, self.child = t, data, None
        self.log = t.path("postgres.log")
        self.sockets = t.mkdir("pgsock")
        user = pwd.getpwnam("postgres")
        os.chown(self.sockets, user.pw_uid, user.pw_gid)
        os.mkdir(data, 0o700)
        os.chown(data, user.pw_uid, user.pw_gid)
        self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "env", "-C", "/", "HOME=/tmp", "LC_ALL=C"]

    def cmd(self, program, *args):
        return [*self.as_user, os.path.join(self.bin, program), *map(str, args)]

    def initdb(self):
        run(self.cmd("initdb", "-D", self.data, "-A", "trust", "--no-locale", "-E", "UTF8", "--data-checksums"), timeout=300)
        with open(os.path.join(self.data, "postgresql.conf"), "a") as f:
            f.write("listen_addresses = ''\nunix_socket_directories = '%s'\nfsync = on\nsynchronous_commit = on\n"
                    "shared_buffers = 64MB\nmax_wal_size = 256MB\ncheckpoint_timeout = 30s\n"
                    # after a PANIC it must not start again on a dead mount
                    "restart_after_crash = off\n" % self.sockets)

    def start(self):
        self.child = self.t.spawn(self.cmd("postgres", "-D", self.data), log=self.log)

        def ready():
            if self.child.poll() is not None:
                raise Failure("postgres ended at once:\n" + open(self.log, errors="replace").read()[-2000:])
            return run(self.cmd("pg_isready", "-q", "-h", self.sockets), timeout=20, ok=False).rc == 0
        wait_for(ready, 120, "postgres to accept connections", 0.2)

    def stop(self):
        self.child.terminate()
        check(ended(self.child, 120) == 0, "postgres did not end well:\n%s", open(self.log, errors="replace").read()[-2000:])

    def crash(self):
        """Its storage is gone: it has to be ended the hard way. Its workers are in sessions of their own, and while one is
        left, no new server starts on the same data."""
        end_child(self.child)

        def gone():
            left = self.workers()
            for pid in left:
                kill(pid)
            return not left
        wait_for(gone, 60, lambda: "the server's processes to end: %s" % self.workers())
        for line in glob.glob(os.path.join(self.sockets, ".s.*")):
            os.unlink(line)

    def workers(self):
        """Processes that work in the data directory; the link tells without touching what is mounted there."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink("/proc/%s/cwd" % pid) == self.data and is_live(int(pid)):
                    found.append(int(pid))
            except OSError:
                continue
        return found

    def sql(self, text, timeout=120):
        return run(self.cmd("psql", "-h", self.sockets, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres"), timeout=timeout).out.strip()


class Client:
    """A client that inserts numbered rows one by one and writes down each number whose commit was acknowledged."""

    def __init__(self, server, number):
        self.out = server.t.path("client%d.%d.out" % (number, time.monotonic_ns()))
        self.number = number
        # each statement is a transaction of its own; psql prints the returned id after the commit
        feed = ("import sys\n"
                "for i in range(%d, %d):\n"
                "    sys.stdout.write('INSERT INTO acked VALUES (%%d, repeat(md5(%%d::text), 20)) RETURNING id;\\n' %% (i, i))\n"
                "    sys.stdout.flush()\n")
        base = number * 1_000_000_000 + Client.used
        Client.used += 10_000_000
        self.feeder = server.t.spawn(["python3", "-c", feed % (base, base + 10_000_000)], stdout=subprocess.PIPE)
        with open(self.out, "wb") as f:
            self.child = server.t.spawn(server.cmd("psql", "-h", server.sockets, "-XAtq", "-v", "ON_ERROR_STOP=1", "postgres"),
                                        stdin=self.feeder.stdout, stdout=f)
        self.feeder.stdout.close()

    used = 0

    def end(self):
        end_child(self.child)
        end_child(self.feeder)

    def acked(self):
        with open(self.out) as f:
            return [int(line) for line in f if line.endswith("\n") and line.strip().isdigit()]


@options(seconds=300, long_seconds=480)
def test_no_acknowledged_transaction_is_lost(t):
    """kill -9 of the daemon during pgbench, restart: PostgreSQL recovers, every acknowledged transaction is there."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=4 * GIB)
    pool.mount()
    server = Server(t, os.path.join(pool.mountpoint, "pg"))
    server.initdb()
    server.start()
    t.step("initdb done, server runs")
    run(server.cmd("pgbench", "-h", server.sockets, "-i", "-s", t.size(2, 10), "-q", "postgres"), timeout=300)
    server.sql("CREATE TABLE acked (id bigint PRIMARY KEY, body text)")
    acked = set()
    for n in range(t.size(2, 3)):
        bench = t.spawn(server.cmd("pgbench", "-n", "-h", server.sockets, "-c", 2, "-j", 1, "-T", 3600, "postgres"), log=t.path("pgbench.log"))
        clients = [Client(server, i + 1) for i in range(2)]
        wait_for(lambda: all(len(c.acked()) > 20 for c in clients), 90, "clients to commit")
        time.sleep(t.random.uniform(*t.size((2, 4), (8, 12))))
        check(bench.poll() is None, "pgbench ended early:\n%s", open(t.path("pgbench.log")).read()[-1000:])
        daemon.kill()
        time.sleep(0.5)
        server.crash()
        for c in clients:
            c.end()
            acked |= set(c.acked())
        end_child(bench)
        daemon.start()
        pool.wait_mounted()
        server.start()
        check(re.search("redo done|database system is ready", open(server.log, errors="replace").read()), "no recovery in the server's log")
        there = {int(x) for x in server.sql("SELECT id FROM acked").split()}
        lost = sorted(acked - there)
        check(not lost, "%d of %d acknowledged transactions are missing: %s", len(lost), len(acked), lost[:10])
        unknown = len(there - acked)
        check(unknown <= 2 * (n + 1), "%d rows nobody acknowledged, with two clients", unknown)
        # pgbench's own books: every transaction moved one amount through all four tables
        sums = server.sql("SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), "
                          "(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)")
        check(len(set(sums.split("|"))) == 1, "pgbench's tables disagree: %s", sums)
        t.step("round %d: %d acknowledged, all there; pgbench sums %s", n + 1, len(acked), sums)
    run(server.cmd("pg_amcheck", "-h", server.sockets, "--heapallindexed", "--install-missing", "postgres"), timeout=300)
    server.stop()
    run(server.cmd("pg_checksums", "--check", "-D", server.data), timeout=300)
    pool.check()
