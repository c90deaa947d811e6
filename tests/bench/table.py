#!/usr/bin/env python3
"""table.py OUTDIR DOCUMENT: the tables of one run, printed and written into a document between its markers.

Every figure is a rate, so a ratio above 1 (this project's figure over the peer's) is better.
"""
import glob
import json
import os
import re
import sys

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NAMES = {"qrvsa": "QRVSA", "btrfs": "btrfs raid6", "zfsfuse": "zfs-fuse raidz2", "gluster": "GlusterFS disperse", "ext4": "ext4, no redundancy"}
ORDER = list(NAMES)


def load(out, kind):
    found = {}
    for path in glob.glob(os.path.join(out, kind + "_*.json")):
        with open(path) as f:
            found[os.path.basename(path)[len(kind) + 1:-5]] = json.load(f)
    return {n: found[n] for n in sorted(found, key=lambda n: ORDER.index(n) if n in ORDER else 99)}


def number(v):
    return "-" if v is None else "%.0f" % v if v >= 100 else "%.1f" % v if v >= 10 else "%.2f" % v


def row(cells):
    return "| " + " | ".join(str(c) for c in cells) + " |"


def head(cells):
    return [row(cells), "|" + "---|" * len(cells)]


def filesystem(runs):
    own = runs.get("qrvsa")
    peers = [n for n in runs if n != "qrvsa"]
    lines = head(["test", "unit"] + [NAMES.get(n, n) for n in runs] + ["ratio to " + NAMES.get(n, n) for n in peers if own])
    tests = []
    for j in runs.values():
        tests += [t for t in j["tests"] if t not in tests]
    noisy = 0
    for t in tests:
        unit = next(j["tests"][t]["unit"] for j in runs.values() if t in j["tests"])
        cells = []
        for j in runs.values():
            x = j["tests"].get(t, {})
            mark = "~" if (x.get("spread_pct") or 0) > 25 else ""
            noisy += bool(mark)
            cells.append(number(x.get("median")) + mark)
        ratios = []
        for n in peers if own else []:
            a, b = own["tests"].get(t, {}).get("median"), runs[n]["tests"].get(t, {}).get("median")
            ratios.append(number(a / b) if a and b else "-")
        lines.append(row([t, unit] + cells + ratios))
    if noisy:
        lines += ["", "`~`: the runs differ by more than 25 %."]
    return lines + lowest(runs)


def lowest(runs):
    """The lowest ratio to each peer and how many rows are behind the mark: half of the kernel's btrfs, ahead of the others."""
    own, lines = runs.get("qrvsa"), []
    for n in [n for n in runs if n not in ("qrvsa", "ext4") and own]:
        ratios = []
        for t, x in own["tests"].items():
            a, b = x.get("median"), runs[n]["tests"].get(t, {}).get("median")
            if a and b:
                ratios.append((a / b, t))
        if ratios:
            mark = 0.5 if n == "btrfs" else 1.0
            behind = [t for r, t in sorted(ratios) if r < mark]
            lines.append("- %s: lowest ratio %s (`%s`); mark %g, %s" % (NAMES.get(n, n), number(min(ratios)[0]), min(ratios)[1], mark,
                         "behind it: " + ", ".join("`%s`" % t for t in behind) if behind else "reached in all %d rows" % len(ratios)))
    return [""] + lines if lines else []


def faults(runs):
    lines = head(["test"] + [NAMES.get(n, n) for n in runs])
    keys = []
    for j in runs.values():
        keys += [k for k in j["results"] if k not in keys and not k.endswith(("_says", "_foreign_share", "corrupted"))]

    def show(v):
        if isinstance(v, dict) and "median" in v:
            return "%s%s" % (v["median"], " (errors)" if v["errors"] else "")
        if isinstance(v, dict):
            return "%d wrong, %d errors of %d" % (v["silently_wrong"], v["read_errors"], v["files"])
        return "-" if v is None else str(v)
    return lines + [row([k] + [show(j["results"].get(k)) for j in runs.values()]) for k in keys]


def engine(out):
    """What the engine's benchmarks printed, without anything that looks like a path."""
    try:
        with open(os.path.join(out, "engine.txt")) as f:
            lines = [re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()) for line in f]
    except OSError:
        return []
    return [line for line in lines if line.strip() and not re.search(r"(^|[\s(])/\w|^running \d+ test|^test result:", line)]


def main():
    out, document = sys.argv[1:3]
    fs, bad = load(out, "fs"), load(out, "faults")
    lines = []
    any_run = next(iter(list(fs.values()) + list(bad.values())), None)
    if any_run:
        h, p = any_run["host"], any_run["params"]
        lines += ["%s, %d cores, %.0f GiB of memory, Linux %s, %s." % (h["cpu"], h["cpus"], h["mem_mib"] / 1024, re.match(r"[\d.]+", h["kernel"]).group(), h["date"][:10])]
        if "size_mb" in p:
            lines += ["Six files on one disk, 4+2; test file %d MiB, %g s per random run, %d files for metadata, median of %d." % (p["size_mb"], p["rt_s"], p["meta_n"], p["reps"])]
        lines += [""]
    if fs:
        lines += filesystem(fs) + [""]
    if bad:
        lines += ["Faults: damage on one disk, then disks lost and rebuilt.", ""] + faults(bad) + [""]
    text = engine(out)
    if text:
        lines += ["The engine alone (`cargo bench -p qrvsa-core`):", "", "```text"] + text + ["```", ""]
    body = "\n".join(lines).strip() + "\n"
    print(body)
    try:
        with open(document) as f:
            old = f.read()
    except FileNotFoundError:
        old = "# Performance\n\n%s\n%s\n" % (BEGIN, END)
    if BEGIN not in old or END not in old:
        sys.exit("%s has no markers %s and %s" % (document, BEGIN, END))
    new = old[:old.index(BEGIN) + len(BEGIN)] + "\n" + body + old[old.index(END):]
    with open(document, "w") as f:
        f.write(new)


main()
