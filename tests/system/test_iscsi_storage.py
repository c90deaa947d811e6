"""LUNs as storage: what was written is there, through restarts, crashes, full pools and resizes."""
import errno
import os
import re

import iscsi
from lib import GIB, KIB, MIB, Daemon, Failure, binary, check, options, run, same, wait_for
from proc import ended


def sized(t, name, size):
    return t.disk(name, size)


def refusal(initiator, lun, cdb, expect=0):
    """Sense of a command that is not carried out, past unit attentions."""
    for _ in range(8):
        try:
            initiator.command(lun, cdb, expect=expect)
        except iscsi.CheckCondition as e:
            if e.key != 6:
                return e.key, e.asc, e.ascq
    return None


def flush(initiator, lun):
    """SYNCHRONIZE CACHE, past unit attentions: with one of those it is not carried out."""
    for _ in range(8):
        try:
            return initiator.sync(lun)
        except iscsi.CheckCondition as e:
            same(e.key, 6, "sense of a flush")
    raise Failure("unit attentions without end")


@options(seconds=120)
def test_qemu_img_converts_to_and_from_a_lun(t):
    """qemu-img writes an image through libiscsi to a LUN on a volume, compares it equal, and reads it back equal."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "128M")
    target = iscsi.Target(daemon)
    url = target.url(target.lun("--volume", "tank/v"))
    image, back = t.path("image"), t.path("back")
    with open(image, "wb") as f:
        for at in range(0, 96 * MIB, 8 * MIB):
            f.seek(at)
            f.write(t.random.randbytes(t.random.randrange(1, 4 * MIB)))
        f.truncate(128 * MIB)
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url], timeout=90)
    run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, url], timeout=90)
    daemon.restart()
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, back], timeout=90)
    run(["cmp", image, back], timeout=60)
    daemon.cli("check", "tank", "--deep", timeout=300)


@options(seconds=120)
def test_every_kind_of_storage(t):
    """Volumes, plain files, VHDX files, block devices and null LUNs serve side by side, and keep what they were given."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M", "--block-size", "4096")
    vhdx = t.path("disk.vhdx")
    run(["qemu-img", "create", "-f", "vhdx", vhdx, "64M"], timeout=30)
    device, _ = t.loop("loop", 64 * MIB)
    target = iscsi.Target(daemon)
    luns = {"volume": (target.lun("--volume", "tank/v"), 4096), "file": (target.lun("--file", sized(t, "f", 64 * MIB)), 512),
            "vhdx": (target.lun("--vhdx", vhdx), 512), "device": (target.lun("--file", device), 512)}
    null = target.lun("--null", "1T")
    initiator = target.initiator()
    written = {}
    for kind, (lun, block) in luns.items():
        initiator.settle(lun)
        written[kind] = t.random.randbytes(16 * block)
        initiator.write(lun, 5, written[kind], block)
        initiator.sync(lun)
    initiator.settle(null)
    same(initiator.read(null, 12345), bytes(512), "a null LUN")
    same(sorted(l["state"] for l in target.show()["luns"]), ["online"] * 5, "states")
    initiator.close()
    daemon.stop()
    run(["qemu-img", "check", "-f", "vhdx", vhdx], timeout=30)
    daemon.start()
    initiator = target.initiator()
    for kind, (lun, block) in luns.items():
        initiator.settle(lun)
        same(initiator.read(lun, 5, 16, block), written[kind], "read back from the " + kind)
    initiator.close()


@options(seconds=120)
def test_storage_has_one_user(t):
    """What a pool, a mount or a loop device uses does not become a LUN, and what is a LUN goes to none of them, nor is it written by
    conversions. Several LUNs may stand on it."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=256 * MIB)
    target = iscsi.Target(daemon)

    def refused(why, path, *args):
        daemon.refused(why, "target", "lun", "add", target.iqn, "--file", path, *args, code=7)

    def others_are_refused(path):
        daemon.refused("in use", "vhdx", "convert", source, path, "--to", "raw", "--force", code=7)
        daemon.refused("in use", "pool", "create", "lake", "--force", path, code=7)
    source = t.disk("source", MIB)
    refused("in use", pool.devices[0])
    refused("in use", pool.devices[0], "--readonly")
    served = t.disk("served", 256 * MIB)
    luns = [target.lun("--file", served) for _ in range(2)]
    inode = os.stat(served).st_ino
    others_are_refused(served)
    daemon.restart()
    same(sorted(l["state"] for l in target.show()["luns"]), ["online"] * 2, "states")
    others_are_refused(served)
    same((os.stat(served).st_ino, os.stat(served).st_size), (inode, 256 * MIB), "the file of two LUNs")
    for lun in luns:
        daemon.cli("target", "lun", "remove", target.iqn, str(lun))
    daemon.cli("vhdx", "convert", source, served, "--to", "raw", "--force")

    device, backing = t.loop("loop", 64 * MIB)
    refused("backing file", backing)
    run(["mkfs.ext4", "-q", device])
    mnt = t.mkdir("fsmnt")
    run(["mount", device, mnt])
    t.defer(run, ["umount", mnt], 30, False)
    refused("mounted at", device)
    lun = target.lun("--file", device, "--readonly")
    run(["umount", mnt])
    run(["mount", device, mnt])
    run(["umount", mnt])
    daemon.cli("target", "lun", "remove", target.iqn, str(lun))
    target.lun("--file", device)
    others_are_refused(device)
    check(run(["mount", device, mnt], ok=False).rc != 0, "the device of a LUN was mounted")


@options(seconds=120)
def test_acknowledged_writes_survive_kill_9(t):
    """After kill -9 the target is back by itself, the session can log in again, and every synced or FUA write is there."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "128M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    wanted = {}
    for turn in range(3):
        initiator = target.initiator().settle(lun)
        for lba, data in wanted.items():
            same(initiator.read(lun, lba, len(data) // 512), data, "LBA %d after %d crashes" % (lba, turn))
        for n in range(20):
            lba, data = t.random.randrange(0, 200000), t.random.randbytes(512 * t.random.randrange(1, 64))
            wanted = {at: old for at, old in wanted.items() if at + len(old) // 512 <= lba or at >= lba + len(data) // 512}
            initiator.write(lun, lba, data, fua=n % 2 == 1)
            wanted[lba] = data
        initiator.sync(lun)
        daemon.kill()
        initiator.close()
        daemon.start()
    daemon.cli("check", "tank", "--deep", timeout=300)


@options(seconds=240, long_seconds=600)
def test_kill_9_while_the_pool_changes(t):
    """kill -9 in the middle of a volume's growth and of a device's replacement, with a LUN being written: every write that was
    acknowledged with FUA or before a SYNCHRONIZE CACHE is there, the size is the old or the new one, and the pool is consistent."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    sizes, known, spare = [64], {}, 0
    # something to rebuild
    filler = target.initiator().settle(lun)
    for at in range(0, 56 * 2048, 128):
        filler.write(lun, at, t.random.randbytes(64 * KIB))
    filler.sync(lun)
    for lba in range(0, 16000 * 8, 8 * 500):
        known[lba] = (filler.read(lun, lba, 8), [])
    filler.close()
    for turn in range(t.size(6, 24)):
        initiator = target.initiator().settle(lun)
        capacity = initiator.command(lun, [0x9e, 0x10] + [0] * 8 + [0, 0, 0, 32, 0, 0], expect=32)
        same((int.from_bytes(capacity[:8], "big") + 1) // 2048 in sizes, True, "a size that was asked for: %r" % sizes)
        for lba, (data, perhaps) in known.items():
            found = initiator.read(lun, lba, 8)
            check(found in [data] + perhaps, "LBA %d after %d crashes: %.16r", lba, turn, found)
            known[lba] = (found, [])
        # something long in the background, killed in its middle
        if turn % 2:
            spare += 1
            old, new = pool.devices[turn % 4], t.disk("spare%d" % spare)
            change = t.spawn([binary("qrvsa"), "--socket", daemon.socket, "pool", "replace", "tank", old, "%s:%d" % (new, GIB)])
        else:
            sizes.append(sizes[-1] + 16)
            change = t.spawn([binary("qrvsa"), "--socket", daemon.socket, "volume", "resize", "tank/v", "%dM" % sizes[-1]])
        unsafe = {}
        for n in range(t.random.randrange(1, 120)):
            lba, data, fua = t.random.randrange(16000) * 8, t.random.randbytes(4096), n % 3 == 0
            try:
                initiator.write(lun, lba, data, fua=fua)
            except iscsi.CheckCondition as e:
                same(e.key, 6, "sense of a write")
                continue
            if fua:
                known[lba] = (data, [])
                unsafe.pop(lba, None)
            else:
                unsafe.setdefault(lba, []).append(data)
            if n % 40 == 39:
                flush(initiator, lun)
                known.update({at: (versions[-1], []) for at, versions in unsafe.items()})
                unsafe.clear()
        for lba, versions in unsafe.items():
            if lba in known:
                known[lba] = (known[lba][0], versions)
        daemon.kill()
        ended(change, 60)
        initiator.close()
        daemon.start()
        devices = {d.path for d in pool.status().devices}
        if turn % 2 and new in devices:
            pool.devices[turn % 4] = new
        pool.bring_back()
        wait_for(lambda: target.show()["luns"][0]["state"] == "online", 60, "the LUN to serve again")
    initiator = target.initiator().settle(lun)
    for lba, (data, perhaps) in known.items():
        check(initiator.read(lun, lba, 8) in [data] + perhaps, "LBA %d at the end", lba)
    initiator.close()
    pool.wait_healthy()
    pool.check()


@options(seconds=120)
def test_reservations_survive_restarts(t):
    """A persistent reservation with APTPL is in force after a restart and after kill -9, on a volume and on a file."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M")
    target = iscsi.Target(daemon)
    luns = [target.lun("--volume", "tank/v"), target.lun("--file", sized(t, "f", 64 * MIB))]
    key = 0x1234567890
    for name, again in (("start", None), ("SIGTERM", daemon.restart), ("kill -9", lambda: (daemon.kill(), daemon.start()))):
        if again:
            again()
        owner, other = target.initiator("owner", isid=1), target.initiator("other", isid=2)
        for lun in luns:
            owner.settle(lun)
            other.settle(lun)
            if not again:
                owner.reserve_out(lun, 0, new=key, aptpl=True)
                owner.reserve_out(lun, 1, key=key, kind=1)
            same(owner.reserve_keys(lun), [key], "keys of LUN %d after %s" % (lun, name))
            owner.write(lun, 0, bytes(512))
            try:
                other.write(lun, 0, bytes(512))
                raise Failure("LUN %d after %s: a write past somebody else's reservation" % (lun, name))
            except iscsi.Conflict:
                pass
        owner.close()
        other.close()


@options(seconds=180)
def test_a_full_pool_under_a_thin_lun(t):
    """With the pool full, writes get SPACE ALLOCATION FAILED at once; what was acknowledged stays; UNMAP makes room again."""
    import struct
    daemon = Daemon(t).start()
    pool = daemon.pool(size=256 * MIB)
    daemon.cli("volume", "create", "tank/v", "4G")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    initiator = target.initiator().settle(lun)
    chunk = t.random.randbytes(64 * KIB)
    done = 0
    while True:
        data = struct.pack("<Q", done) + chunk[8:]
        try:
            initiator.write(lun, done * 128, data)
        except iscsi.CheckCondition as e:
            if e.key == 6:
                # the soft threshold
                continue
            same((e.key, e.asc, e.ascq), (7, 0x27, 7), "sense of a write to a full pool")
            break
        done += 1
        check(done * 64 * KIB < 1 * GIB, "a pool of 512 MiB takes 1 GiB")
    t.step("%d MiB written", done * 64 * KIB // MIB)
    for n in [0, done - 1] + [t.random.randrange(done) for _ in range(20)]:
        same(initiator.read(lun, n * 128, 128), struct.pack("<Q", n) + chunk[8:], "chunk %d" % n)
    # gives back half of it
    for n in range(0, done // 2, 256):
        blocks = min(256, done // 2 - n) * 128
        data = struct.pack(">HHxxxxQIxxxx", 22, 16, n * 128, blocks)
        initiator.command(lun, struct.pack(">BxxxxxxHx", 0x42, len(data)), data)
    initiator.sync(lun)
    pool.sync()

    def writes():
        try:
            initiator.write(lun, 0, chunk)
            return True
        except iscsi.CheckCondition:
            return False
    wait_for(writes, 60, "writes to go on after UNMAP", 0.5)
    same(initiator.read(lun, 0, 128), chunk, "what was written then")
    initiator.close()


@options(seconds=240)
def test_a_lun_and_files_fill_a_pool_together(t):
    """A LUN and a filesystem fill one pool side by side: each is told at the write, with its own error, what either was told is
    written is there, and both go on when files are removed."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=128 * MIB)
    daemon.cli("volume", "create", "tank/v", "4G")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    pool.mount()
    initiator = target.initiator().settle(lun)
    chunk = t.random.randbytes(64 * KIB)
    written, files, full = 0, [], set()
    while full != {"lun", "files"}:
        check(written + len(files) < 32768, "a pool of 256 MiB takes 2 GiB")
        try:
            if "lun" not in full:
                initiator.write(lun, written * 128, b"%08d" % written + chunk[8:])
                written += 1
        except iscsi.CheckCondition as e:
            if e.key != 6:
                same((e.key, e.asc, e.ascq), (7, 0x27, 7), "sense of a write to a full pool")
                full.add("lun")
        if "files" in full:
            continue
        path = os.path.join(pool.mountpoint, "f%d" % len(files))
        try:
            with open(path, "wb", buffering=0) as f:
                check(f.write(b"%08d" % len(files) + chunk[8:]) == len(chunk), "a short write")
            files.append(path)
        except OSError as e:
            same(e.errno, errno.ENOSPC, "error of a file in a full pool")
            full.add("files")
            if os.path.exists(path):
                os.unlink(path)
    t.step("%d chunks in the LUN, %d in files", written, len(files))

    def all_there():
        for n in list(range(0, written, 7)) + list(range(max(0, written - 100), written)):
            same(initiator.read(lun, n * 128, 128), b"%08d" % n + chunk[8:], "chunk %d" % n)
        for n, path in enumerate(files):
            with open(path, "rb") as f:
                same(f.read(), b"%08d" % n + chunk[8:], path)
    all_there()
    for path in files[len(files) // 2:]:
        os.unlink(path)
    del files[len(files) // 2:]

    def lun_goes_on():
        try:
            initiator.write(lun, written * 128, b"%08d" % written + chunk[8:])
            return True
        except iscsi.CheckCondition:
            return False
    wait_for(lun_goes_on, 60, "the LUN to go on when files are gone", 0.2)
    written += 1

    def files_go_on():
        try:
            with open(os.path.join(pool.mountpoint, "again"), "wb") as f:
                f.write(chunk)
            return True
        except OSError as e:
            same(e.errno, errno.ENOSPC, "error of a file in a full pool")
            return False
    wait_for(files_go_on, 60, "files to go on when files are gone", 0.2)
    initiator.sync(lun)
    initiator.close()
    pool.restart()
    initiator = target.initiator().settle(lun)
    all_there()
    initiator.close()


@options(seconds=60)
def test_a_volume_grows_under_a_lun(t):
    """A resized volume shows its new size to the session that is logged in, with the unit attention for it."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    initiator = target.initiator().settle(lun)
    daemon.cli("volume", "resize", "tank/v", "100M")
    try:
        initiator.command(lun, [0] * 6)
        raise Failure("no unit attention after the resize")
    except iscsi.CheckCondition as e:
        same((e.key, e.asc, e.ascq), (6, 0x2a, 9), "sense after the resize")
    capacity = initiator.command(lun, [0x9e, 0x10] + [0] * 8 + [0, 0, 0, 32, 0, 0], expect=32)
    same(int.from_bytes(capacity[:8], "big") + 1, 100 * MIB // 512, "blocks")
    initiator.close()


@options(seconds=60)
def test_storage_in_use_is_not_taken_away(t):
    """Destroying or exporting what a LUN stands on is refused and names the LUN; afterwards it works."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    for args in (["volume", "destroy", "tank/v", "--force"], ["pool", "export", "tank"], ["pool", "destroy", "tank", "--force"]):
        daemon.refused("%s LUN %d" % (re.escape(target.iqn), lun), *args, code=7)
    # a second unit would have the same names, and know nothing of the first one's reservations
    other = iscsi.Target(daemon, "b")
    daemon.refused("%s LUN %d" % (re.escape(target.iqn), lun), "target", "lun", "add", other.iqn, "--volume", "tank/v", code=7)
    daemon.cli("target", "lun", "remove", target.iqn, str(lun))
    daemon.cli("volume", "destroy", "tank/v", "--force")
    daemon.cli("pool", "export", "tank")


@options(seconds=120)
def test_a_lun_waits_for_its_pool(t):
    """A LUN whose pool is not there at the start is shown as unavailable, and serves when the pool is imported."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    initiator = target.initiator().settle(lun)
    data = t.random.randbytes(4096)
    initiator.write(lun, 9, data, fua=True)
    initiator.close()
    daemon.stop()
    for device in pool.devices:
        os.rename(device, device + ".away")
    daemon.start()
    shown = target.show()["luns"][0]
    same(shown["state"], "unavailable", "state without the pool")
    check(shown["message"], "no reason is given")
    check("unavailable" in daemon.cli("target", "show", target.iqn).out, "the text does not say it")
    # who is logged in sees the unit, by its names, and that it is not ready
    waiting = target.initiator("waits", isid=2)
    names = waiting.command(lun, [0x12, 1, 0x83, 1, 0, 0], expect=256)
    for cdb, expect in (([0] * 6, 0), ([0x25] + [0] * 9, 8), ([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512)):
        same(refusal(waiting, lun, cdb, expect), (2, 4, 3), "command %02x without the pool" % cdb[0])
    for device in pool.devices:
        os.rename(device + ".away", device)
    daemon.cli("pool", "import", "tank", "--search", os.path.dirname(pool.devices[0]))
    same(target.show()["luns"][0]["state"], "online", "state with the pool")
    initiator = target.initiator().settle(lun)
    same(initiator.read(lun, 9, 8), data, "what was written before")
    initiator.close()
    same(waiting.settle(lun).read(lun, 9, 8), data, "the same, in the session that waited")
    same(waiting.command(lun, [0x12, 1, 0x83, 1, 0, 0], expect=256), names, "the names of the unit")
    waiting.close()


#: Reads the second sector through the BIOS, prints it up to its NUL on QEMU's debug console, and ends QEMU with status 1.
BOOT_SECTOR = bytes.fromhex("31c0 8ed8 8ec0 b80102 bb007e b90200 30f6 cd13 be007e bae900 ac 84c0 7403 ee ebf8 b000 baf400 ee f4 ebfd")


@options(seconds=120)
def test_qemu_boots_from_a_lun(t):
    """QEMU boots a guest from a LUN on a volume through libiscsi: the boot code runs, and reads the disk by itself."""
    daemon = Daemon(t).start()
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/boot", "64M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/boot")
    initiator = target.initiator().settle(lun)
    word = b"booted %08x" % t.random.getrandbits(32)
    initiator.write(lun, 0, BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + word.ljust(512, b"\0"), fua=True)
    initiator.close()
    said = t.path("said")
    result = run(["qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none",
                  "-drive", "file=%s,format=raw,if=ide" % target.url(lun), "-debugcon", "file:" + said,
                  "-device", "isa-debug-exit,iobase=0xf4"], timeout=100, ok=False)
    with open(said, "rb") as f:
        same(f.read(), word, "what the guest printed (QEMU: exit %s, %s)" % (result.rc, result.err[-300:]))
    same(result.rc, 1, "exit status of QEMU")
