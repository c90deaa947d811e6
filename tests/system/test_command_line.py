"""The command line: what people and scripts are promised about its output, exit status, help, manuals and completions."""
import json
import os
import re

import trees
from lib import GIB, MIB, ROOT, Daemon, Failure, binary, check, options, run, same


@options(seconds=120)
def test_every_answer_is_json(t):
    """With --json every command prints one JSON document on stdout and nothing else; without it, text for people."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    directory = pool.mount()
    trees.random_file(os.path.join(directory, "f"), MIB, t.seed)
    pool.sync()
    for args in (["pool", "list"], ["pool", "status", "tank"], ["fs", "list", "tank"], ["fs", "create", "tank/a"], ["fs", "get", "tank/a"],
                 ["pool", "scrub", "tank", "--wait"], ["check", "tank"], ["pool", "sync", "tank"], ["debug", "locate", os.path.join(directory, "f")],
                 ["fs", "destroy", "tank/a", "--force"]):
        out = daemon.cli("--json", *args).out
        try:
            json.loads(out)
        except ValueError:
            raise Failure("qrvsa --json %s printed %r" % (" ".join(args), out[:300])) from None
    result = daemon.cli("--json", "pool", "status", "nope", ok=False)
    check(result.rc != 0, "an unknown pool")
    text = pool.status_text()
    for device in pool.devices:
        check(device in text, "the status does not name %s:\n%s", device, text)
    check("tank" in text and "2+2" in text, "the status lacks name or geometry:\n%s", text)


@options(seconds=120)
def test_status_tells_the_truth(t):
    """Usable, used and free add up and follow what is written; per device capacity and allocation are real."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    directory = pool.mount()
    pool.sync()
    before = pool.status()
    check(0.85 * 2 * GIB < before.usable <= 2 * GIB, "usable of 4 x 1 GiB at 2+2: %d", before.usable)
    check(abs(before.used + before.free - before.usable) <= 0.04 * before.usable, "used %d + free %d is not usable %d", before.used, before.free, before.usable)
    for d in before.devices:
        check(0.95 * GIB < d.size <= GIB, "capacity of %s: %d", d.path, d.size)
        same((d.read_errors, d.write_errors, d.checksum_errors), (0, 0, 0), "errors of a new device")
    trees.random_file(os.path.join(directory, "f"), 200 * MIB, t.seed)
    pool.sync()
    after = pool.status()
    grown = after.used - before.used
    check(195 * MIB < grown < 220 * MIB, "200 MiB written, used grew by %.1f MiB", grown / MIB)
    allocated = sum(d.allocated for d in after.devices) - sum(d.allocated for d in before.devices)
    check(390 * MIB < allocated < 700 * MIB, "200 MiB at 2+2, allocated on devices grew by %.1f MiB", allocated / MIB)
    # the files on the host agree
    blocks = sum(os.stat(p).st_blocks * 512 for p in pool.devices)
    check(blocks >= 395 * MIB, "the device files hold %.1f MiB", blocks / MIB)


@options(seconds=60)
def test_properties(t):
    """fs get lists properties, fs set changes one, and the change survives a restart."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    daemon.cli("fs", "create", "tank/a")
    text = daemon.cli("fs", "get", "tank/a").out
    check("recordsize" in text or "record_size" in text, "no record size among the properties:\n%s", text)
    key = "recordsize" if "recordsize" in text else "record_size"
    daemon.cli("fs", "set", "tank/a", key + "=65536")
    pool.restart()
    value = daemon.cli("fs", "get", "tank/a", key).out
    check(re.search(r"65536|64 ?K", value), "the property after a restart: %s", value)
    names = daemon.cli("fs", "list", "tank").out
    check("tank/a" in names, "fs list: %s", names)
    daemon.cli("fs", "destroy", "tank/a", "--force")
    check("tank/a" not in daemon.cli("fs", "list", "tank").out, "destroyed, but listed")


@options(seconds=60)
def test_help_manuals_completions(t):
    """--help of each command answers at once; make install puts programs, units, manuals and completions in place."""
    for args in ([], ["pool"], ["pool", "create"], ["pool", "import"], ["pool", "replace"], ["pool", "scrub"], ["fs"], ["fs", "set"], ["mount"], ["umount"], ["check"], ["debug"], ["debug", "locate"]):
        text = run([binary("qrvsa"), *args, "--help"], timeout=10).out
        check("Usage" in text or "USAGE" in text, "qrvsa %s --help: %s", args, text[:200])
    root = t.mkdir("root")
    run(["make", "-s", "-C", ROOT, "install", "DESTDIR=" + root, "PREFIX=/usr", "SKIP_BUILD=1"], timeout=60)
    there = {os.path.relpath(os.path.join(b, f), root) for b, _, fs in os.walk(root) for f in fs}
    for pattern in (r"usr/bin/qrvsa$", r"usr/s?bin/qrvsad$", r"sbin/mount\.fuse\.qrvsa$", r"systemd/system/qrvsad\.service$", r"man/man[18]/qrvsa", r"bash-completion/completions/qrvsa$"):
        check(any(re.search(pattern, x) for x in there), "make install does not install %s: %s", pattern, sorted(there))
    link = os.path.join(root, "sbin/mount.fuse.qrvsa")
    same(os.readlink(link), "/usr/bin/qrvsa", "the mount helper")
    unit = next(x for x in there if x.endswith("qrvsad.service"))
    with open(os.path.join(root, unit)) as f:
        text = f.read()
    check(re.search(r"^ExecStart=/usr/s?bin/qrvsad", text, re.M) and "Type=notify" in text, "the unit:\n%s", text)
