"""LUNs on files inside a filesystem that the same daemon mounts: served below the mount, in step with what is seen through it."""
import errno
import mmap
import os
import re
import shutil
import struct
import threading

import iscsi
from lib import GIB, KIB, MIB, Daemon, Failure, check, end_child, options, run, same, wait_for
from proc import SLOWNESS
from syscalls import refuses, write_file
from test_iscsi_tgt import OURS, Tgt


def at(path, offset, length):
    """What a new open of the file reads."""
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read(length)


def sized(path, size):
    write_file(path)
    os.truncate(path, size)
    return path


def sense(action, *args):
    try:
        action(*args)
    except iscsi.CheckCondition as e:
        return e.key, e.asc, e.ascq
    return None


@options(seconds=120)
def test_a_file_inside_serves_below_its_mount(t):
    """A file in a mounted pool is a LUN: both sides see the same bytes, nobody else writes it or takes its name, and it comes back."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    top = pool.mount()
    os.mkdir(os.path.join(top, "vms"))
    path = sized(os.path.join(top, "vms", "disk"), 64 * MIB)
    with open(path, "r+b") as f:
        f.write(b"before".ljust(MIB, b"."))
    # in the kernel's cache before it becomes a LUN
    same(at(path, 0, 6), b"before", "the file")
    target = iscsi.Target(daemon)

    t.step("a program that has it open keeps it from being one")
    with open(path, "rb"):
        daemon.refused("open through its mount", "target", "lun", "add", target.iqn, "--file", path, code=7)
    lun = target.lun("--file", path, "--thin")
    initiator = target.initiator().settle(lun)
    same(initiator.read(lun, 0)[:6], b"before", "the LUN")

    t.step("reads through the mount see writes of the LUN, whoever read before")
    with open(path, "rb", buffering=0) as reader:
        for n in range(20):
            data = t.random.randbytes(4096)
            initiator.write(lun, 8 * n, data)
            same(os.pread(reader.fileno(), 4096, 4096 * n), data, "an open reader")
            same(at(path, 4096 * n, 4096), data, "a new reader")
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                same(mapped[4096 * n:4096 * n + 4096], data, "a new mapping")
    before = os.stat(path)
    initiator.write(lun, 100000, bytes([1]) * 4096)
    after = os.stat(path)
    check(after.st_mtime_ns > before.st_mtime_ns and after.st_blocks >= before.st_blocks, "times do not follow: %s", after)

    t.step("who else would change it is refused")
    name = re.escape("%s LUN %d" % (target.iqn, lun))
    refuses(errno.ETXTBSY, os.open, path, os.O_RDWR)
    refuses(errno.ETXTBSY, os.open, path, os.O_WRONLY | os.O_CREAT)
    refuses(errno.ETXTBSY, os.open, path, os.O_RDONLY | os.O_TRUNC)
    refuses(errno.ETXTBSY, os.truncate, path, 0)
    refuses(errno.EBUSY, os.unlink, path)
    refuses(errno.EBUSY, os.rename, path, path + ".away")
    write_file(path + ".new", b"x")
    refuses(errno.EBUSY, os.replace, path + ".new", path)
    same(at(path, 0, 1), initiator.read(lun, 0)[:1], "the file after all that")
    other = iscsi.Target(daemon, "other")
    daemon.refused("in use by target " + name, "target", "lun", "add", other.iqn, "--file", path, code=7)
    daemon.refused(name, "pool", "export", "tank", code=7)
    daemon.refused(name, "pool", "destroy", "tank", "--force", code=7)
    os.chmod(path, 0o600)

    t.step("a directory above it gets another name, the mount goes and comes, the daemon restarts")
    os.rename(os.path.join(top, "vms"), os.path.join(top, "machines"))
    path = os.path.join(top, "machines", "disk")
    word = t.random.randbytes(512)
    initiator.write(lun, 7, word)
    pool.umount()
    same(initiator.read(lun, 7), word, "the LUN without the mount")
    initiator.write(lun, 8, word, fua=True)
    initiator.close()
    daemon.restart()
    same([(l["state"], l["message"]) for l in target.show()["luns"]], [("online", "")], "state after the restart, not mounted")
    initiator = target.initiator().settle(lun)
    same(initiator.read(lun, 8), word, "the LUN after the restart")
    pool.mount(top)
    same(at(path, 8 * 512, 512), word, "the file after the restart")
    refuses(errno.ETXTBSY, os.open, path, os.O_RDWR)

    t.step("UNMAP makes holes")
    pool.sync()
    blocks = os.stat(path).st_blocks
    data = struct.pack(">HHxxxxQIxxxx", 22, 16, 0, MIB // 512)
    initiator.command(lun, struct.pack(">BxxxxxxHx", 0x42, len(data)), data)
    pool.sync()
    same(at(path, 0, MIB), bytes(MIB), "what was unmapped")
    check(os.stat(path).st_blocks < blocks, "UNMAP gave nothing back: %d, then %d", blocks, os.stat(path).st_blocks)

    t.step("afterwards it is a file like any other")
    initiator.close()
    daemon.cli("target", "lun", "remove", target.iqn, str(lun))
    with open(path, "r+b") as f:
        f.write(b"free")
    same(at(path, 0, 4), b"free", "the file, written through the mount")
    os.unlink(path)

    t.step("tgtadm does the same")
    path = sized(os.path.join(top, "t"), MIB)
    tgtadm = Tgt(daemon, OURS)
    tid = target.show()["tid"]
    # by a link from outside
    link = t.path("link")
    os.symlink(os.path.join(top, "t"), link)
    tgtadm("--mode logicalunit --op new --tid %d --lun 5 --backing-store %s" % (tid, link))
    initiator = target.initiator().settle(5)
    initiator.write(5, 1, word)
    same(at(path, 512, 512), word, "the file of a LUN that tgtadm made")
    initiator.close()
    tgtadm("--mode logicalunit --op delete --tid %d --lun 5" % tid)
    daemon.cli("fs", "create", "tank/inner")
    inner = pool.mount(t.mkdir("inner"), fs="inner")
    lun = target.lun("--file", sized(os.path.join(inner, "f"), MIB))
    daemon.cli("umount", inner)
    daemon.refused("%s LUN %d" % (re.escape(target.iqn), lun), "fs", "destroy", "tank/inner", "--force", code=7)
    daemon.cli("target", "destroy", target.iqn, "--force")
    daemon.cli("fs", "destroy", "tank/inner", "--force")

    t.step("a pool inside itself stays refused, and so does a loop device")
    inside = sized(os.path.join(top, "member"), 256 * MIB)
    daemon.refused("lies in a QRVSA mount", "pool", "create", "inside", inside, code=2)
    target = iscsi.Target(daemon)
    daemon.cli("volume", "create", "tank/v", "8M")
    daemon.refused("with --volume", "target", "lun", "add", target.iqn, "--vhdx", os.path.join(top, ".volumes", "v.vhdx"), code=2)
    daemon.refused("does not exist", "target", "lun", "add", target.iqn, "--file", os.path.join(top, "none"), code=6)
    daemon.refused("not a regular file", "target", "lun", "add", target.iqn, "--file", top, code=2)
    same(target.show()["luns"], [], "LUNs after the refusals")
    pool.check()


@options(seconds=120)
def test_a_vhdx_file_inside_survives_kill_9(t):
    """A differencing VHDX file inside a pool, its parent too, is a LUN: kill -9 under load hangs nothing and loses no flushed byte."""
    check(shutil.which("qemu-img"), "qemu-img is not installed: tools/dev/need.sh installs it")
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    top = pool.mount()
    base, child, host = os.path.join(top, "base.vhdx"), os.path.join(top, "child.vhdx"), t.path("host.vhdx")
    raw = t.path("raw")
    with open(raw, "wb") as f:
        f.write(t.random.randbytes(3 * MIB))
        f.truncate(48 * MIB)
    run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", raw, base], timeout=60)
    daemon.cli("vhdx", "create", child, "--parent", base)
    daemon.cli("vhdx", "create", host, "--parent", base)
    target = iscsi.Target(daemon)
    lun = target.lun("--vhdx", child)
    # a child outside whose parent lies inside
    outside = target.lun("--vhdx", host, "--readonly")
    same([l["state"] for l in target.show()["luns"]], ["online"] * 2, "states")
    run(["qemu-img", "compare", "-f", "raw", "-F", "raw", raw, target.url(lun)], timeout=60)
    run(["qemu-img", "compare", "-f", "raw", "-F", "raw", raw, target.url(outside)], timeout=60)
    name = re.escape("%s LUN" % target.iqn)
    for program in ("check", "repair", "compact"):
        daemon.refused("in use", "vhdx", program, child)
    daemon.refused("in use", "vhdx", "repair", base)
    refuses(errno.ETXTBSY, os.open, base, os.O_RDWR)
    refuses(errno.EBUSY, os.unlink, base)
    daemon.refused("in use by target " + name, "target", "lun", "add", target.iqn, "--vhdx", base, code=7)

    wanted = {}
    with open(raw, "rb") as f:
        first = f.read(512)
    for turn in range(2):
        t.step("kill -9 under load, %d", turn)
        initiator, load = target.initiator().settle(lun), target.initiator("load", isid=2).settle(lun)
        same(initiator.read(lun, 0), first, "the parent's block")
        for lba, data in wanted.items():
            same(initiator.read(lun, lba, 8), data, "LBA %d after %d crashes" % (lba, turn))
        going = threading.Event()

        def write_without_end():
            try:
                for n in range(1000000):
                    load.write(lun, 60000 + n % 30000 // 8 * 8, bytes([n % 256]) * 4096, fua=n % 7 == 0)
                    going.set()
            except (OSError, Failure):
                going.set()
        thread = threading.Thread(target=write_without_end, daemon=True)
        thread.start()
        # readers through the mount at the same time
        reader = t.spawn(["sh", "-c", "while cat '%s' '%s' >/dev/null; do :; done" % (child, base)])
        check(going.wait(30 * SLOWNESS), "the load does not begin")
        for n in range(8):
            lba, data = 8 * t.random.randrange(1000, 7000), t.random.randbytes(4096)
            initiator.write(lun, lba, data, fua=n % 2 == 1)
            wanted[lba] = data
        initiator.sync(lun)
        # ends in time, or the test fails: nothing of it waits for itself
        daemon.kill()
        thread.join(90 * SLOWNESS)
        check(not thread.is_alive(), "the load does not end")
        initiator.close()
        load.close()
        daemon.start()
        pool.wait_mounted()
        end_child(reader)
        same([(l["state"], l["message"]) for l in target.show()["luns"]], [("online", "")] * 2, "states after the crash")
    initiator = target.initiator().settle(lun)
    for lba, data in wanted.items():
        same(initiator.read(lun, lba, 8), data, "LBA %d after the last crash" % lba)
    initiator.close()

    t.step("closed in order, it is a clean image with the same bytes")
    image, flat = t.path("image"), t.path("flat.vhdx")
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", target.url(lun), image], timeout=60)
    daemon.restart()
    pool.wait_mounted()
    daemon.cli("target", "destroy", target.iqn, "--force")
    daemon.cli("vhdx", "check", child)
    daemon.cli("vhdx", "convert", child, flat)
    run(["qemu-img", "check", "-f", "vhdx", flat], timeout=60)
    run(["qemu-img", "compare", "-f", "raw", "-F", "vhdx", image, flat], timeout=60)
    check("not closed in order" not in daemon.log_text(), "the image was not closed at the end of the daemon")
    pool.check()


@options(seconds=120)
def test_a_full_pool_and_a_missing_pool_under_files(t):
    """With the pool full, writes get SPACE ALLOCATION FAILED and go on after UNMAP; without the pool, the LUNs say so and come back."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=64 * MIB)
    top = pool.mount()
    target = iscsi.Target(daemon)
    image = os.path.join(top, "disk.vhdx")
    daemon.cli("vhdx", "create", image, "64M", "--block-size", "1M")
    vhdx = target.lun("--vhdx", image)
    lun = target.lun("--file", sized(os.path.join(top, "disk"), 2 * GIB), "--thin")
    initiator = target.initiator().settle(lun).settle(vhdx)
    word = t.random.randbytes(4096)
    initiator.write(vhdx, 0, word, fua=True)
    chunk = t.random.randbytes(64 * KIB)

    def put(lun, n):
        while True:
            found = sense(initiator.write, lun, n * 128, struct.pack("<Q", n) + chunk[8:])
            # the soft threshold
            if found is None or found[0] != 6:
                return found
    done = 0
    while (found := put(lun, done)) is None:
        done += 1
        check(done * 64 * KIB < GIB, "a pool of 128 MiB takes 1 GiB")
    same(found, (7, 0x27, 7), "sense of a write to a full pool")
    t.step("%d MiB written", done * 64 * KIB // MIB)
    blocks = [put(vhdx, n) for n in range(16, 1000, 16)]
    check((7, 0x27, 7) in blocks, "a VHDX file in a full pool takes new blocks: %s", blocks)
    initiator.settle(vhdx)
    same(initiator.read(vhdx, 0, 8), word, "what was flushed into the VHDX file")
    for n in [0, done - 1] + [t.random.randrange(done) for _ in range(10)]:
        same(initiator.read(lun, n * 128, 128), struct.pack("<Q", n) + chunk[8:], "chunk %d" % n)
    for n in range(0, done // 2, 256):
        length = min(256, done // 2 - n) * 128
        data = struct.pack(">HHxxxxQIxxxx", 22, 16, n * 128, length)
        initiator.command(lun, struct.pack(">BxxxxxxHx", 0x42, len(data)), data)
    initiator.sync(lun)
    pool.sync()
    wait_for(lambda: put(lun, 0) is None, 60, "writes to go on after UNMAP", 0.5)
    initiator.sync(lun)
    initiator.close()

    t.step("the pool is not there")
    daemon.stop()
    for device in pool.devices:
        os.rename(device, device + ".away")
    daemon.start()
    for shown in target.show()["luns"]:
        same(shown["state"], "unavailable", "state without the pool")
        check("tank" in shown["message"] and "not imported" in shown["message"], "no plain reason: %s", shown["message"])
    for device in pool.devices:
        os.rename(device + ".away", device)
    daemon.cli("pool", "import", "tank", "--search", os.path.dirname(pool.devices[0]))
    same([(l["state"], l["message"]) for l in target.show()["luns"]], [("online", "")] * 2, "states with the pool")
    initiator = target.initiator().settle(lun).settle(vhdx)
    same(initiator.read(vhdx, 0, 8), word, "the VHDX file with the pool")
    same(initiator.read(lun, 0, 128), struct.pack("<Q", 0) + chunk[8:], "the file with the pool")
    initiator.close()
    pool.check()
