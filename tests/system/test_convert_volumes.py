"""`vhdx convert` from and to volumes: what arrives is what QEMU sees, also after a crash, a full pool and a broken-off conversion."""
import os
import shutil
import signal

from iscsi import Target
from lib import GIB, KIB, MIB, Daemon, binary, check, options, run, same, wait_for
from proc import ended


def needs(*programs):
    for program in programs:
        check(shutil.which(program), "%s is not installed: tools/dev/need.sh installs it", program)


def sparse_disk(t, path, size, pieces):
    """A raw file with holes, runs of zeros, and pieces of data (offset, length); returns the bytes of data."""
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, length in pieces:
            f.seek(offset)
            f.write(t.random.randbytes(length))
        f.seek(20 * MIB)
        f.write(bytes(3 * MIB))
    return sum(length for _, length in pieces)


def compare(one, one_format, other, other_format):
    """QEMU finds the same disk in both."""
    run(["qemu-img", "compare", "-f", one_format, "-F", other_format, one, other], timeout=180)


def held_at_work(t, daemon, source, volume, **kwargs):
    """A conversion that fills a new volume and is held there: it runs between the looks only, so that it cannot end unseen."""
    child = t.spawn([binary("qrvsa"), "--socket", daemon.socket, "vhdx", "convert", source, "volume:" + volume], **kwargs)

    def at_work():
        os.kill(child.pid, signal.SIGSTOP)
        if any(v["name"] == volume and v["in_use"] for v in daemon.json("volume", "list", volume.split("/")[0])):
            return True
        os.kill(child.pid, signal.SIGCONT)
        return False
    wait_for(at_work, 60, lambda: "a conversion to begin; its exit is %s" % child.poll(), 0.05)
    return child


@options(seconds=240)
def test_round_trip(t):
    """raw -> volume -> dynamic -> volume -> raw is the same disk at each step for qemu-img, takes no space for zeros, and is durable at once."""
    needs("qemu-img")
    daemon = Daemon(t).start()
    pool = daemon.pool("tank", size=2 * GIB)
    pool.mount()
    a, b, c, d = (t.path(name) for name in ("a.raw", "b.vhdx", "c.raw", "d.vhdx"))
    # no multiple of a block, a record, a piece of 1 MiB
    size = 333 * MIB + 5 * 512
    data = sparse_disk(t, a, size, [(0, 100 * KIB), (7 * MIB + 123, 5 * MIB + 1), (100 * MIB - 1, 2), (size - 700, 700)])

    done = daemon.json("vhdx", "convert", a, "volume:tank/v")
    same((done["created"], done["disk_bytes"]), (True, size), "what was done")
    check(done["written_bytes"] <= data + MIB, "%d bytes of data were written as %d", data, done["written_bytes"])
    t.step("killed at once: what a conversion wrote is durable when it ends")
    pool.crash()
    volume = daemon.json("volume", "show", "tank/v")
    same(volume["size_bytes"], size, "size of the volume")
    check(volume["allocated_bytes"] <= data + 2 * MIB, "%d bytes of data take %d", data, volume["allocated_bytes"])
    face = os.path.join(pool.mountpoint, ".volumes", "v.vhdx")
    wait_for(lambda: os.path.exists(face), 60, "the file of the volume is there")
    compare(a, "raw", face, "vhdx")

    daemon.cli("vhdx", "convert", "volume:tank/v", b)
    run(["qemu-img", "check", "-f", "vhdx", b], timeout=60)
    compare(a, "raw", b, "vhdx")
    check(os.stat(b).st_blocks * 512 <= data + 200 * MIB, "the dynamic image takes %d bytes", os.stat(b).st_blocks * 512)
    daemon.cli("vhdx", "convert", b, "volume:tank/w")
    daemon.cli("vhdx", "convert", "volume:tank/w", c)
    run(["cmp", a, c], timeout=60)
    check(os.stat(c).st_blocks * 512 <= data + 2 * MIB, "the raw file takes %d bytes", os.stat(c).st_blocks * 512)
    # the other way round: made by QEMU
    run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", a, d], timeout=120)
    daemon.cli("vhdx", "convert", d, "volume:tank/w", "--force")
    daemon.cli("vhdx", "convert", "volume:tank/w", "--to", "fixed", c + ".fixed")
    compare(a, "raw", c + ".fixed", "vhdx")

    t.step("volumes with blocks of 4096 bytes")
    odd = t.path("odd.raw")
    with open(odd, "wb") as f:
        f.write(t.random.randbytes(3 * MIB + 1000))
    daemon.cli("vhdx", "convert", odd, "volume:tank/k", "--logical-sector", "4096")
    same(daemon.json("volume", "show", "tank/k")["block_bytes"], 4096, "block of the volume")
    daemon.cli("vhdx", "convert", "volume:tank/k", t.path("k.vhdx"))
    info = daemon.json("vhdx", "info", t.path("k.vhdx"))
    check("4096" in str(info), "the image has not its sectors: %s", info)
    daemon.cli("vhdx", "convert", t.path("k.vhdx"), t.path("k.raw"))
    with open(odd, "rb") as f, open(t.path("k.raw"), "rb") as g:
        was, got = f.read(), g.read()
    same((got[:len(was)] == was, len(got), got[len(was):].strip(b"\0")), (True, 3 * MIB + 4096, b""), "the disk with larger blocks")

    t.step("nothing is copied of what is empty")
    daemon.cli("volume", "create", "tank/huge", "64TB")
    done = daemon.json("vhdx", "convert", "volume:tank/huge", t.path("huge.vhdx"))
    same((done["read_bytes"], done["written_bytes"]), (0, 0), "read and written of an empty disk of 64 TB")
    done = daemon.json("vhdx", "convert", t.path("huge.vhdx"), "volume:tank/huge2")
    same(daemon.json("volume", "show", "tank/huge2")["allocated_bytes"], 0, "bytes of an empty disk")
    pool.check()


@options(seconds=240)
def test_refusals_and_failures(t):
    """Who uses a volume is not written over; a full pool and a killed conversion leave a state that is told and can be repaired."""
    daemon = Daemon(t).start()
    pool = daemon.pool("tank", geometry=(1, 1), size=512 * MIB)
    pool.mount()
    disk = t.path("disk.raw")
    with open(disk, "wb") as f:
        f.write(t.random.randbytes(8 * MIB))
    daemon.cli("vhdx", "convert", disk, "volume:tank/v")
    daemon.refused("holds data.*--force", "vhdx", "convert", disk, "volume:tank/v", code=5)
    daemon.refused("no file tank/v.*volume:tank/v", "vhdx", "convert", disk, "tank/v", code=2)
    daemon.cli("volume", "create", "tank/small", "1M")
    daemon.refused("has 1048576 bytes", "vhdx", "convert", disk, "volume:tank/small", code=1)

    t.step("its file is open for writing")
    daemon.cli("fs", "set", "tank", "volumes=rw")
    face = os.path.join(pool.mountpoint, ".volumes", "v.vhdx")
    with open(face, "r+b"):
        daemon.refused("in use", "vhdx", "convert", disk, "volume:tank/v", "--force", code=7)
    # the kernel releases a file a moment after it is closed
    wait_for(lambda: not daemon.json("volume", "show", "tank/v")["in_use"], 60, "the file is closed")

    t.step("a target serves it")
    target = Target(daemon)
    number = target.lun("--volume", "tank/v")
    daemon.refused("target", "vhdx", "convert", disk, "volume:tank/v", "--force", code=7)
    run([binary("qrvsa"), "--socket", daemon.socket, "vhdx", "convert", "volume:tank/v", t.path("copy.raw")], timeout=60)
    run(["cmp", disk, t.path("copy.raw")])
    daemon.cli("target", "lun", "remove", target.iqn, str(number))
    daemon.cli("vhdx", "convert", disk, "volume:tank/v", "--force")

    t.step("the pool becomes full in the middle")
    big = t.path("big.raw")
    with open(big, "wb") as f:
        for _ in range(150):
            f.write(t.random.randbytes(4 * MIB))
    daemon.refused("full.*new volume tank/big was removed again", "vhdx", "convert", big, "volume:tank/big", code=1, timeout=180)
    same([v["name"] for v in daemon.json("volume", "list", "tank")], ["tank/v", "tank/small"], "volumes after that")
    daemon.cli("volume", "create", "tank/big", "600M")
    daemon.refused("full.*tank/big holds a part of the disk only", "vhdx", "convert", big, "volume:tank/big", code=1, timeout=180)
    daemon.cli("vhdx", "convert", "volume:tank/v", t.path("again.raw"))
    run(["cmp", disk, t.path("again.raw")])
    daemon.cli("vhdx", "convert", disk, "volume:tank/big", "--force")

    t.step("the conversion is killed")
    child = held_at_work(t, daemon, big, "tank/killed")
    child.kill()
    ended(child, 60)
    wait_for(lambda: not daemon.json("volume", "show", "tank/killed")["in_use"], 60, "the volume is let go of")
    check("tank/killed holds a part only" in daemon.log_text(), "the daemon's log does not say it:\n%s", daemon.log_tail())
    daemon.cli("volume", "destroy", "tank/killed", "--force")

    t.step("the daemon is killed")
    child = held_at_work(t, daemon, big, "tank/killed", log=t.path("convert.log"))
    daemon.kill()
    child.send_signal(signal.SIGCONT)
    same(ended(child, 60), 3, "exit status of the conversion")
    with open(t.path("convert.log")) as f:
        told = f.read()
    check("tank/killed may be there with a part of the disk" in told and len(told.splitlines()) == 1, "it says: %s", told)
    daemon.start()
    pool.wait_mounted()
    daemon.cli("volume", "destroy", "tank/killed", "--force")
    daemon.cli("vhdx", "convert", "volume:tank/v", t.path("after.raw"))
    run(["cmp", disk, t.path("after.raw")])
    pool.check()
