"""Devices that vanish while a copy runs: no error, no wrong byte, an honest status, a rebuild that really restores redundancy."""
import os
import signal
import time

import trees
from lib import GIB, MIB, Daemon, Failure, binary, check, options, vanish_file, vanish_loop
from proc import SLOWNESS, ended


def wait_copied(child, target, size, share):
    """Waits until a share of the bytes has arrived, so that what happens next happens in the middle: the copy stands still while
    it is looked at, and goes on when this returns."""
    deadline = time.monotonic() + 300 * SLOWNESS
    while time.monotonic() < deadline:
        child.send_signal(signal.SIGSTOP)
        here = 0
        for base, _, files in os.walk(target):
            here += sum(os.lstat(os.path.join(base, f)).st_size for f in files)
        if here >= size * share:
            check(child.poll() is None, "the copy was over before the devices went: the tree is too small for this test")
            child.send_signal(signal.SIGCONT)
            return
        child.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise Failure("the copy does not move: %d of %d bytes after %d s" % (here, size, 300 * SLOWNESS))


def finish(t, child, seconds):
    check(ended(child, seconds) == 0, "the copy failed:\n%s", open(t.path("cp.log"), errors="replace").read()[-2000:])


@options(seconds=300, long_seconds=600)
def test_lose_two_then_two_others(t):
    """2+2: two devices vanish during cp -a, are replaced and rebuilt, then the two others vanish: everything is right throughout."""
    big = t.size(640 * MIB, 2 * GIB)
    source = t.mkdir("source")
    for i in range(10):
        trees.random_file(os.path.join(source, "big%d" % i), big // 10, t.seed + i)
    trees.make(os.path.join(source, "small"), files=300, seed=t.seed)
    wanted = trees.describe(source, links_inside=True)
    size = trees.totals(wanted)[1]

    device_size = big * 2
    loop, backing = t.loop("tank-loop", device_size)
    files = [t.disk("tank-%d" % i) for i in range(3)]
    devices = [files[0], files[1], loop, files[2]]
    daemon = Daemon(t).start()
    pool = daemon.pool(devices=devices, size=device_size)
    pool.mount()
    target = os.path.join(pool.mountpoint, "copy")

    child = t.spawn(["cp", "-a", source, target], log=t.path("cp.log"))
    wait_copied(child, target, size, 0.3)
    vanish_file(files[0])
    vanish_loop(loop, backing)
    t.step("%s and %s are gone", files[0], loop)
    finish(t, child, 300)
    status = pool.wait_degraded([files[0], loop])
    text = pool.status_text()
    for name in (files[0], loop):
        check(name in text, "the status for people does not name %s:\n%s", name, text)
    t.step("%s", status)
    trees.compare(wanted, target, "after two devices vanished")
    pool.restart()
    trees.compare(wanted, target, "degraded, after a restart")

    new = [t.disk("new-1"), t.disk("new-2")]
    pool.replace(files[0], new[0])
    pool.replace(loop, new[1])
    t.step("healthy after the rebuild: %s", pool.wait_healthy())
    trees.compare(wanted, target, "after the rebuild")

    vanish_file(files[1])
    vanish_file(files[2])
    pool.restart()
    trees.compare(wanted, target, "after the two other devices vanished")
    pool.wait_degraded([files[1], files[2]])
    pool.check()


@options(seconds=120)
def test_offline_and_online(t):
    """A device taken offline and back is brought up to date before it counts: then the others may go."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    first = trees.random_file(os.path.join(pool.mountpoint, "before"), 30 * MIB, t.seed)
    daemon.cli("pool", "offline", "tank", pool.devices[0])
    daemon.cli("pool", "offline", "tank", pool.devices[1])
    pool.wait_degraded(pool.devices[:2])
    daemon.refused(r"offline|redundan|too many|cannot", "pool", "offline", "tank", pool.devices[2])
    second = trees.random_file(os.path.join(pool.mountpoint, "meanwhile"), 30 * MIB, t.seed + 1)
    pool.sync()
    daemon.cli("pool", "online", "tank", pool.devices[0], timeout=300)
    daemon.cli("pool", "online", "tank", pool.devices[1], timeout=300)
    pool.wait_healthy(300)
    vanish_file(pool.devices[2])
    vanish_file(pool.devices[3])
    pool.restart()
    for name, digest in (("before", first), ("meanwhile", second)):
        check(trees.digest(os.path.join(pool.mountpoint, name)) == digest, "%s reads wrong from the devices that were away", name)


@options(seconds=120)
def test_absent_device_that_returns_is_resynchronised(t):
    """A device that was missing at import and returns with old content never serves it."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    path = os.path.join(pool.mountpoint, "file")
    trees.random_file(path, 20 * MIB, t.seed)
    pool.sync()
    daemon.stop()
    away = pool.devices[1] + ".away"
    os.rename(pool.devices[1], away)
    daemon.start()
    pool.wait_mounted()
    pool.wait_degraded([pool.devices[1]])
    wanted = trees.random_file(path, 20 * MIB, t.seed + 1)
    later = trees.random_file(path + "2", 20 * MIB, t.seed + 2)
    pool.sync()
    daemon.stop()
    os.rename(away, pool.devices[1])
    daemon.start()
    pool.wait_mounted()
    check(trees.digest(path) == wanted, "old content after the return of an old device")
    if not pool.status().healthy:
        daemon.cli("pool", "online", "tank", pool.devices[1], ok=False, timeout=300)
        pool.wait_healthy(300)
    check(pool.scrub().unrepairable == 0, "scrub finds loss after the return")
    # now the returned device has to carry its share
    vanish_file(pool.devices[2])
    vanish_file(pool.devices[3])
    pool.restart()
    check(trees.digest(path) == wanted and trees.digest(path + "2") == later, "wrong content from the device that returned")


@options(seconds=120)
def test_replace_goes_on_after_a_restart(t):
    """A rebuild interrupted by kill -9 goes on by itself and ends with a whole pool."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    path = os.path.join(pool.mountpoint, "file")
    wanted = trees.random_file(path, t.size(300, 600) * MIB, t.seed)
    pool.sync()
    new = t.disk("new", pool.size)
    child = t.spawn([binary("qrvsa"), "--socket", daemon.socket, "pool", "replace", "tank", pool.devices[0], new], log=t.path("replace.log"))
    time.sleep(0.3)
    daemon.kill()
    ended(child, 60)
    daemon.start()
    pool.wait_mounted()
    status = pool.status()
    if new not in [d.path for d in status.devices] and status.healthy:
        # the crash came before the order was durable; the new device may have its label already
        daemon.cli("pool", "replace", "tank", pool.devices[0], new, "--force", timeout=900)
    pool.bring_back()
    pool.wait_healthy(300)
    check(new in [d.path for d in pool.status().devices], "the new device is not a member: %s", pool.status())
    check(trees.digest(path) == wanted, "wrong content after the rebuild")
    check(pool.scrub().damaged == 0, "scrub finds damage after the rebuild")


@options(seconds=120)
def test_more_devices_lost_than_redundancy(t):
    """m+1 devices lost: errors instead of wrong data, no hang, no panic; with the devices back, all is there."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    pool.mount()
    path = os.path.join(pool.mountpoint, "file")
    wanted = trees.random_file(path, 40 * MIB, t.seed)
    pool.sync()
    daemon.stop()
    gone = pool.devices[:3]
    away = t.mkdir("away")
    for device in gone:
        os.rename(device, os.path.join(away, os.path.basename(device)))
    daemon.start()
    result = daemon.cli("pool", "import", "--search", t.path("disks"), "tank", ok=False)
    check(result.rc != 0 and result.err.strip(), "a pool with one of four devices was imported")
    for device in gone:
        os.rename(os.path.join(away, os.path.basename(device)), device)
    daemon.restart()
    pool.wait_mounted()
    check(trees.digest(path) == wanted, "wrong content after the devices returned")
    check(pool.status().healthy, "not whole with all devices back: %s", pool.status())
