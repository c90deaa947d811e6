#!/usr/bin/env python3
"""fsbench.py TARGETDIR LABEL OUT.json [PID...]: see README.md for what each figure is."""
import json, os, random, shutil, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import Measured, drop, host, quietest, save, server_pids, summarise, syncfs

E = os.environ.get
SIZE = int(E("SIZE_MB", "1024"))     # test file
RT = float(E("RT", "3"))             # seconds per random run
CAP = int(E("CAP", "8"))             # seconds a sequential run may take before it is cut (then fsynced)
REPS = int(E("REPS", "3"))
META_N = int(E("META_N", "10000"))
META_CAP = float(E("META_CAP", "20"))  # seconds per metadata phase before it is cut
ONLY = set(E("ONLY", "").split())    # names of tests to run, default all
TREE_SRC = E("TREE_SRC", "/dev/shm/bench_tree")

# name: (unit, file, cold, fio arguments)
FIO = {
    "seqwrite_buf":        ("MB/s", "seq",  0, "--rw=write --bs=1M --ioengine=psync --end_fsync=1"),
    "seqwrite_direct":     ("MB/s", "seq",  0, "--rw=write --bs=1M --ioengine=psync --direct=1 --end_fsync=1"),
    "seqwrite_direct_qd8": ("MB/s", "seq",  0, "--rw=write --bs=1M --ioengine={aio} --iodepth=8 --direct=1 --end_fsync=1"),
    "seqread_cold":        ("MB/s", "data", 1, "--rw=read --bs=1M --ioengine=psync"),
    "seqread_direct":      ("MB/s", "data", 1, "--rw=read --bs=1M --ioengine=psync --direct=1"),
    "seqread_direct_qd8":  ("MB/s", "data", 1, "--rw=read --bs=1M --ioengine={aio} --iodepth=8 --direct=1"),
    "randread_qd1":        ("IOPS", "data", 1, "--rw=randread --bs=4k --ioengine=psync --direct=1"),
    "randread_qd32":       ("IOPS", "data", 1, "--rw=randread --bs=4k --ioengine={aio} --iodepth=32 --direct=1"),
    "randread_4jobs":      ("IOPS", "data", 1, "--rw=randread --bs=4k --ioengine=psync --direct=1 --numjobs=4"),
    "randwrite_qd1":       ("IOPS", "data", 0, "--rw=randwrite --bs=4k --ioengine=psync --direct=1"),
    "randwrite_qd32":      ("IOPS", "data", 0, "--rw=randwrite --bs=4k --ioengine={aio} --iodepth=32 --direct=1"),
    "randwrite_fsync":     ("IOPS", "data", 0, "--rw=randwrite --bs=4k --ioengine=psync --fsync=1"),
    "mixed70_8k_qd16":     ("IOPS", "data", 1, "--rw=randrw --rwmixread=70 --bs=8k --ioengine={aio} --iodepth=16 --direct=1"),
}
META = ["meta_create", "meta_stat", "meta_read", "meta_unlink", "tree_copy", "tree_rm"]
KEYS = ["p50_us", "p99_us", "p999_us", "cpu_busy_s_per_gb", "cpu_server_s_per_gb"]


def pick_aio(d):
    if E("AIO"):
        return E("AIO")
    for e in ("io_uring", "libaio"):
        r = subprocess.run(["fio", "--name=x", "--filename=" + os.path.join(d, "probe"), "--size=1m", "--rw=write",
                            "--ioengine=" + e, "--iodepth=2"], capture_output=True)
        try:
            os.unlink(os.path.join(d, "probe"))
        except OSError:
            pass
        if r.returncode == 0:
            return e
    return "psync"


def fio(name, d, aio, pids, seed):
    unit, fname, cold, args = FIO[name]
    path = os.path.join(d, fname)
    if fname == "seq" and os.path.exists(path):
        os.unlink(path)
    if cold:
        drop(d)
        pids = server_pids(EXTRA)
    else:
        syncfs(d)
    cmd = ["fio", "--name=" + name, "--filename=" + path, "--size=%dm" % SIZE, "--output-format=json",
           "--group_reporting", "--randseed=%d" % seed, "--norandommap", "--fallocate=none", "--invalidate=0"] + args.format(aio=aio).split()
    cmd += ["--runtime=%d" % CAP] if "seq" in name else ["--time_based", "--runtime=%g" % RT]
    with Measured(pids) as m:
        r = subprocess.run(cmd, capture_output=True, text=True)
    out = m.facts()
    try:
        j = json.loads(r.stdout[r.stdout.index("{"):])["jobs"][0]
        if r.returncode or j["error"]:
            raise ValueError("fio error %s" % j["error"])
    except (ValueError, KeyError) as e:
        out["error"] = (str(e) + " " + (r.stderr or r.stdout)[:300]).strip()
        return out
    rd, wr = j["read"], j["write"]
    nbytes = rd["io_bytes"] + wr["io_bytes"]
    ms = max(rd["runtime"], wr["runtime"], 1)
    out["value"] = (nbytes / 1e3 / ms) if unit == "MB/s" else (rd["total_ios"] + wr["total_ios"]) * 1e3 / ms
    main = rd if rd["total_ios"] >= wr["total_ios"] else wr
    pct = main["clat_ns"].get("percentile", {})
    if name == "randwrite_fsync":    # the wait that matters is write + fsync
        pct = j["sync"]["lat_ns"].get("percentile", pct)
    for k, p in (("p50_us", "50.000000"), ("p99_us", "99.000000"), ("p999_us", "99.900000")):
        if p in pct:
            out[k] = pct[p] / 1e3
    gb = nbytes / 1e9
    out["cpu_busy_s_per_gb"] = out["cpu_busy_s"] / gb
    if out["cpu_server_s"] is not None:
        out["cpu_server_s_per_gb"] = out["cpu_server_s"] / gb
    return out


def capped(n, f, cap):
    """Call f(i) for i < n, stop after cap seconds; (done, seconds)."""
    t0 = time.monotonic()
    for i in range(n):
        f(i)
        if i & 15 == 0 and time.monotonic() - t0 > cap:
            return i + 1, time.monotonic() - t0
    return n, time.monotonic() - t0


def meta_round(d):
    base = os.path.join(d, "meta")
    shutil.rmtree(base, ignore_errors=True)
    body = os.urandom(4096)
    res = {}
    name = lambda i: "%s/d%03d/f%05d" % (base, i // 100, i)

    def create(i):
        if i % 100 == 0:
            os.makedirs(os.path.dirname(name(i)))
        fd = os.open(name(i), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, body)
        os.close(fd)

    def read(i):
        fd = os.open(name(i), os.O_RDONLY)
        if len(os.read(fd, 8192)) != 4096:
            raise OSError("short read")
        os.close(fd)

    def phase(key, n, f, cold):
        if cold:
            drop(d)
        with Measured(server_pids(EXTRA)) as m:
            done, t = capped(n, f, META_CAP)
        res[key] = dict(m.facts(), value=done / t, done=done)
        return done

    n = phase("meta_create", META_N, create, False)
    dirs = (n + 99) // 100

    drop(d)
    with Measured(server_pids(EXTRA)) as m:   # like ls -lR
        t0, cnt = time.monotonic(), 0
        for k in range(dirs):
            with os.scandir("%s/d%03d" % (base, k)) as it:
                for e in it:
                    os.lstat(e.path)
                    cnt += 1
            if time.monotonic() - t0 > META_CAP:
                break
        t = time.monotonic() - t0
    res["meta_stat"] = dict(m.facts(), value=cnt / t, done=cnt)
    phase("meta_read", n, read, True)
    phase("meta_unlink", n, lambda i: os.unlink(name(i)), False)
    shutil.rmtree(base, ignore_errors=True)
    return res


def make_tree():
    """A fixed tree in tmpfs: 3000 files, lognormal sizes, about 45 MB, 150 directories, 100 symlinks."""
    if os.path.exists(TREE_SRC + "/.done"):
        return
    shutil.rmtree(TREE_SRC, ignore_errors=True)
    r = random.Random(42)
    dirs = [TREE_SRC]
    os.makedirs(TREE_SRC)
    for i in range(150):
        p = os.path.join(r.choice(dirs[-40:]), "dir%03d" % i)
        os.mkdir(p)
        dirs.append(p)
    for i in range(3000):
        n = min(int(r.lognormvariate(8.3, 1.5)), 2 << 20)
        with open(os.path.join(r.choice(dirs), "file%04d.txt" % i), "wb") as f:
            f.write(r.randbytes(n))
    for i in range(100):
        os.symlink("../target%d" % i, os.path.join(r.choice(dirs), "link%d" % i))
    open(TREE_SRC + "/.done", "w").close()


def tree_round(d):
    dst = os.path.join(d, "tree")
    shutil.rmtree(dst, ignore_errors=True)
    syncfs(d)
    n = 3251
    res = {}
    with Measured(server_pids(EXTRA)) as m:
        t0 = time.monotonic()
        # the sync makes peers comparable that write back later
        r = subprocess.run("cp -a %s %s && sync -f %s" % (TREE_SRC, dst, dst), shell=True, capture_output=True, text=True)
        t = time.monotonic() - t0
    res["tree_copy"] = dict(m.facts(), value=n / t if r.returncode == 0 else None, error=r.stderr[:300])
    drop(d)
    with Measured(server_pids(EXTRA)) as m:
        t0 = time.monotonic()
        subprocess.run(["rm", "-rf", dst])
        t = time.monotonic() - t0
    res["tree_rm"] = dict(m.facts(), value=n / t)
    return res


def main():
    global EXTRA
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    target, label, outp = sys.argv[1:4]
    EXTRA = sys.argv[4:]
    outp = os.path.abspath(outp)
    d = os.path.join(os.path.abspath(target), "fsbench.tmp")
    os.makedirs(d, exist_ok=True)
    begin = time.monotonic()
    runs = {}
    want = lambda t: not ONLY or t in ONLY
    try:
        aio = pick_aio(d)
        # lay the data file out in full (not measured)
        if any(want(t) and FIO[t][1] == "data" for t in FIO):
            with Measured():
                r = subprocess.run(["fio", "--name=lay", "--filename=" + d + "/data", "--size=%dm" % SIZE, "--rw=write", "--bs=1M",
                                    "--ioengine=psync", "--end_fsync=1", "--fallocate=none"], capture_output=True, text=True)
            if r.returncode:
                sys.exit("layout failed: " + r.stderr)
        make_tree()
        meta_t = 0
        for rep in range(REPS):
            for t in FIO:
                if want(t):
                    x = quietest(lambda: fio(t, d, aio, server_pids(EXTRA), 1000 + rep))
                    runs.setdefault(t, []).append(x)
                    sys.stderr.write("%s #%d %s: %s %s%s\n" % (label, rep, t, "%.1f" % x["value"] if "value" in x else x.get("error"),
                                     FIO[t][0], "" if x["quiet"] else "  (machine was not quiet)"))
            # slow peers: no second metadata round once one took over 45 s
            t0 = time.monotonic()
            if meta_t < 45:
                if any(want(k) for k in META[:4]):
                    for k, x in meta_round(d).items():
                        runs.setdefault(k, []).append(x)
                        sys.stderr.write("%s #%d %s: %.0f /s (%d done)\n" % (label, rep, k, x["value"], x["done"]))
                if any(want(k) for k in META[4:]):
                    for k, x in tree_round(d).items():
                        runs.setdefault(k, []).append(x)
                        sys.stderr.write("%s #%d %s: %s files/s\n" % (label, rep, k, x["value"]))
            meta_t = max(meta_t, time.monotonic() - t0)
    finally:
        shutil.rmtree(d, ignore_errors=True)
    tests = {}
    for t, rr in runs.items():
        s = summarise(rr, KEYS)
        s["unit"] = FIO[t][0] if t in FIO else ("files/s" if t != "tree_rm" else "files/s")
        tests[t] = s
    save(outp, {"kind": "fs", "label": label, "target": target, "host": host(),
                "params": {"size_mb": SIZE, "rt_s": RT, "cap_s": CAP, "reps": REPS, "meta_n": META_N, "aio": aio,
                           "hook": E("HOOK"), "pids_cmd": E("PIDS_CMD")},
                "elapsed_s": round(time.monotonic() - begin, 1), "tests": tests})


main()
