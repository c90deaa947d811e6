"""The commands in README.md, docs/operations.md and docs/iscsi.md run, in their order, as they stand there."""
import os
import re

from iscsi import free_port
from lib import ROOT, Failure, binary, check, options, run

#: Lines that a test cannot run: they start this very suite, take too long, or change the machine.
NOT_HERE = re.compile(r"^(make (up|down|test|bench|install|lint)\b|apt|sudo|systemctl|journalctl|git clone|cd )")


def commands(path):
    """The lines of all ```sh blocks of a document, continuation lines joined."""
    with open(path) as f:
        text = f.read()
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").split("\n"):
            line = line.split("  #")[0].strip()
            if line and not line.startswith("#"):
                found.append(line)
    return found


def run_document(t, name):
    demo, mnt = t.path("demo"), t.path("demo-mnt")
    env = dict(os.environ, DEMO_DIR=demo, DEMO_MNT=mnt, DEMO_SIZE="4G", SKIP_BUILD="1", QRVSA_SOCKET=os.path.join(demo, "qrvsad.sock"),
               PATH=os.path.dirname(binary("qrvsa")) + ":" + os.environ["PATH"])
    for key in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        env.pop(key, None)
    t.defer(run, ["make", "-s", "-C", ROOT, "down", "PURGE=1"], 120, True, None, env)
    run(["make", "-s", "-C", ROOT, "up"], timeout=120, env=env)
    ran, port = 0, "127.0.0.1:%d" % free_port()
    for line in commands(os.path.join(ROOT, name)):
        if NOT_HERE.match(line):
            t.step("not run: %s", line)
            continue
        here = line.replace("/var/lib/qrvsa-demo", demo).replace("/mnt/qrvsa-demo", mnt).replace("127.0.0.1:3299", port)
        t.step("$ %s", here)
        result = run(["bash", "-ec", here], timeout=120, ok=False, env=env, cwd=ROOT)
        print(result.out + result.err, flush=True)
        if result.rc != 0:
            raise Failure("a command of %s fails: %s\n%s" % (name, line, result))
        ran += 1
    check(ran > 3, "only %d commands found in %s", ran, name)


@options(seconds=180)
def test_readme(t):
    """Every command in README.md works."""
    run_document(t, "README.md")


@options(seconds=180)
def test_operations(t):
    """Every command in docs/operations.md works."""
    run_document(t, "docs/operations.md")


@options(seconds=180)
def test_iscsi(t):
    """Every command in docs/iscsi.md works."""
    run_document(t, "docs/iscsi.md")
