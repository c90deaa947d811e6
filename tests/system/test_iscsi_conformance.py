"""libiscsi's conformance suite, all of it, against LUNs of this daemon."""
import collections
import concurrent.futures

import iscsi
from lib import GIB, MIB, Daemon, Failure, check, options, same

#: This release of the suite asserts before any reply can have come: no target can pass it.
UNPASSABLE = {"iSCSITMF.LUNResetSimpleAsync"}
#: Tests that want another unit than a plain thin one.
REMOVABLE = ("PreventAllow.", "StartStopUnit.", "NoMedia.")
READ_ONLY = ("ReadOnly.",)
#: Asks for the block after a physical block by adding one: right where both kinds of block are the same.
SAME_BLOCKS = ("GetLBAStatus.UnmapSingle",)
#: Takes block 256 for zero after having zeroed the 256 blocks before it.
FRESH = ("MultipathIO.CompareAndWrite",)
#: Looks, a second after it began, whether a sanitize still runs: that takes a unit of some size.
LARGE = ("Sanitize.Reset",)
SKIPS_MAX = 6


@options(seconds=300)
def test_libiscsi_suite(t):
    """On a thin volume, every test of iscsi-test-cu, one process each, over two paths: none fails, and at most six are skipped."""
    daemon = Daemon(t).start()
    daemon.pool(size=2 * GIB)
    special = iscsi.Target(daemon, "special")
    daemon.cli("volume", "create", "tank/same", "64M")
    daemon.cli("volume", "create", "tank/large", "768M")
    alone = {name: special.url(special.lun("--volume", "tank/same", "--physical-block-exponent", "0")) for name in SAME_BLOCKS}
    alone.update({name: special.url(special.lun("--volume", "tank/large")) for name in LARGE})
    alone.update({name: special.url(special.lun("--file", t.disk("fresh", 64 * MIB), "--thin")) for name in FRESH})
    names = iscsi.suite_tests()
    workers = 3
    # each worker has units of its own: tests reset, reserve and overwrite them
    urls = []
    for worker in range(workers):
        target = iscsi.Target(daemon, "suite%d" % worker)
        units = {}
        volume = "tank/suite%d" % worker
        daemon.cli("volume", "create", volume, "128M")
        units["plain"] = target.url(target.lun("--volume", volume))
        for kind, args in (("removable", ["--thin", "--removable"]), ("readonly", ["--readonly"])):
            units[kind] = target.url(target.lun("--file", t.disk("%s%d" % (kind, worker), 64 * MIB), *args))
        urls.append(units)
    free = collections.deque(urls)

    def one(name):
        units = free.popleft()
        try:
            kind = "removable" if name.startswith(REMOVABLE) else "readonly" if name.startswith(READ_ONLY) else "plain"
            url = alone.get(name, units[kind])
            verdict, text = iscsi.suite_run(name, url, url, 60)
            return name, verdict, text
        finally:
            free.append(units)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(one, names))
    count = collections.Counter(verdict for _, verdict, _ in results)
    skipped = [name for name, verdict, _ in results if verdict == "skipped"]
    failed = [(name, text) for name, verdict, text in results if verdict == "failed" and name not in UNPASSABLE]
    t.step("%d tests: %s; skipped: %s", len(results), dict(count), skipped)
    if failed:
        for name, text in failed:
            print("---- %s\n%s" % (name, text[-1500:]))
        raise Failure("%d failed: %s" % (len(failed), " ".join(name for name, _ in failed)))
    check(len(skipped) <= SKIPS_MAX, "%d skipped: %s", len(skipped), skipped)
    same(len(results), count["passed"] + count["failed"] + count["skipped"], "tests")
