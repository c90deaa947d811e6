#!/usr/bin/env python3
"""Mutation check: breaks the engine on purpose, one breakage at a time, and asks whether the simulator notices.

run.py [NAME...]: only the mutants whose names contain one of the words. Works on a copy of the tracked files below the
target directory; the tree itself is not touched. Ends with `mutants: N, C caught`.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
WORK = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target")) / "mutants"
SOURCE = WORK / "source"
TARGET = WORK / "target"
SUITES = {
    "crash-states": ["crash-states", "--states", "12000", "--fail-fast"],
    "seeds": ["seeds", "--count", "700", "--fail-fast"],
}
DEADLINE_S = 900


def copy_tree():
    """Copies what git tracks; files that did not change keep their times, so that builds stay incremental."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        source, target = TOP / name, SOURCE / name
        if not source.is_file():
            continue
        data = source.read_bytes()
        if not target.is_file() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            shutil.copymode(source, target)


def build():
    # a scratch profile: quick to build again, with the checks of a debug build
    env = dict(
        os.environ,
        CARGO_TARGET_DIR=str(TARGET),
        CARGO_INCREMENTAL="1",
        CARGO_PROFILE_SIM_OPT_LEVEL="1",
        CARGO_PROFILE_SIM_CODEGEN_UNITS="64",
    )
    command = ["cargo", "build", "--quiet", "--profile", "sim", "--locked", "-p", "qrvsa-sim"]
    return subprocess.run(command, cwd=SOURCE, env=env, capture_output=True, text=True)


def run(suite):
    """Whether the suite passes, and what it said last."""
    command = [str(TARGET / "sim" / "qrvsa-sim"), *SUITES[suite]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        return False, f"no end after {DEADLINE_S} s"
    first = next((line for line in done.stdout.splitlines() if line.startswith("VIOLATION")), "")
    last = done.stdout.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
    return done.returncode == 0, (first or last[0])[:160]


def main():
    words = sys.argv[1:]
    mutants = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]
    mutants = [m for m in mutants if not words or any(w in m["name"] for w in words)]
    copy_tree()
    built = build()
    if built.returncode:
        print(built.stderr)
        print("mutants: 0, 0 caught")
        return 1
    if not words:
        for suite in SUITES:
            good, said = run(suite)
            if not good:
                print(f"the engine as it is fails already: {said}")
                print("mutants: 0, 0 caught")
                return 1
    caught = 0
    for mutant in mutants:
        begin = time.monotonic()
        path = SOURCE / mutant["file"]
        text = path.read_text()
        if text.count(mutant["old"]) != 1:
            print(f"BROKEN  {mutant['name']}: the text to replace occurs {text.count(mutant['old'])} times in {mutant['file']}")
            continue
        path.write_text(text.replace(mutant["old"], mutant["new"]))
        try:
            built = build()
            if built.returncode:
                print(f"BROKEN  {mutant['name']}: does not build\n{built.stderr[-2000:]}")
                continue
            verdict, by = "MISSED", ""
            for suite in mutant.get("suite", list(SUITES)):
                good, said = run(suite)
                if not good:
                    verdict, by = "caught", f" by {suite}: {said}"
                    caught += 1
                    break
            print(f"{verdict}  {mutant['name']} ({time.monotonic() - begin:.0f} s){by}", flush=True)
        finally:
            path.write_text(text)
    print(f"mutants: {len(mutants)}, {caught} caught")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
