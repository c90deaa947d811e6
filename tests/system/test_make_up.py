"""`make up` and `make down`: a mounted demo pool from nothing, harmless when repeated, gone without a trace."""
import os

import trees
from lib import ROOT, Failure, check, is_mounted, options, run, same
from proc import is_live, loops_below, mounts_below, wait_gone
from syscalls import read_file, write_file


def make(t, *args, ok=True):
    env = dict(os.environ, DEMO_DIR=t.path("demo"), DEMO_MNT=t.path("demo-mnt"), DEMO_SIZE="1G", SKIP_BUILD="1")
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        env.pop(name, None)
    return run(["make", "-s", "-C", ROOT, *args], timeout=240, ok=ok, env=env)


def demo_pid(t):
    with open(t.path("demo", "qrvsad.pid")) as f:
        return int(f.read().split()[0])


@options(seconds=180)
def test_up_and_down(t):
    """make up mounts four devices that can lose two; twice is harmless; after kill -9 it comes back; make down leaves nothing."""
    t.defer(make, t, "down", "PURGE=1")
    mnt = t.path("demo-mnt")
    text = make(t, "up").out
    check(mnt in text and "make down" in text, "the next steps are not told:\n%s", text)
    check(is_mounted(mnt), "not mounted")
    same(len(os.listdir(t.path("demo", "disks"))), 4, "devices")
    tree = trees.make(os.path.join(mnt, "tree"), files=100, seed=t.seed)
    wanted = trees.describe(tree, links_inside=True)
    pid = demo_pid(t)
    make(t, "up")
    same(demo_pid(t), pid, "the daemon after a second make up")
    trees.compare(wanted, tree, "after a second make up")
    run(["sync"])
    run([os.path.join(ROOT, "tools/demo/qrvsa.sh"), "pool", "sync", "demo"], env=dict(os.environ, DEMO_DIR=t.path("demo")))
    os.kill(pid, 9)
    # it takes a moment to go: until then it is there, and holds its files
    wait_gone(pid)
    make(t, "up")
    check(demo_pid(t) != pid, "no new daemon")
    trees.compare(wanted, tree, "after kill -9 and make up")
    pid = demo_pid(t)
    text = make(t, "down").out
    check("demo" in text, "make down says nothing: %s", text)
    check(not is_live(pid), "the daemon runs after make down")
    same((mounts_below(mnt), loops_below(t.path("demo"))), ([], []), "mounts and loop devices after make down")
    check(os.path.exists(t.path("demo", "disks")), "make down removed the pool")
    make(t, "down")
    make(t, "up")
    trees.compare(wanted, tree, "after make down and make up")
    make(t, "down", "PURGE=1")
    check(not os.path.exists(t.path("demo")), "make down PURGE=1 left %s", t.path("demo"))


@options(seconds=120)
def test_down_never_ends_a_stranger(t):
    """A recorded pid that is another process by now is left alone."""
    t.defer(make, t, "down", "PURGE=1")
    make(t, "up")
    real = demo_pid(t)
    write_file(os.path.join(t.path("demo-mnt"), "f"), b"x")
    stranger = t.spawn(["sleep", "300"])
    kept = read_file(t.path("demo", "qrvsad.pid"))
    with open(t.path("demo", "qrvsad.pid"), "w") as f:
        f.write("%d\n" % stranger.pid)
    make(t, "down", ok=False)
    if stranger.poll() is not None:
        raise Failure("make down ended a process that is not its daemon")
    with open(t.path("demo", "qrvsad.pid"), "wb") as f:
        f.write(kept)
    make(t, "down")
    check(not is_live(real), "the daemon runs after make down")
