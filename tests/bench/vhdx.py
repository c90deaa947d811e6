#!/usr/bin/env python3
"""vhdx.py [DOC]: VHDX beside plain files and QEMU, on one file system, one after another in one run; about two minutes.

This project's side is the benchmark `vhdx` of qrvsa-core and the command `qrvsa vhdx`; QEMU's is `qemu-img bench`. Durability is the
same on both sides: the cache mode of QEMU is "writeback", its default for new blocks, and "none" for contents that are there,
as a pool's member has them; new blocks end with one flush, inside the time. What QEMU flushes besides, it flushes of itself.
The table goes to the terminal and, with DOC, into that file between its markers.

  VHDX_RT=0.7   seconds per figure        REPS=3       figures per row; the median counts
  VHDX_MB=256   size of the contents      VHDX_CAP=40  seconds after which QEMU's conversion is stopped
  BENCH_DIR     where the files lie
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RT, REPS = float(os.environ.get("VHDX_RT", "0.7")), int(os.environ.get("REPS", "3"))
MB, CAP = int(os.environ.get("VHDX_MB", "256")), float(os.environ.get("VHDX_CAP", "40"))
BEGIN, END = "<!-- vhdx: begin -->", "<!-- vhdx: end -->"
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
CLI = os.path.join(os.environ.get("QRVSA_BIN") or os.path.join(TARGET, "release"), "qrvsa")


def run(*cmd, **kwargs):
    result = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, timeout=kwargs.pop("timeout", 170), **kwargs)
    if result.returncode:
        raise RuntimeError("%s: exit %d\n%s%s" % (" ".join(map(str, cmd)), result.returncode, result.stdout, result.stderr))
    return result.stdout


def timed(*cmd):
    """Seconds and peak memory (MB) of a command; seconds alone, as a lower bound, if it is stopped at CAP."""
    start = time.monotonic()
    child = subprocess.Popen([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        took = time.monotonic() - start
        if pid:
            break
        if took > CAP:
            child.kill()
            child.wait()
            return took, None
        time.sleep(0.001)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError("%s: exit %d\n%s" % (" ".join(map(str, cmd)), child.returncode, child.stderr.read().decode()))
    return took, usage.ru_maxrss / 1024


def median(values):
    return sorted(values)[len(values) // 2]


def own(where):
    """Rows of the engine's benchmark: way, test, unit, plain, VHDX, ratio."""
    given = os.environ.get("VHDX_BENCH")
    env = dict(os.environ, BENCH_DIR=where, RT=str(RT), REPS=str(REPS), VHDX_MB=str(MB))
    cmd = [given, "--bench"] if given else ["cargo", "bench", "--locked", "-p", "qrvsa-core", "--bench", "vhdx"]
    out = run(*cmd, env=env, cwd=ROOT, timeout=1800)
    rows = [line.split("\t") for line in out.splitlines() if line.count("\t") == 5]
    return [(way, test, unit, float(plain), float(vhdx), float(ratio)) for way, test, unit, plain, vhdx, ratio in rows]


def qemu_bench(image, fmt, size, step, depth, count, write, cache, flush):
    args = ["-w", "--pattern=90"] if write else []
    args += ["--flush-interval=%d" % count] if flush else []
    args += ["-n"] if cache == "none" else []
    out = run("qemu-img", "bench", "-f", fmt, "-t", cache, "-c", count, "-d", depth, "-s", size, "-S", step, *args, image)
    return float(re.search(r"Run completed in ([0-9.]+)", out).group(1))


def qemu_steady(where, title):
    """QEMU on its own preallocated VHDX: requests per second, or MB/s."""
    image, size = os.path.join(where, "qemu-fixed.vhdx"), 4096 if title.startswith("4 KiB") else 1 << 20
    if not os.path.exists(image):
        run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic,block_size=32M", image, "%dM" % MB)
        qemu_bench(image, "vhdx", 1 << 20, 1 << 20, 4, MB, True, "none", True)
    step, depth = (4096 * 10007, 32) if size == 4096 else (size, 4)
    seconds = lambda count: qemu_bench(image, "vhdx", size, step, depth, count, "write" in title, "none", False)
    count = 64
    while (took := seconds(count)) < 0.1:
        count *= 4
    count = max(32, int(count / took * RT))
    rate = median([count / seconds(count) for _ in range(REPS)])
    return rate if size == 4096 else rate * size / 1e6


def qemu_fresh(where, title):
    image, size = os.path.join(where, "qemu-fresh.vhdx"), 4096 if title.startswith("4 KiB") else 1 << 20
    rates, blocks = [], 4 * MB if size == 4096 else MB
    for _ in range(REPS):
        run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic,block_size=1M", image, "%dM" % blocks)
        took = qemu_bench(image, "vhdx", size, 1 << 20, 1, blocks, True, "writeback", True)
        rates.append(blocks / took if size == 4096 else blocks * size / took / 1e6)
        os.remove(image)
    return median(rates)


def number(value):
    return "-" if value is None else "%.0f" % value if value >= 100 else "%.1f" % value if value >= 10 else "%.3g" % value


def held(yes):
    return "held" if yes else "**missed**"


def speeds(where):
    lines = ["| way | test | unit | plain file | VHDX | QEMU's VHDX | to plain | to QEMU | mark | |", "|" + "---|" * 10]
    for way, test, unit, plain, vhdx, ratio in own(where):
        theirs = qemu_fresh(where, test) if way == "fresh" else qemu_steady(where, test) if way == "member" else None
        over = vhdx / theirs if theirs else None
        if way == "fresh":
            least = 10 if test.startswith("4 KiB") else 5
            mark, ok = "%dx QEMU" % least, over >= least
        else:
            mark, ok = "0.90x plain", ratio >= 0.9
        cells = [way, test, unit, number(plain), number(vhdx), number(theirs), "%.2fx" % ratio,
                 "%.1fx" % over if over else "-", mark, held(ok)]
        lines.append("| %s |" % " | ".join(cells))
        print(lines[-1], flush=True)
    return lines


def files(where):
    at = lambda name: os.path.join(where, name)
    lines = ["| what | unit | ours | QEMU | mark | |", "|" + "---|" * 6]

    def line(what, unit, ours, theirs, mark, ok):
        lines.append("| %s | %s | %s | %s | %s | %s |" % (what, unit, number(ours), theirs, mark, held(ok)))
        print(lines[-1], flush=True)

    def best(make):
        return min(make() for _ in range(REPS))

    def convert():
        took, _ = timed(CLI, "vhdx", "convert", at("empty.vhdx"), at("copy.vhdx"))
        os.remove(at("copy.vhdx"))
        return took
    run(CLI, "vhdx", "create", at("empty.vhdx"), "256GB")
    ours = best(convert)
    theirs, memory = timed("qemu-img", "convert", "-f", "vhdx", "-O", "vhdx", at("empty.vhdx"), at("copy.vhdx"))
    line("converting an empty 256 GB image", "s", ours, number(theirs) if memory else "> %s" % number(theirs), "< 0.2", ours < 0.2)
    def make():
        if os.path.exists(at("big.vhdx")):
            os.remove(at("big.vhdx"))
        return timed(CLI, "vhdx", "create", at("big.vhdx"), "64TB")[0]
    ours = best(make)
    stat = os.stat(at("big.vhdx"))
    line("creating 64 TB", "s", ours, "-", "< 0.1", ours < 0.1)
    line("its length", "MiB", stat.st_size / 2**20, "-", "at most 5", stat.st_size <= 5 << 20)
    line("its space", "MiB", stat.st_blocks / 2048, "-", "at most 1", stat.st_blocks <= 2048)
    run(CLI, "vhdx", "create", at("fine.vhdx"), "64TiB", "--block-size", "1M")
    both = [timed(CLI, "vhdx", "info", at("fine.vhdx")) for _ in range(REPS)]
    ours, memory = min(took for took, _ in both), max(used for _, used in both)
    theirs, used = timed("qemu-img", "info", "-f", "vhdx", at("fine.vhdx"))
    line("opening 64 TiB in blocks of 1 MiB", "s", ours, number(theirs), "< 0.3", ours < 0.3)
    line("memory for that", "MB", memory, number(used), "< 100", memory < 100)
    return lines


def write(doc, text):
    section = "%s\n%s\n%s" % (BEGIN, text, END)
    with open(doc) as f:
        old = f.read()
    if BEGIN in old and END in old:
        new = old[:old.index(BEGIN)] + section + old[old.index(END) + len(END):]
    else:
        new = old.rstrip("\n") + ("\n\n## VHDX beside plain files and QEMU\n\n`tests/bench/vhdx.py`, one file system, one run. `member`: io_uring and direct I/O, as in a pool; "
                                  "`lun`: the page cache, 32 threads or one;\n`fresh`: blocks of 1 MiB that get their first bytes, one flush at the end inside the time. QEMU: direct and "
                                  "native I/O for `member`, its\ndefault cache mode for `fresh`.\n\n") + section + "\n"
    with open(doc, "w") as f:
        f.write(new)


def main():
    where = tempfile.mkdtemp(prefix="vhdx-bench.", dir=os.environ.get("BENCH_DIR") or "/var/tmp")
    try:
        text = "\n".join(speeds(where) + [""] + files(where))
    finally:
        shutil.rmtree(where, ignore_errors=True)
    if len(sys.argv) > 1:
        write(sys.argv[1], text)


if __name__ == "__main__":
    main()
