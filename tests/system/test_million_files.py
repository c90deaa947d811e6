"""A million files in one directory: created, listed, stat'ed, removed, in bounded memory."""
import os
import re

from lib import GIB, MIB, Daemon, check, drop_caches, options, python, run, same, wait_for


@options(seconds=240, long_seconds=1200)
def test_one_directory(t):
    """50,000 (a million in long mode) files in one directory: all four operations work, and memory stays under its limit."""
    count, limit = t.size(50_000, 1_000_000), 384 * MIB
    daemon = Daemon(t, memory_limit="384MiB").start()
    pool = daemon.pool(size=t.size(2, 8) * GIB)
    pool.mount()
    directory = os.path.join(pool.mountpoint, "many")
    os.mkdir(directory)
    empty = pool.free_bytes()

    def step(verb):
        out = run(python("many_files.py", verb, directory, count), timeout=1000).out
        found, seconds = re.match(r"(\d+) ([\d.]+)", out).groups()
        same(int(found), count, verb)
        t.step("%s: %s in %s s, %.0f/s", verb, found, seconds, count / max(float(seconds), 0.01))
        check(daemon.alive(), "the daemon died")

    step("create")
    step("list")
    pool.restart()
    drop_caches()
    step("list")
    step("stat")
    daemon.check_memory(limit)
    same(os.stat(directory).st_nlink, 2, "link count of a directory without subdirectories")
    pool.check(deep=t.long)
    step("remove")
    os.rmdir(directory)
    daemon.check_memory(limit)

    def back():
        # the kernel tells of the last closes a moment later
        pool.sync()
        return pool.free_bytes() > empty - 64 * MIB
    wait_for(back, 60, lambda: "the space of removed files to come back: %d of %d bytes are free" % (pool.free_bytes(), empty), 0.5)
    pool.check()
