#!/usr/bin/env python3
"""coverage.py LCOV: lines of qrvsa-core that were run, file by file, and the figure in the last line.

Test code counts neither as lines nor as lines run: whatever stands under `#[cfg(test)]`, in the file or in one of its own.
"""

import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
SOURCE = TOP / "qrvsa-core" / "src"
TEST = re.compile(r"^(\s*)#\[cfg\((?:test|any\(test, .*\))\)\]\s*$")
MODULE = re.compile(r"^\s*(?:pub(?:\(\w+\))? )?mod (\w+);")


def test_code(path):
    """Lines of a file that are only there for tests, and files or folders that it makes modules for tests."""
    lines, elsewhere = set(), []
    text = path.read_text().splitlines()
    home = path.parent if path.name in ("mod.rs", "lib.rs") else path.with_suffix("")
    at = 0
    while at < len(text):
        found = TEST.match(text[at])
        if not found:
            at += 1
            continue
        first = at
        at += 1
        while text[at].lstrip().startswith(("#[", "//")):
            at += 1
        module = MODULE.match(text[at])
        if module:
            elsewhere += [home / (module[1] + ".rs"), home / module[1]]
        # an item ends in its first line, or with the bracket that stands as far to the right as it does
        if not text[at].endswith((";", "}")):
            end = re.compile(re.escape(found[1]) + r"[})\]]")
            while not end.match(text[at]):
                at += 1
        lines.update(range(first + 1, at + 2))
        at += 1
    return lines, elsewhere


def main():
    hits, path = {}, None
    for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
        if line.startswith("SF:"):
            path = pathlib.Path(line[3:])
        elif line.startswith("DA:") and SOURCE in path.parents:
            number, count = line[3:].split(",")[:2]
            lines = hits.setdefault(path, {})
            lines[int(number)] = max(lines.get(int(number), 0), int(count))
    left_out = []
    skipped = {}
    for path in SOURCE.rglob("*.rs"):
        skipped[path], elsewhere = test_code(path)
        left_out += elsewhere
    rows = []
    for path, lines in sorted(hits.items()):
        if any(out == path or out in path.parents for out in left_out):
            continue
        counted = [count > 0 for number, count in lines.items() if number not in skipped.get(path, ())]
        if counted:
            rows.append((path.relative_to(SOURCE), len(counted), sum(counted)))
    for path, lines, run in rows:
        print(f"{100 * run / lines:6.1f} %  {lines - run:5} of {lines:5} not run  {path}")
    lines, run = sum(row[1] for row in rows), sum(row[2] for row in rows)
    if not lines:
        print("coverage of qrvsa-core: nothing was counted")
        return 1
    print(f"coverage of qrvsa-core: {100 * run / lines:.1f} % of {lines} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
