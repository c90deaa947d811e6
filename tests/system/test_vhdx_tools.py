"""VHDX tools: what they write is clean for every checker there is, and reads the same through every reader there is."""
import hashlib
import json
import os
import re
import resource
import subprocess

from lib import GIB, KIB, MIB, ROOT, binary, check, options, run, same
from proc import ended
from test_docs_commands import commands

#: Reads an image and its parents, child first, with libvhdi, and prints the SHA-256 of the disk.
PYVHDI = """
import hashlib, sys, pyvhdi
files = []
for name in sys.argv[1:]:
    f = pyvhdi.file()
    f.open(name)
    files.append(f)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
size, digest = files[0].get_media_size(), hashlib.sha256()
files[0].seek(0)
while size > 0:
    piece = files[0].read(min(size, 1 << 20))
    if not piece:
        sys.exit("short read")
    digest.update(piece)
    size -= len(piece)
print(digest.hexdigest())
"""


def vhdx(*args, codes=(0,), timeout=120, input=None):
    result = run([binary("qrvsa"), "vhdx", *args], timeout=timeout, ok=False, input=input)
    check(result.rc in codes, "%s", result)
    check("panicked" not in result.err, "%s", result)
    return result


def answer(*args, codes=(0,), timeout=120):
    return json.loads(vhdx("--json", *args, codes=codes, timeout=timeout).out)


def refused(pattern, *args, code=None):
    """One clear line, an exit status that is no crash."""
    result = vhdx(*args, codes=range(1, 100))
    lines = [line for line in result.err.splitlines() if line.strip()]
    check(len(lines) == 1 and re.search(pattern, lines[0], re.I), "not one line with /%s/: %s", pattern, result)
    if code is not None:
        same(result.rc, code, "exit status of " + " ".join(map(str, args)))
    return lines[0]


def sha(data):
    return hashlib.sha256(data).hexdigest()


def sha_of_command(cmd, timeout=300):
    """SHA-256 of a command's output; it has to succeed."""
    with subprocess.Popen([str(c) for c in cmd], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as child:
        digest = hashlib.sha256()
        for piece in iter(lambda: child.stdout.read(MIB), b""):
            digest.update(piece)
        check(ended(child, timeout) == 0, "%s: exit %s", cmd, child.returncode)
    return digest.hexdigest()


def is_clean(t, path, qemu=True):
    """Our check, 7zz and qemu-img find nothing. QEMU knows neither parents nor sectors of 4 KiB."""
    found = answer("check", path)
    same((found["result"], found["findings"]), ("clean", []), "our check of " + path)
    listed = run(["7zz", "l", "-slt", "-tvhdx", path], timeout=60)
    check(not re.search(r"warning|error", listed.out, re.I), "7zz: %s", listed)
    if qemu:
        out = run(["qemu-img", "check", "-f", "vhdx", path], timeout=60).out
        check("No errors were found" in out, "qemu-img: %s", out)


def reads_as(t, path, wanted, parents=(), qemu=True, pyvhdi=True):
    """Every reader gets these bytes."""
    size, wanted = len(wanted), sha(wanted)
    same(sha_of_command([binary("qrvsa"), "vhdx", "read", path, "0", str(size)]), wanted, "our reading of " + path)
    # 7zz ends with an error at the end of a parent that is smaller
    if all(parent["disk_bytes"] >= size for parent in answer("info", path)["parents"]):
        same(sha_of_command(["7zz", "x", "-so", "-tvhdx", path]), wanted, "7zz's reading of " + path)
    raw = path + ".raw"
    answer("convert", "--force", path, raw)
    with open(raw, "rb") as f:
        same(sha(f.read()), wanted, "our conversion of " + path)
    os.unlink(raw)
    if qemu:
        run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw], timeout=120)
        with open(raw, "rb") as f:
            same(sha(f.read()), wanted, "qemu-img's conversion of " + path)
        os.unlink(raw)
    if pyvhdi:
        same(run(["/usr/bin/python3", "-c", PYVHDI, path, *parents], timeout=120).out.strip(), wanted, "libvhdi's reading of " + path)


class Writer:
    """An image that is open in a process which carries out steps."""

    def __init__(self, t, path, model):
        self.t, self.model, self.path = t, model, path
        self.child = subprocess.Popen([binary("qrvsa"), "vhdx", "exec", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        t.defer(self._end)

    def _end(self):
        if self.child.poll() is None:
            self.child.kill()
            ended(self.child, 30)

    def send(self, *words):
        self.child.stdin.write(" ".join(map(str, words)) + "\n")
        self.child.stdin.flush()

    def step(self, *words):
        self.send(*words)
        line = self.child.stdout.readline()
        check(line == "ok\n", "%s: %s", words, line)

    def write(self, offset, length, byte):
        self.step("write", offset, length, byte)
        self.model[offset:offset + length] = bytes([byte]) * length

    def trim(self, offset, length):
        self.step("trim", offset, length)
        self.model[offset:offset + length] = bytes(length)

    def resize(self, size):
        self.step("resize", size)
        if size <= len(self.model):
            del self.model[size:]
        else:
            self.model.extend(bytes(size - len(self.model)))

    def random_step(self, random, sector=512):
        """Something between a sector and some blocks."""
        sectors = len(self.model) // sector
        start = random.randrange(sectors)
        length = min(random.choice([1, 3, 64, 2048, 5000]), sectors - start)
        if random.random() < 0.3:
            if random.random() < 0.5:
                block = MIB // sector
                start, length = start // block * block, min(random.randint(1, 3) * block, sectors - start // block * block)
            self.trim(start * sector, length * sector)
        else:
            self.write(start * sector, length * sector, random.randrange(1, 256))

    def close(self):
        self.child.stdin.close()
        self.child.stdin = None
        check(ended(self.child, 120) == 0, "the writer ended with %s", self.child.returncode)

    def kill(self):
        self.child.kill()
        ended(self.child, 30)


@options(seconds=120)
def test_an_empty_disk_of_64_tb_is_small(t):
    """64TB in at most 5 MiB, of which 1 MiB is allocated; everybody opens it; 64 TiB in small blocks opens in little memory."""
    big = t.path("big.vhdx")
    made = answer("create", big, "64TB")
    same(made["disk_bytes"], 64 * 10**12, "size")
    stat = os.stat(big)
    check(stat.st_size <= 5 * MIB, "apparent size %d", stat.st_size)
    check(stat.st_blocks * 512 <= MIB, "allocated %d", stat.st_blocks * 512)
    same(json.loads(run(["qemu-img", "info", "--output=json", big]).out)["virtual-size"], 64 * 10**12, "qemu-img info")
    check(str(64 * 10**12) in run(["vhdiinfo", big]).out, "vhdiinfo")
    is_clean(t, big)
    check(os.stat(big).st_blocks * 512 <= MIB, "a check takes no space")
    small = t.path("small-blocks.vhdx")
    answer("create", small, "64TiB", "--block-size", "1M")
    check(os.stat(small).st_blocks * 512 <= MIB, "allocated %d", os.stat(small).st_blocks * 512)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for what in ("info", "check", "map"):
        vhdx(what, small)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    check(peak <= max(before, 100 * KIB), "%d KiB of memory", peak)
    same(answer("map", small), [{"start": 0, "length": 64 << 40, "depth": 0, "present": False, "zero": True, "data": False}], "map")


@options(seconds=300)
def test_every_reader_reads_the_same(t):
    """Dynamic and fixed, blocks of 1 to 256 MiB, sectors of 512 and 4096: written, trimmed, and read by four readers."""
    kinds = [("dynamic", "1M", 512), ("dynamic", "32M", 512), ("dynamic", "2M", 4096), ("fixed", "2M", 512), ("fixed", "1M", 4096)]
    for number, (kind, block, sector) in enumerate(kinds + t.size([], [("dynamic", "256M", 512), ("dynamic", "8M", 4096)])):
        path = t.path("image%d.vhdx" % number)
        t.step("%s, blocks of %s, sectors of %d", kind, block, sector)
        answer("create", path, "37MiB", "--type", kind, "--block-size", block, "--logical-sector", str(sector))
        is_clean(t, path, qemu=sector == 512)
        writer = Writer(t, path, bytearray(37 * MIB))
        for _ in range(t.size(25, 120)):
            writer.random_step(t.random, sector)
        writer.close()
        is_clean(t, path, qemu=sector == 512)
        reads_as(t, path, writer.model, qemu=sector == 512)


@options(seconds=400)
def test_chains_against_a_model(t):
    """Random writes, trims, resizes and merges on a chain of differencing images, each compared with a model."""
    base, model = t.path("base.vhdx"), bytearray(24 * MIB)
    answer("create", base, str(len(model)), "--block-size", "1M")
    chain = [base]
    for turn in range(t.size(6, 25)):
        image = chain[-1]
        writer = Writer(t, image, model)
        for _ in range(t.random.randint(1, 20)):
            writer.random_step(t.random)
        if t.random.random() < 0.4:
            # 7zz refuses disks with an odd number of sectors, whoever made them
            writer.resize(t.random.randrange(8 * MIB, 32 * MIB, 1024))
            writer.random_step(t.random)
        writer.close()
        parents = chain[-2::-1]
        is_clean(t, image, qemu=not parents)
        # libvhdi reads zero blocks of a child as the parent's, and takes the start of the file for a bitmap where there is none
        reads_as(t, image, model, qemu=not parents, pyvhdi=not parents)
        choice = t.random.random()
        if choice < 0.5 or len(chain) == 1:
            child = t.path("child%d.vhdx" % turn)
            answer("create", child, "--parent", image)
            chain.append(child)
        else:
            dry = answer("merge", "--dry-run", image)
            done = answer("merge", "--delete", image)
            same((dry["data_bytes"], dry["parent"]), (done["data_bytes"], done["parent"]), "what a dry run tells")
            check(not os.path.exists(image), "the child is still there")
            chain.pop()
            is_clean(t, chain[-1], qemu=len(chain) == 1)
        if t.random.random() < 0.5:
            answer("compact", chain[-1])
            is_clean(t, chain[-1], qemu=len(chain) == 1)
        reads_as(t, chain[-1], model, qemu=len(chain) == 1, pyvhdi=False)
    while len(chain) > 1:
        answer("merge", "--delete", chain.pop())
    is_clean(t, base)
    reads_as(t, base, model)


def fits(found, flushed, later, what):
    """Each sector is as flushed, or as one of the later steps left it."""
    if found == flushed:
        return
    for at in range(0, len(flushed), 512):
        sector = bytes(found[at:at + 512])
        if sector == flushed[at:at + 512]:
            continue
        values = {bytes([byte]) * 512 for start, end, byte in later if start <= at < end}
        check(sector in values, "%s: the sector at %d holds %r", what, at, sector[:8])


@options(seconds=400)
def test_kill_9_keeps_what_was_flushed(t):
    """A writing process is killed at any moment: nothing flushed is lost, the image is consistent and, repaired, clean."""
    path, model = t.path("image.vhdx"), bytearray(16 * MIB)
    answer("create", path, str(len(model)), "--block-size", "1M")
    for turn in range(t.size(8, 40)):
        writer, later = Writer(t, path, bytearray(model)), []
        for _ in range(t.random.randint(1, 30)):
            start = t.random.randrange(0, len(model), 512)
            length = min(t.random.choice([512, 4096, 65536, 3 * MIB]), len(model) - start)
            if t.random.random() < 0.25:
                writer.step("trim", start, length)
                later.append((start, start + length, 0))
            elif t.random.random() < 0.25:
                writer.step("flush")
                for a, b, byte in later:
                    model[a:b] = bytes([byte]) * (b - a)
                later.clear()
            else:
                byte = t.random.randrange(1, 256)
                writer.step("write", start, length, byte)
                later.append((start, start + length, byte))
        # killed in the middle of several steps
        for _ in range(3):
            start, byte = t.random.randrange(0, len(model) - 2 * MIB, 512), t.random.randrange(1, 256)
            writer.send("write", start, 2 * MIB, byte)
            writer.send("flush")
            later.append((start, start + 2 * MIB, byte))
        writer.kill()
        found = answer("check", path, codes=(0, 1))
        same(found["errors"], 0, "violations after the kill: %s" % found["findings"])
        read = subprocess.run([binary("qrvsa"), "vhdx", "read", path, "0", str(len(model))], stdout=subprocess.PIPE, check=True, timeout=120).stdout
        fits(read, model, later, "turn %d" % turn)
        vhdx("repair", path)
        is_clean(t, path)
        again = subprocess.run([binary("qrvsa"), "vhdx", "read", path, "0", str(len(model))], stdout=subprocess.PIPE, check=True, timeout=120).stdout
        check(again == read, "the repair changed the contents")
        model = bytearray(read)
    reads_as(t, path, model)


@options(seconds=240)
def test_kill_9_of_a_merge(t):
    """A merge is killed: the child still reads as before, and the merge can be done again."""
    base, model = t.path("base.vhdx"), bytearray(64 * MIB)
    answer("create", base, str(len(model)), "--block-size", "1M")
    writer = Writer(t, base, model)
    for _ in range(20):
        writer.random_step(t.random)
    writer.close()
    child = t.path("child.vhdx")
    answer("create", child, "--parent", base)
    writer = Writer(t, child, model)
    for _ in range(60):
        writer.random_step(t.random)
    writer.close()
    killed = 0
    for turn in range(t.size(6, 20)):
        merge = subprocess.Popen([binary("qrvsa"), "vhdx", "merge", child], stdout=subprocess.DEVNULL)
        try:
            merge.wait(t.random.random() * 0.05)
        except subprocess.TimeoutExpired:
            merge.kill()
            ended(merge, 30)
            killed += 1
        same(answer("check", child, codes=(0, 1))["errors"], 0, "violations of the child")
        read = sha_of_command([binary("qrvsa"), "vhdx", "read", child, "0", str(len(model))])
        same(read, sha(model), "the child after a merge was ended, turn %d" % turn)
    t.step("%d of the merges were killed", killed)
    answer("merge", "--delete", child)
    vhdx("repair", base)
    is_clean(t, base)
    reads_as(t, base, model)


@options(seconds=240)
def test_convert(t):
    """raw, fixed and dynamic, from each to each; sparse stays sparse; an empty disk of 256 GB takes no time and no space."""
    raw, model = t.path("disk.raw"), bytearray(20 * MIB + 600)
    with open(raw, "wb") as f:
        f.truncate(len(model))
        for start in (0, 3 * MIB + 5000, 20 * MIB):
            data = t.random.randbytes(70 * KIB if start < 20 * MIB else 600)
            f.seek(start)
            f.write(data)
            model[start:start + len(data)] = data
    padded = bytes(model) + bytes(-len(model) % 512)
    images = {}
    for kind in ("dynamic", "fixed"):
        images[kind] = t.path(kind + ".vhdx")
        made = answer("convert", raw, images[kind], "--to", kind, "--block-size", "1M")
        check(made["written_bytes"] <= 512 * KIB, "holes were copied: %s", made)
        is_clean(t, images[kind])
        reads_as(t, images[kind], padded)
    same(answer("info", images["fixed"])["type"], "fixed", "type")
    check(os.stat(images["dynamic"]).st_size <= 8 * MIB, "a dynamic image is not small")
    answer("convert", images["fixed"], t.path("again.vhdx"))
    reads_as(t, t.path("again.vhdx"), padded)
    # another 4 KiB sector image, from an image
    with open(raw, "r+b") as f:
        f.truncate(20 * MIB)
    answer("convert", raw, t.path("4k.vhdx"), "--logical-sector", "4096")
    is_clean(t, t.path("4k.vhdx"), qemu=False)
    reads_as(t, t.path("4k.vhdx"), padded[:20 * MIB], qemu=False)
    back = t.path("back.raw")
    answer("convert", images["dynamic"], back)
    with open(back, "rb") as f:
        same(sha(f.read()), sha(padded), "there and back")
    check(os.stat(back).st_blocks * 512 <= MIB, "a raw file is not sparse")
    # a block device, which has something else before
    device, backing = t.loop("device", 21 * MIB)
    with open(backing, "r+b") as f:
        f.write(b"\xff" * 21 * MIB)
    refused("--force", "convert", images["dynamic"], device, code=5)
    answer("convert", "--force", images["dynamic"], device)
    with open(device, "rb") as f:
        same(sha(f.read(len(padded))), sha(padded), "the block device")
    answer("convert", device, t.path("from-device.vhdx"))
    same(answer("info", t.path("from-device.vhdx"))["disk_bytes"], 21 * MIB, "size of the device")
    # nothing
    empty = t.path("empty.vhdx")
    answer("create", empty, "256GB")
    made = answer("convert", empty, t.path("empty.raw"))
    same((made["read_bytes"], os.stat(t.path("empty.raw")).st_blocks, os.stat(t.path("empty.raw")).st_size), (0, 0, 256 * 10**9), "an empty disk")
    answer("convert", t.path("empty.raw"), t.path("empty2.vhdx"))
    is_clean(t, t.path("empty2.vhdx"))
    # what exists stays unless it may go, and stays when the copy fails
    before = os.stat(back).st_mtime_ns
    refused("--force", "convert", images["fixed"], back, code=5)
    refused("itself", "convert", "--force", back, back)
    dry = answer("convert", "--dry-run", images["fixed"], back)
    check(dry["dry_run"] and os.stat(back).st_mtime_ns == before, "a dry run wrote")


@options(seconds=120)
def test_compact_and_resize(t):
    """Compacting gives all unused space back and keeps the contents; resizing moves the table when it has to."""
    path, model = t.path("image.vhdx"), bytearray(40 * MIB)
    answer("create", path, str(len(model)), "--block-size", "1M")
    writer = Writer(t, path, model)
    for block in range(40):
        writer.write(block * MIB, MIB, block + 1)
    writer.step("flush")
    for block in range(0, 40, 3):
        writer.trim(block * MIB, MIB)
    for block in range(1, 40, 3):
        # zeros that are written are released, too
        writer.write(block * MIB, MIB, 0)
    writer.close()
    plan = answer("compact", "--dry-run", path)
    same(plan["released_blocks"], 13, "blocks of zeros")
    done = answer("compact", path)
    same(done["released_blocks"], 13, "blocks of zeros")
    same(os.stat(path).st_size, (4 + 13) * MIB, "size of the file")
    same(plan["file_bytes"], done["file_bytes"], "what the dry run said")
    is_clean(t, path)
    reads_as(t, path, model)
    again = answer("compact", path)
    same((again["released_blocks"], again["moved_blocks"]), (0, 0), "a second time")
    # a table of 1 MiB holds 131072 entries: this one has to move
    answer("resize", path, "300GiB")
    is_clean(t, path)
    same(json.loads(run(["qemu-img", "info", "--output=json", path]).out)["virtual-size"], 300 * GIB, "qemu-img info")
    refused("--force", "resize", path, "5MiB", code=5)
    cut = answer("resize", "--dry-run", path, "5MiB")
    check(cut["cut_data_bytes"] > 0, "nothing would be lost: %s", cut)
    answer("resize", path, "40MiB")
    is_clean(t, path)
    reads_as(t, path, model)
    answer("resize", "--force", path, "5MiB")
    is_clean(t, path)
    reads_as(t, path, model[:5 * MIB])
    answer("resize", path, "9MiB")
    reads_as(t, path, bytes(model[:5 * MIB]) + bytes(4 * MIB))


@options(seconds=120)
def test_parents(t):
    """A child finds its parent, refuses another, and is told where it went; loops are refused."""
    base, child = t.path("base.vhdx"), t.path("child.vhdx")
    model = bytearray(8 * MIB)
    answer("create", base, str(len(model)), "--block-size", "1M")
    writer = Writer(t, base, model)
    for _ in range(10):
        writer.random_step(t.random)
    writer.close()
    answer("create", child, "--parent", base)
    same((answer("info", child)["type"], len(answer("info", child)["parents"])), ("differencing", 1), "info")
    reads_as(t, child, model, qemu=False, pyvhdi=False)
    writer = Writer(t, child, model)
    writer.write(512, 512, 7)
    writer.write(5 * MIB, 4096, 9)
    writer.close()
    is_clean(t, child, qemu=False)
    reads_as(t, child, model, parents=[base], qemu=False)
    depths = {extent["depth"] for extent in answer("map", child)}
    same(depths, {0, 1}, "depths in the map")
    os.makedirs(t.path("elsewhere"))
    moved = t.path("elsewhere", "moved.vhdx")
    os.rename(base, moved)
    refused("parent", "info", child, code=6)
    same([f["code"] for f in answer("check", child, codes=(1,))["findings"]], ["parent-missing"], "check")
    answer("reparent", child, moved)
    same(answer("check", child)["findings"], [], "our check")
    same(sha_of_command([binary("qrvsa"), "vhdx", "read", child, "0", str(len(model))]), sha(model), "our reading")
    # 7zz looks for parents in the child's directory only
    beside = t.path("beside.vhdx")
    os.rename(moved, beside)
    moved = beside
    answer("reparent", child, moved)
    is_clean(t, child, qemu=False)
    reads_as(t, child, model, parents=[moved], qemu=False)
    refused("own parent", "reparent", child, child)
    other = t.path("other.vhdx")
    answer("create", other, "8MiB")
    refused("--force", "reparent", child, other, code=5)
    # a parent that was written to is another one
    vhdx("exec", moved, input="write 0 512 1\n")
    refused("changed", "map", child, code=8)
    same([f["code"] for f in answer("check", child, codes=(1,))["findings"]], ["parent-guid"], "check")
    answer("reparent", "--force", child, moved)
    is_clean(t, child, qemu=False)
    big = t.path("4k.vhdx")
    answer("create", big, "8MiB", "--logical-sector", "4096")
    refused("sectors", "reparent", "--force", child, big)


@options(seconds=120)
def test_check_and_repair(t):
    """Damage on purpose: found, told apart from what can be repaired, and repaired only when asked."""
    path = t.path("image.vhdx")
    model = bytearray(8 * MIB)

    def fresh():
        if os.path.exists(path):
            os.unlink(path)
        answer("create", path, "8MiB", "--block-size", "1M")
        model[:] = bytes(len(model))
        writer = Writer(t, path, model)
        writer.write(0, 3 * MIB, 7)
        writer.close()

    def damage(offset, data):
        with open(path, "r+b") as f:
            f.seek(offset)
            f.write(data)

    bat = 3 * MIB
    repairable = [
        ("header-checksum", 64 * KIB + 100, b"x"), ("header-signature", 128 * KIB, b"x"), ("region-checksum", 192 * KIB + 500, b"x"),
        ("region-signature", 256 * KIB, bytes(65536)), ("bat-offset-zero", bat + 40, (2 | 5 << 20).to_bytes(8, "little")),
        ("bat-tail", bat + 8 * 8, b"\x06"), ("metadata-reserved", 2 * MIB + 12, b"x"), ("space-trailing", 7 * MIB, b"x" * 5000),
        ("id-signature", 0, b"x"),
    ]
    for code, offset, data in repairable:
        fresh()
        damage(offset, data)
        found = answer("check", path, codes=(1,))
        check(code in found["counts"], "%s was not found: %s", code, found)
        before = open(path, "rb").read()
        dry = answer("repair", "--dry-run", path, codes=(0, 1))
        check(dry["actions"] and open(path, "rb").read() == before, "%s: a dry run that changes or says nothing", code)
        done = answer("repair", path)
        check(any(a["code"] == code for a in done["actions"]), "%s: %s", code, done)
        is_clean(t, path)
        reads_as(t, path, model)
    for code, offset, data in [
            ("bat-overlap", bat + 8, (6 | 4 << 20).to_bytes(8, "little")), ("bat-beyond", bat + 8, (6 | 99 << 20).to_bytes(8, "little")),
            ("bat-state", bat, b"\x05"), ("bat-in-log", bat, (6 | 1 << 20).to_bytes(8, "little")), ("metadata-signature", 2 * MIB, b"x"),
            ("header-none", 64 * KIB, bytes(128 * KIB))]:
        fresh()
        damage(offset, data)
        found = answer("check", path, codes=(1,))
        check(code in found["counts"], "%s was not found: %s", code, found)
        before = open(path, "rb").read()
        left = answer("repair", path, codes=(1,))
        same((left["actions"], open(path, "rb").read() == before), ([], True), code + ": what has no safe answer")
    # images of QEMU are clean, and repaired of their peculiarities
    qemu = t.path("qemu.vhdx")
    run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", qemu, "1G"])
    run(["qemu-io", "-f", "vhdx", "-c", "write -P 5 1M 3M", qemu])
    found = answer("check", qemu)
    check({f["severity"] for f in found["findings"]} <= {"remark"}, "%s", found)
    answer("repair", qemu)
    is_clean(t, qemu)


@options(seconds=120)
def test_bad_input(t):
    """Missing, of another kind, cut off, in use, full: one clear line, and nothing is worse than before."""
    path = t.path("image.vhdx")
    answer("create", path, "64MiB", "--block-size", "1M")
    nothing = t.path("nothing.vhdx")
    for command in (["info"], ["check"], ["repair"], ["compact"], ["map"], ["merge"]):
        refused("does not exist|no such", *command, nothing, code=2 if command[0] in ("check", "repair") else 6)
        refused("not a regular file|neither", *command, t.mkdir("directory"))
    for name, data in (("text", b"hello\n"), ("zeros", bytes(10 * MIB)), ("nil", b""), ("qcow", b"QFI\xfb" + bytes(MIB))):
        with open(t.path(name), "wb") as f:
            f.write(data)
        refused("no VHDX", "check", t.path(name), code=2)
        refused("no VHDX", "repair", t.path(name), code=2)
        refused("VHDX", "info", t.path(name), code=8)
    whole = open(path, "rb").read()
    for cut in (100, 70000, 200000, MIB, 2 * MIB + 70000, 3 * MIB + 5):
        with open(t.path("cut.vhdx"), "wb") as f:
            f.write(whole[:cut])
        found = vhdx("--json", "check", t.path("cut.vhdx"), codes=(1, 2))
        check(found.out, "%s", found)
        refused(r"\S", "info", t.path("cut.vhdx"), code=8)
        vhdx("repair", t.path("cut.vhdx"), codes=(1, 2))
    for bad in (["--block-size", "3M"], ["--block-size", "512M"], ["--logical-sector", "1024"]):
        refused("block size|sector size", "create", t.path("new.vhdx"), "1G", *bad, code=2)
    for size in ("0", "65TiB", "1000", "-1", "many"):
        refused(r"\S", "create", t.path("new.vhdx"), "--", size, code=2)
    check(not os.path.exists(t.path("new.vhdx")), "a refused image was made")
    refused("exists", "create", path, "1G", code=7)
    # two writers
    writer = Writer(t, path, bytearray(64 * MIB))
    writer.write(0, 512, 1)
    for command in (["check"], ["repair"], ["compact"], ["resize"], ["info"]):
        refused("in use|being written", *command, path, *(["1G"] if command == ["resize"] else []), code=7)
    writer.close()
    # a full filesystem
    small, backing = t.loop("small", 48 * MIB)
    run(["mkfs.ext4", "-q", "-m", "0", small])
    mount = t.mkdir("full")
    run(["mount", small, mount])
    t.defer(run, ["umount", mount], 30, False)
    full = os.path.join(mount, "image.vhdx")
    answer("create", full, "1GiB", "--block-size", "1M")
    writer = Writer(t, full, bytearray(GIB))
    said = ""
    for block in range(100):
        writer.send("write", block * MIB, MIB, 5)
        line = writer.child.stdout.readline()
        if line != "ok\n":
            said = line
            break
    check("full" in said, "a full filesystem: %r", said)
    writer.child.stdin.close()
    ended(writer.child, 60)
    same(answer("check", full, codes=(0, 1))["errors"], 0, "violations on a full filesystem")
    refused("full", "convert", path, os.path.join(mount, "fixed.vhdx"), "--to", "fixed", code=1)
    check("fixed.vhdx" not in os.listdir(mount) and not [n for n in os.listdir(mount) if "unfinished" in n], "left behind: %s", os.listdir(mount))


@options(seconds=120)
def test_the_commands_of_the_manual(t):
    """Every command in docs/vhdx-tools.md works, in their order."""
    env = dict(os.environ, PATH=os.path.dirname(binary("qrvsa")) + ":" + os.environ["PATH"])
    lines = commands(os.path.join(ROOT, "docs", "vhdx-tools.md"))
    check(len(lines) > 10, "only %d commands", len(lines))
    for line in lines:
        t.step("$ %s", line)
        result = run(["bash", "-ec", line], timeout=60, ok=False, env=env, cwd=t.dir)
        check(result.rc == 0, "%s", result)
