#!/usr/bin/env python3
"""faultbench.py PEER_SCRIPT LABEL OUT.json: brings the peer up, works through the faults, takes it down."""
import hashlib, os, subprocess, sys, time, zlib
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import QUIET, RETRY, Measured, host, save

MB = 1 << 20
DATA_MB = int(os.environ.get("DATA_MB", "2048"))
CORRUPT_MB = int(os.environ.get("CORRUPT_MB", "16"))
STEPS = os.environ.get("STEPS", "corrupt one two").split()
script, label, outp = sys.argv[1:4]
script = os.path.abspath(script)
res = {}


def note(k, v):
    res[k] = v
    sys.stderr.write("%s %s = %s\n" % (label, k, v))


def peer(*a, check=True):
    """Run a verb; (last line of stdout, stderr)."""
    r = subprocess.run([script] + [str(x) for x in a], capture_output=True, text=True)
    if r.returncode and check:
        raise RuntimeError("%s %s: %s" % (script, a, (r.stdout + r.stderr)[-800:]))
    return (r.stdout.strip().splitlines() or [""])[-1], (r.stdout + r.stderr).strip()


def has(verb):
    return ("|" + verb) in subprocess.run([script, "help"], capture_output=True, text=True).stderr


def cold():
    peer("remount")
    open("/proc/sys/vm/drop_caches", "w").write("3\n")


def fill(mnt):
    """Half the data in one file, half in 16 MiB files; random content, digests kept."""
    want = {}
    sizes = [("big", DATA_MB // 2)] + [("f%03d" % i, 16) for i in range(DATA_MB // 2 // 16)]
    t = 0.0
    with Measured():
        for name, n in sizes:
            h = hashlib.sha256()
            fd = os.open(os.path.join(mnt, name), os.O_WRONLY | os.O_CREAT, 0o644)
            for _ in range(n):
                b = os.urandom(MB)
                h.update(b)
                t0 = time.monotonic()
                mv = memoryview(b)
                while mv:
                    mv = mv[os.write(fd, mv):]
                t += time.monotonic() - t0
            t0 = time.monotonic()
            os.fsync(fd)
            os.close(fd)
            t += time.monotonic() - t0
            want[name] = h.hexdigest()
    note("fill_MBps", round(DATA_MB * 1.048576 / t, 1))
    return want


def read_all(mnt, want, verify):
    """One cold pass over everything: MB/s, or (wrong silently, errors) when verifying."""
    cold()
    buf = bytearray(MB)
    wrong, errs, n = [], [], 0
    with Measured() as m:
        t0 = time.monotonic()
        for name, digest in want.items():
            h = hashlib.sha256()
            try:
                with open(os.path.join(mnt, name), "rb", buffering=0) as f:
                    while True:
                        k = f.readinto(buf)
                        if not k:
                            break
                        n += k
                        if verify:
                            h.update(memoryview(buf)[:k])
                if verify and h.hexdigest() != digest:
                    wrong.append(name)
            except OSError as e:
                errs.append("%s: %s" % (name, e.strerror))
        t = time.monotonic() - t0
    read_all.share = m.facts()["foreign_share"]
    if verify:
        return {"files": len(want), "silently_wrong": len(wrong), "read_errors": len(errs), "example": (wrong + errs)[:2]}
    return round(n / 1e6 / t, 1), bool(errs)


def speed(key, mnt, want):
    r, share = [], []
    for _ in range(3):
        for _ in range(1 + RETRY):
            x = read_all(mnt, want, False)
            if read_all.share < QUIET:
                break
        r.append(x)
        share.append(read_all.share)
    v = sorted(x[0] for x in r)
    note(key, {"median": v[1], "runs": [x[0] for x in r], "errors": any(x[1] for x in r), "foreign_share": max(share)})


def crcs(path):
    out = []
    with open(path, "rb", buffering=0) as f:
        while True:
            b = f.read(MB)
            if not b:
                break
            out.append(zlib.crc32(b))
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return out


def raw(path, off, n):
    with open(path, "rb", buffering=0) as f:
        os.posix_fadvise(f.fileno(), off, n, os.POSIX_FADV_DONTNEED)
        return os.pread(f.fileno(), n, off)


def same(a, b):
    """Share of 4 KiB blocks that are equal."""
    k = [a[i:i + 4096] == b[i:i + 4096] for i in range(0, len(a), 4096)]
    return round(sum(k) / len(k), 4)


def scrub(key):
    with Measured() as m:
        t, text = peer("scrub", check=False)
    note(key + "_foreign_share", m.facts()["foreign_share"])
    note(key + "_s", float(t) if t.replace(".", "").isdigit() else t)
    note(key + "_says", text[-600:])


def main():
    begin = time.monotonic()
    victim = int(os.environ.get("VICTIM", "2"))
    mnt, _ = peer("up")
    try:
        img = peer("backing", victim)[0]
        before = crcs(img)
        want = fill(mnt)
        if has("settle"):
            note("settle_s", peer("settle")[0])
        cold()
        after = crcs(img)
        speed("read_healthy_MBps", mnt, want)
        scrub("scrub_clean")
        if "corrupt" in STEPS:
            # the longest stretch of the victim disk that the fill changed
            best = run = (0, 0)
            for i, (a, b) in enumerate(zip(before, after)):
                run = (run[0], i + 1) if a != b and run[1] == i else ((i, i + 1) if a != b else (0, 0))
                if run[1] - run[0] > best[1] - best[0]:
                    best = run
            n = min(CORRUPT_MB, (best[1] - best[0]) // 2) * MB
            off = (best[0] + best[1]) // 2 * MB - n // 2
            keep = raw(img, off, n)
            cold()
            fd = os.open(img, os.O_RDWR)
            os.pwrite(fd, os.urandom(n), off)
            os.fsync(fd)
            os.close(fd)
            note("corrupted", "%d MiB at %d MiB of disk %d (written there: MiB %d-%d)" % (n // MB, off // MB, victim, best[0], best[1]))
            note("after_corruption_read", read_all(mnt, want, True))
            time.sleep(3)
            note("after_corruption_says", peer("status", check=False)[1][-600:])
            cold()
            note("healed_by_read", same(keep, raw(img, off, n)))
            scrub("scrub_corrupt")
            time.sleep(2)
            cold()
            note("healed_after_scrub", same(keep, raw(img, off, n)))
            if has("repair"):
                note("repair_s", peer("repair", check=False)[0])
                note("healed_after_repair", same(keep, raw(img, off, n)))
            scrub("scrub_again")
            note("final_read", read_all(mnt, want, True))
            note("final_says", peer("status", check=False)[1][-600:])

        def lose(disks, key, rebuild=True):
            try:
                _, text = peer("degrade", *disks)
            except RuntimeError as e:
                note(key + "_degraded_mount", "FAILED: " + str(e)[-400:])
                return
            speed(key + "_degraded_read_MBps", mnt, want) if rebuild else None
            note(key + "_degraded_read", read_all(mnt, want, True))
            if rebuild:
                for d in disks:   # the replacement holds nothing of the old
                    f = peer("backing", d)[0]
                    subprocess.run(["dd", "if=/dev/zero", "of=" + f, "bs=4M", "count=%d" % (os.path.getsize(f) >> 22),
                                    "oflag=direct", "conv=notrunc", "status=none"], check=True)
                with Measured() as m:
                    t, text = peer("rebuild", check=False)
                note(key + "_rebuild_s", float(t) if t.replace(".", "").isdigit() else t)
                note(key + "_rebuild_cpu_busy_s", round(m.busy, 1))
                note(key + "_rebuild_foreign_share", m.facts()["foreign_share"])
                note(key + "_rebuild_says", text[-400:])
                note(key + "_after_rebuild_read", read_all(mnt, want, True))

        if "one" in STEPS:
            lose([2], "lost1")
        if "two" in STEPS:
            lose([1, 3], "lost2")
            lose([2, 4], "other2", rebuild=False)   # proves that what was rebuilt is right
    finally:
        try:
            peer("down", check=False)
        finally:
            save(outp, {"kind": "faults", "label": label, "host": host(), "params": {"data_mb": DATA_MB},
                        "elapsed_s": round(time.monotonic() - begin, 1), "results": res})


main()
