"""Volumes as VHDX files under .volumes: opened by programs that know nothing of QRVSA."""
import os
import shutil

from lib import GIB, MIB, Daemon, check, options, run, same, wait_for
from syscalls import write_file


def needs(*programs):
    for program in programs:
        check(shutil.which(program), "%s is not installed: tools/dev/need.sh installs it", program)


@options(seconds=240)
def test_the_directory(t):
    """A volume is a VHDX file for qemu-img and 7zz, read-only or writable as the property says, with the volume's bytes."""
    needs("qemu-img", "qemu-io", "7zz")
    daemon = Daemon(t).start()
    pool = daemon.pool("tank", size=2 * GIB)
    pool.mount()
    directory = os.path.join(pool.mountpoint, ".volumes")
    check(not os.path.exists(directory), "the directory is there without a volume")
    # twice: the kernel remembers listings
    same([os.listdir(pool.mountpoint), os.listdir(pool.mountpoint)], [[], []], "the root without a volume")
    daemon.cli("volume", "create", "tank/disk", "200M")
    daemon.cli("volume", "create", "tank/huge", "1PiB")
    same([os.listdir(pool.mountpoint), os.listdir(pool.mountpoint)], [[".volumes"]] * 2, "the root with a volume")
    same(oct(os.stat(os.path.join(directory, "disk.vhdx")).st_mode), "0o100400", "mode without the property")
    daemon.cli("fs", "set", "tank", "volumes=off")
    check(not os.path.exists(directory), "the directory is there although it is off")
    same([os.listdir(pool.mountpoint), os.listdir(pool.mountpoint)], [[], []], "the root with the property off")
    daemon.refused("write off, ro or rw", "fs", "set", "tank", "volumes=yes")
    daemon.cli("fs", "set", "tank", "volumes=rw")
    same(os.listdir(directory), ["disk.vhdx"], "files: a volume of more than 64 TiB has none")
    same([os.listdir(pool.mountpoint), os.listdir(pool.mountpoint)], [[".volumes"]] * 2, "the root with the property")
    daemon.cli("volume", "create", "tank/other", "1M")
    same(sorted(os.listdir(directory)), ["disk.vhdx", "other.vhdx"], "files with one more volume")
    daemon.cli("volume", "destroy", "tank/other", "--force")
    same(os.listdir(directory), ["disk.vhdx"], "files with one volume less")
    face = os.path.join(directory, "disk.vhdx")

    raw = t.path("raw")
    source = t.random.randbytes(3 * MIB)
    with open(raw, "wb") as f:
        f.truncate(200 * MIB)
        f.seek(50 * MIB)
        f.write(source)
        f.seek(200 * MIB - 4096)
        f.write(source[:4096])
    info = run(["qemu-img", "info", face]).out
    check("file format: vhdx" in info and "200 MiB" in info, "qemu-img does not know it: %s", info)
    # written through the face by qemu, as a virtual machine would
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "vhdx", raw, face], timeout=120)
    run(["qemu-img", "compare", "-f", "raw", "-F", "vhdx", raw, face], timeout=120)
    run(["qemu-img", "check", "-f", "vhdx", face], timeout=120)
    listing = run(["7zz", "l", "-tvhdx", "-slt", face], timeout=120).out
    check("Virtual Size = %d" % (200 * MIB) in listing or "Size = %d" % (200 * MIB) in listing, "7zz: %s", listing)
    check("Error" not in listing and "Warning" not in listing, "7zz complains: %s", listing)
    out = t.mkdir("out")
    run(["7zz", "x", "-tvhdx", "-y", "-o" + out, face], timeout=120)
    extracted = [os.path.join(out, name) for name in os.listdir(out)]
    same(len(extracted), 1, "files that 7zz takes out")
    run(["cmp", raw, extracted[0]], timeout=120)

    t.step("the daemon is killed while a program has the file open for writing")
    run(["qemu-io", "-f", "vhdx", "-c", "write -P 0x5a 10M 1M", "-c", "flush", face], timeout=60)
    pool.crash()
    wait_for(lambda: os.path.exists(face), 60, "the file is back")
    run(["qemu-io", "-f", "vhdx", "-c", "read -P 0x5a 10M 1M", "-c", "read -P 0 20M 1M", face], timeout=60)
    run(["qemu-img", "check", "-f", "vhdx", face], timeout=120)

    t.step("what is made up cannot be changed")
    with open(face, "r+b", buffering=0) as f:
        for place in (0, 192 << 10, 2 * MIB, 3 * MIB):
            f.seek(place)
            try:
                f.write(b"\xff" * 512)
            except PermissionError:
                continue
            raise AssertionError("a write at %d was accepted" % place)
    t.step("spoilt headers are made new by a hole over them")
    with open(face, "r+b", buffering=0) as f:
        for place in (64 << 10, 128 << 10):
            f.seek(place)
            f.write(b"\xff" * 4096)
    check(run(["qemu-io", "-r", "-f", "vhdx", "-c", "read 0 512", face], ok=False).rc != 0, "spoilt headers are not noticed")
    run(["fallocate", "--punch-hole", "--offset", "0", "--length", str(2 * MIB), face])
    run(["qemu-io", "-r", "-f", "vhdx", "-c", "read -P 0x5a 10M 1M", face], timeout=60)
    for action in (lambda: os.unlink(face), lambda: os.truncate(face, 0), lambda: write_file(os.path.join(directory, "x"), b"")):
        try:
            action()
        except PermissionError:
            continue
        raise AssertionError("the directory was changed")

    t.step("read-only")
    daemon.cli("fs", "set", "tank", "volumes=ro")
    try:
        write_file(face, b"x")
        raise AssertionError("a write was accepted")
    except OSError as e:
        check(e.errno in (1, 13, 30), "%s", e)
    run(["qemu-io", "-r", "-f", "vhdx", "-c", "read -P 0x5a 10M 1M", face], timeout=60)
    daemon.cli("volume", "resize", "tank/disk", "300M")
    wait_for(lambda: "300 MiB" in run(["qemu-img", "info", face]).out, 60, "the file has grown with the volume")
    # bytes in the file are bytes of the volume: trimmed here, free there
    daemon.cli("fs", "set", "tank", "volumes=rw")
    before = daemon.json("volume", "show", "tank/disk")["allocated_bytes"]
    check(before >= 4 * MIB, "the volume holds %d bytes", before)
    run(["fallocate", "--punch-hole", "--offset", str(32 * MIB), "--length", str(32 * MIB), face])
    pool.sync()
    after = daemon.json("volume", "show", "tank/disk")["allocated_bytes"]
    check(after < before, "a hole gave nothing back: %d, then %d", before, after)
    daemon.cli("volume", "destroy", "tank/disk", "--force")
    same(os.listdir(directory), [], "files after the volume is destroyed")
    daemon.cli("fs", "set", "tank", "volumes=off")
    check(not os.path.exists(directory), "the directory is there after the property is off")
    same(os.listdir(pool.mountpoint), [], "the root after the property is off")
    pool.check()
