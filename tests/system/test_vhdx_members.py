"""Pools on VHDX containers: they grow as the pool fills, shrink as it empties, and may be lost like any device."""
import json
import os

import trees
from lib import GIB, MIB, Daemon, Failure, Pool, check, options, same, scribble, wait_for
from proc import run


def containers(t, count=4, size=4 << 40):
    """Specs of containers to be made, and their paths."""
    directory = t.mkdir("disks")
    paths = [os.path.join(directory, "q%d.vhdx" % (i + 1)) for i in range(count)]
    return ["vhdx:%s:%d" % (p, size) for p in paths], paths


def pool_on(daemon, specs, paths):
    daemon.cli("pool", "create", "tank", "--geometry", "2+2", *specs)
    pool = Pool(daemon, "tank", devices=paths)
    pool.mount()
    return pool


def taken(paths):
    return sum(os.stat(p).st_blocks * 512 for p in paths)


@options(seconds=240)
def test_lose_two_of_four_containers(t):
    """Four containers of 4 TiB take next to nothing, grow with what is written; two are deleted, all is right, they are replaced."""
    daemon = Daemon(t).start()
    specs, paths = containers(t)
    pool = pool_on(daemon, specs, paths)
    check(taken(paths) < 64 * MIB, "four empty containers take %.1f MiB", taken(paths) / MIB)
    tree = trees.make(os.path.join(pool.mountpoint, "tree"), files=200, seed=t.seed)
    wanted = trees.describe(tree, links_inside=True)
    big = os.path.join(pool.mountpoint, "big")
    digest = trees.random_file(big, 160 * MIB, t.seed)
    pool.sync()
    full = taken(paths)
    check(full > 300 * MIB, "160 MiB in 2+2 take %.1f MiB only", full / MIB)
    status = daemon.json("pool", "status", "tank")
    devices = status["devices"]
    same([d["kind"] for d in devices], ["vhdx"] * 4, "kinds")
    check(all(d["host_taken_bytes"] > 50 * MIB and d["host_free_bytes"] > 0 for d in devices), "space of the host: %s", devices)
    for path in paths[:2]:
        os.unlink(path)
    same(trees.digest(big), digest, "contents without two containers")
    trees.compare(wanted, tree, "without two containers")
    pool.wait_degraded(paths[:2])
    for i, old in enumerate(paths[:2]):
        new = os.path.join(t.dir, "disks", "new%d.vhdx" % (i + 1))
        daemon.cli("pool", "replace", "--wait", "tank", old, "vhdx:%s:%d" % (new, 4 << 40), timeout=900)
        paths[i] = new
    pool.wait_healthy()
    scrub = pool.scrub()
    trees.compare(wanted, tree, "after the replacement")
    same(trees.digest(big), digest, "contents after the replacement")
    t.step("scrub after the replacement: %s", scrub)


@options(seconds=120)
def test_containers_shrink(t):
    """What a deleted file took goes back to the filesystem under the containers, once the zones it filled are empty."""
    daemon = Daemon(t).start()
    specs, paths = containers(t, size=2 * GIB)
    pool = pool_on(daemon, specs, paths)
    tree = trees.make(os.path.join(pool.mountpoint, "tree"), files=100, seed=t.seed)
    wanted = trees.describe(tree, links_inside=True)
    big = os.path.join(pool.mountpoint, "big")
    trees.random_file(big, 160 * MIB, t.seed)
    pool.sync()
    before = taken(paths)
    check(before > 300 * MIB, "160 MiB in 2+2 take %.1f MiB only", before / MIB)
    os.unlink(big)

    def shrunk():
        pool.sync()
        return taken(paths) < before - 200 * MIB
    wait_for(shrunk, 90, "the containers to give space back", 0.5)
    t.step("%.1f MiB before, %.1f MiB after", before / MIB, taken(paths) / MIB)
    pool.check()
    pool.restart()
    trees.compare(wanted, tree, "after deleting and a restart")


@options(seconds=180)
def test_containers_after_kill(t):
    """kill -9 leaves logs that are replayed: everything synced is there, an import finds containers by looking, every image is sound."""
    daemon = Daemon(t).start()
    specs, paths = containers(t, size=1 << 40)
    pool = pool_on(daemon, specs, paths)
    tree = trees.make(os.path.join(pool.mountpoint, "tree"), files=100, seed=t.seed)
    wanted = trees.describe(tree, links_inside=True)
    pool.sync()
    for _ in range(3):
        trees.random_file(os.path.join(pool.mountpoint, "unsynced"), 30 * MIB, t.seed)
        pool.crash()
        trees.compare(wanted, tree, "after kill -9")
    pool.umount()
    daemon.cli("pool", "export", "tank")
    for path in paths:
        # exit 0: no violation; where qemu is there, it must agree
        if run(["sh", "-c", "command -v qemu-img"], ok=False).rc == 0:
            run(["qemu-img", "check", "-f", "vhdx", path], timeout=60)
    daemon.cli("pool", "import", "--search", os.path.dirname(paths[0]), "tank")
    pool.mount()
    trees.compare(wanted, tree, "after export and import")
    scribble(paths[3], 0, MIB)
    pool.umount()
    daemon.cli("pool", "export", "tank")
    daemon.cli("pool", "import", "--search", os.path.dirname(paths[0]), "tank")
    pool.mount()
    trees.compare(wanted, tree, "without a container whose headers are gone")


@options(seconds=180)
def test_full_host_filesystem(t):
    """The filesystem under one container is full: that container is out of service with a clear word, the pool goes on, nothing is lost."""
    small = t.mkdir("small")
    run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", small], timeout=20)
    t.defer(run, ["umount", "-l", small], 20, False)
    daemon = Daemon(t).start()
    t.defer(lambda: daemon.alive() and daemon.cli("pool", "export", "tank", ok=False))
    specs, paths = containers(t, size=16 * GIB)
    paths[0] = os.path.join(small, "q1.vhdx")
    specs[0] = "vhdx:%s:%d" % (paths[0], 16 * GIB)
    pool = pool_on(daemon, specs, paths)
    check("nearly full" in pool.status_text(), "no warning of a filesystem with 80 MiB under 16 GiB:\n%s", pool.status_text())
    digests = {}
    for i in range(8):
        path = os.path.join(pool.mountpoint, "file%d" % i)
        digests[path] = trees.random_file(path, 32 * MIB, t.seed + i)
        pool.sync()
    pool.wait_degraded(paths[:1])
    bad = [d for d in daemon.json("pool", "status", "tank")["devices"] if d["path"].startswith(small)]
    check("No space left" in json.dumps(bad) or "full" in json.dumps(bad), "the reason is not told: %s", bad)
    for path, digest in digests.items():
        same(trees.digest(path), digest, path)
    pool.umount()
    daemon.cli("pool", "export", "tank")
    try:
        run(["qemu-img", "check", "-f", "vhdx", paths[0]], timeout=60)
    except (FileNotFoundError, Failure) as e:
        check("No such file" in str(e) or "not found" in str(e), "the container is damaged: %s", e)
