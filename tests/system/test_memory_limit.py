"""The daemon's resident size stays under `memory_limit` plus 128 MiB, whatever is done to it."""
import os

import trees
from lib import GIB, MIB, Daemon, binary, check, drop_caches, options, run

LIMIT = 256 * MIB


@options(seconds=180, long_seconds=300)
def test_under_load(t):
    """With memory_limit 256 MiB: streaming, random, parallel and metadata load, degraded too, stay under it plus 128 MiB."""
    daemon = Daemon(t, memory_limit="256MiB").start()
    pool = daemon.pool(size=4 * GIB)
    directory = pool.mount()
    seconds = t.size(5, 15)
    jobs = [("stream", ["--rw=write", "--bs=1M", "--size=%dm" % t.size(700, 1500), "--ioengine=psync", "--end_fsync=1"]),
            ("stream read", ["--rw=read", "--bs=1M", "--size=%dm" % t.size(700, 1500), "--ioengine=psync"]),
            ("four writers", ["--rw=write", "--bs=128k", "--size=150m", "--numjobs=4", "--ioengine=psync"]),
            ("random direct", ["--rw=randrw", "--bs=4k", "--size=512m", "--direct=1", "--ioengine=libaio", "--iodepth=64", "--time_based", "--runtime=%d" % seconds]),
            ("large direct", ["--rw=randwrite", "--bs=1M", "--size=512m", "--direct=1", "--ioengine=libaio", "--iodepth=32", "--time_based", "--runtime=%d" % seconds]),
            ("fsync", ["--rw=randwrite", "--bs=16k", "--size=256m", "--fsync=4", "--numjobs=4", "--ioengine=psync", "--time_based", "--runtime=%d" % seconds])]
    for name, args in jobs:
        file = "stream" if name == "stream read" else name.replace(" ", "-")
        run(["fio", "--name=" + file, "--directory=" + directory, "--filename_format=%s.$jobnum" % file, "--group_reporting", "--fallocate=none", *args], timeout=150)
        t.step("%s", name)
        daemon.check_memory(LIMIT)
    run(["rm", "-f"] + [os.path.join(directory, n) for n in os.listdir(directory)], timeout=60)
    tree = trees.make(t.path("tree"), files=t.size(1000, 4000), seed=t.seed, largest=MIB)
    for i in range(3):
        run(["cp", "-a", tree, os.path.join(directory, "tree%d" % i)], timeout=150)
    drop_caches()
    # not through this process, which would keep it all in memory
    run(["sh", "-c", "find \"$1\" -type f -size +1k -exec cat {} + > /dev/null", "sh", directory], timeout=150)
    daemon.check_memory(LIMIT)
    daemon.cli("pool", "offline", "tank", pool.devices[0])
    run(["find", directory, "-type", "f", "-exec", "md5sum", "{}", "+"], timeout=150)
    daemon.cli("pool", "online", "tank", pool.devices[0], timeout=150)
    pool.wait_healthy(150)
    pool.scrub()
    pool.check()
    daemon.check_memory(LIMIT)


@options(seconds=60)
def test_the_setting_is_checked(t):
    """A memory_limit that is nonsense or far too small, and an unknown setting, are refused at the start, in one line."""
    for text in ('memory_limit = "lots"', 'memory_limit = "1KiB"', "memory_limit = -5", 'memroy_limit = "1GiB"', "= ="):
        config = t.path("bad.toml")
        with open(config, "w") as f:
            f.write(text + "\n")
        r = run([binary("qrvsad"), "--socket", t.path("s"), "--state", t.mkdir("state"), "--config", config], timeout=20, ok=False)
        check(r.rc not in (0, 101) and "panicked" not in r.err, "%s: %s", text, r)
        check((r.err + r.out).strip(), "no word about %s", text)
        t.step("%s", (r.err + r.out).strip().splitlines()[-1])
