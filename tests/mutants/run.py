#!/usr/bin/env python3
"""Mutation check: breaks the engine on purpose, one breakage at a time, and asks whether the tests notice.

run.py [--passed] [WORD...]: only the mutants whose names contain one of the words. Works on a copy of the tracked files below
the target directory; the tree itself is not touched. The engine as it is has to pass first; `--passed`: it did a moment
ago. A mutant is caught by the first violation. Ends with a table and `mutants: N, C caught`.
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
SIM = str(TARGET / "sim" / "qrvsa-sim")
SUITES = {
    "crash-states": [SIM, "crash-states", "--states", "12000", "--fail-fast"],
    "seeds": [SIM, "seeds", "--count", "700", "--fail-fast"],
}
#: Tests of the engine's crate: a suite whose name has `::` is a module of them, or one.
TESTS = ["cargo", "test", "--quiet", "--profile", "sim", "--locked", "-p", "qrvsa-core", "--lib"]
DEADLINE_S = 900
# a scratch profile: quick to build again, with the checks of a debug build
ENVIRONMENT = dict(
    os.environ,
    CARGO_TARGET_DIR=str(TARGET),
    CARGO_INCREMENTAL="1",
    CARGO_PROFILE_SIM_OPT_LEVEL="1",
    CARGO_PROFILE_SIM_CODEGEN_UNITS="128",
)


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


def build(suites):
    """Builds what these suites run; None, or what the compiler said."""
    command = ["cargo", "build", "--quiet", "--profile", "sim", "--locked", "-p", "qrvsa-sim"]
    if are_tests(suites):
        command = [*TESTS, "--no-run"]
    done = subprocess.run(command, cwd=SOURCE, env=ENVIRONMENT, capture_output=True, text=True)
    return done.stderr if done.returncode else None


def run(command):
    """Whether a suite passes, and what it said first of what is wrong."""
    try:
        done = subprocess.run(command, cwd=SOURCE, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        return False, f"no end after {DEADLINE_S} s"
    lines = done.stdout.splitlines()
    first = next((line for line in lines if line.startswith(("VIOLATION", "seed "))), None)
    panic = next((lines[i + 1] for i, line in enumerate(lines[:-1]) if "panicked at" in line), None)
    last = lines[-1] if lines else f"ended with {done.returncode}"
    return done.returncode == 0, (first or panic or last)[:200]


def suites_of(mutant):
    return mutant.get("suite", ["crash-states", "seeds"])


def are_tests(suites):
    return all("::" in suite for suite in suites)


def command_of(suite):
    return [*TESTS, suite] if "::" in suite else SUITES[suite]


def steps(mutant):
    """What to run until it is caught: the workload or seed that is known to show it, then whole suites."""
    if "workload" in mutant:
        number = str(mutant["workload"])
        yield f"crash-states, workload {number}", [SIM, "crash-states", "--workload", number, "--fail-fast"]
    if "seed" in mutant:
        yield f"seed {mutant['seed']}", [SIM, "replay", "--seed", str(mutant["seed"])]
    for suite in suites_of(mutant):
        yield suite, command_of(suite)


def main():
    words = [word for word in sys.argv[1:] if word != "--passed"]
    passed = "--passed" in sys.argv
    mutants = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]
    mutants = [m for m in mutants if not words or any(w in m["name"] for w in words)]
    # those of one build together
    mutants.sort(key=lambda m: are_tests(suites_of(m)))
    copy_tree()
    for suite in [] if passed else dict.fromkeys(suite for m in mutants for suite in suites_of(m)):
        begin = time.monotonic()
        broken = build([suite])
        good, said = (False, broken) if broken else run(command_of(suite))
        print(f"the engine as it is, {suite}: {said} ({time.monotonic() - begin:.0f} s)", flush=True)
        if not good:
            print("the engine as it is fails already\nmutants: 0, 0 caught")
            return 1
    caught, table = 0, []
    for mutant in mutants:
        begin = time.monotonic()
        path = SOURCE / mutant["file"]
        text = path.read_text()
        if text.count(mutant["old"]) != 1:
            print(f"BROKEN  {mutant['name']}: the text to replace occurs {text.count(mutant['old'])} times in {mutant['file']}")
            table.append((mutant["name"], "does not apply"))
            continue
        path.write_text(text.replace(mutant["old"], mutant["new"]))
        try:
            broken = build(suites_of(mutant))
            if broken:
                print(f"BROKEN  {mutant['name']}: does not build\n{broken[-2000:]}", flush=True)
                table.append((mutant["name"], "does not build"))
                continue
            verdict, by, said = "MISSED", "nothing", ""
            for suite, command in steps(mutant):
                good, words_said = run(command)
                if not good:
                    verdict, by, said = "caught", suite, words_said
                    caught += 1
                    break
            table.append((mutant["name"], by))
            print(f"{verdict}  {mutant['name']} ({time.monotonic() - begin:.0f} s) by {by}: {said}", flush=True)
        finally:
            path.write_text(text)
    print("\n| breakage | caught by |\n|---|---|")
    for name, by in table:
        print(f"| {name} | {by} |")
    print(f"mutants: {len(mutants)}, {caught} caught")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
