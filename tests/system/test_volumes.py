"""Volumes: made, listed, resized, destroyed by the command line, and still there after whatever happens to the daemon."""
from lib import GIB, MIB, Daemon, check, options, same, wait_for


@options(seconds=120)
def test_their_life(t):
    """A volume is made, shown, grown, shrunk only with force, survives kill -9, and goes with all traces."""
    daemon = Daemon(t).start()
    pool = daemon.pool("tank", size=GIB)
    daemon.cli("volume", "create", "tank/thin", "64TB")
    daemon.cli("volume", "create", "tank/native", "1PiB", "--block-size", "4096", "--record-size", "64K")
    daemon.cli("volume", "create", "tank/thick", "256M", "--reserve")
    listed = daemon.json("volume", "list", "tank")
    same([v["name"] for v in listed], ["tank/thin", "tank/native", "tank/thick"], "volumes")
    same([v["size_bytes"] for v in listed], [64 * 10**12, 1 << 50, 256 * MIB], "their sizes")
    check(len(set(v["naa"] for v in listed)) == 3, "their identities are not different: %s", listed)
    # a volume is no filesystem
    same([f["name"] for f in daemon.json("fs", "list", "tank")], ["tank"], "filesystems")
    daemon.refused("volume", "mount", "tank/thin", t.mkdir("mnt"))
    daemon.refused("is a volume", "fs", "destroy", "tank/thin", "--force")
    daemon.refused("exists", "fs", "create", "tank/thin")
    daemon.refused("exists", "volume", "create", "tank/thin", "1G")
    daemon.refused("multiple of the block size", "volume", "create", "tank/odd", "1000")
    daemon.refused("set aside", "volume", "create", "tank/huge", "1T", "--reserve")
    daemon.refused("--force", "volume", "resize", "tank/thin", "1G")
    daemon.cli("volume", "resize", "tank/thin", "65TB")
    for action in (daemon.restart, pool.crash):
        action()
        wait_for(lambda: daemon.pools() == ["tank"], 60, "the pool is back")
        again = daemon.json("volume", "list", "tank")
        same([(v["id"], v["naa"]) for v in again], [(v["id"], v["naa"]) for v in listed], "identities after a restart")
        same(daemon.json("volume", "show", "tank/thin")["size_bytes"], 65 * 10**12, "the size after a restart")
    same(daemon.json("debug", "locate", "--volume", "tank/thin"), [], "places of a volume that holds nothing")
    pool.check()
    free = daemon.json("pool", "status", "tank")["free_bytes"]
    for name in ("thin", "native", "thick"):
        daemon.refused("all data", "volume", "destroy", "tank/" + name)
        daemon.cli("volume", "destroy", "tank/" + name, "--force")
    same(daemon.json("volume", "list"), [], "volumes after all are destroyed")
    wait_for(lambda: daemon.json("pool", "status", "tank")["free_bytes"] >= free + 256 * MIB, 60, "the reserved room is back")
    pool.check()
