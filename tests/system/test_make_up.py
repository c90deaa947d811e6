"""`make up` and `make down`: a mounted demo pool from nothing, harmless when repeated, gone without a trace."""
import os

import trees
from lib import ROOT, Failure, binary, check, is_mounted, options, run, same
from proc import is_live, loops_below, mounts_below, wait_gone
from syscalls import read_file, write_file


def demo_env(t, mnt=None):
    env = dict(os.environ, DEMO_DIR=t.path("demo"), DEMO_MNT=mnt or t.path("demo-mnt"), DEMO_SIZE="1G", SKIP_BUILD="1")
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        env.pop(name, None)
    return env


def make(t, *args, ok=True, mnt=None):
    result = run(["make", "-s", "-C", ROOT, *args], timeout=240, ok=ok, env=demo_env(t, mnt))
    check(ok or result.rc != 0, "it worked: %s", result)
    return result


def answers(t):
    return run([os.path.join(ROOT, "tools/demo/qrvsa.sh"), "pool", "list"], env=demo_env(t), ok=False).rc == 0


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


@options(seconds=180)
def test_names_as_people_write_them(t):
    """The directory of the mount may have a blank in its name, and be written with a slash at its end or through a link."""
    real = t.mkdir("real place")
    os.symlink(real, t.path("link"))
    mnt = t.path("link", "a mount") + "/"
    mounted = os.path.join(real, "a mount")
    t.defer(lambda: make(t, "down", "PURGE=1", mnt=mnt))
    make(t, "up", mnt=mnt)
    check(is_mounted(mounted), "not mounted")
    make(t, "up", mnt=mnt)
    same(mounts_below(real), [mounted], "mounts after a second make up")
    make(t, "down", "PURGE=1", mnt=mnt)
    same(mounts_below(real), [], "mounts after make down")
    check(not os.path.exists(t.path("demo")) and not os.path.exists(mounted), "make down PURGE=1 left something")


@options(seconds=180)
def test_a_daemon_that_is_not_recorded(t):
    """A daemon whose pid is not recorded is left alone, with its socket and its disks, and named; two make up start one."""
    t.defer(make, t, "down", "PURGE=1")
    ups = [t.spawn(["make", "-s", "-C", ROOT, "up"], log=t.path("up%d.log" % n), env=demo_env(t)) for n in range(2)]
    for n, up in enumerate(ups):
        check(up.wait(240) == 0, "make up failed: %s", read_file(t.path("up%d.log" % n)))
    record = t.path("demo", "qrvsad.pid")
    pid = demo_pid(t)
    check(is_live(pid) and answers(t), "the recorded daemon does not serve")
    disks = os.listdir(t.path("demo", "disks"))
    kept = read_file(record)
    # as a full disk leaves it
    write_file(record, b"")
    for args in (["up"], ["down", "PURGE=1"]):
        said = make(t, *args, ok=False).err
        check("kill %d" % pid in said, "make %s does not name the daemon: %s", " ".join(args), said)
        check(is_live(pid) and answers(t) and is_mounted(t.path("demo-mnt")), "make %s ended something", " ".join(args))
    same(sorted(os.listdir(t.path("demo", "disks"))), sorted(disks), "disks")
    write_file(record, kept)
    make(t, "down", "PURGE=1")
    check(not is_live(pid), "the daemon runs after make down")

    # a daemon that cannot be recorded is not started
    os.makedirs(record)
    said = make(t, "up", ok=False).err
    check("cannot write %s" % record in said, "make up does not say what failed: %s", said)
    os.rmdir(record)
    check(not answers(t), "a daemon runs")
    make(t, "down", "PURGE=1")


@options(seconds=120)
def test_a_pool_that_was_never_finished(t):
    """Containers without a pool, as a make up leaves them that was killed: the next one says how to go on, and that works."""
    t.defer(make, t, "down", "PURGE=1")
    disks = os.path.join(t.mkdir("demo"), "disks")
    os.mkdir(disks)
    for n in range(4):
        run([binary("qrvsa"), "vhdx", "create", os.path.join(disks, "disk%d.vhdx" % (n + 1)), "1G"])
    said = make(t, "up", ok=False).err
    check("make down PURGE=1" in said, "make up does not say how to go on: %s", said)
    make(t, "down", "PURGE=1")
    make(t, "up")
    check(is_mounted(t.path("demo-mnt")), "not mounted")
    make(t, "down", "PURGE=1")
