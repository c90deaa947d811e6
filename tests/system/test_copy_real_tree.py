"""A real tree copied in with `cp -a` is the same tree: at once, after a restart, and after a crash that follows `pool sync`."""
import glob
import os

import trees
from lib import GIB, MIB, Daemon, Failure, check, options, run

#: Entries and bytes that are a real tree.
ENOUGH = (30_000, 2 * GIB)


def toolchain():
    """The directory of the Rust toolchain, or /usr where there is none."""
    try:
        return run(["rustc", "--print", "sysroot"], timeout=60).out.strip()
    except (Failure, OSError):
        return "/usr"


def measure(top):
    """(entries, bytes) below a directory, about."""
    entries = size = 0
    for base, dirs, files in os.walk(top):
        entries += len(dirs) + len(files)
        size += sum(os.lstat(os.path.join(base, name)).st_size for name in files)
    return entries, size


def sources(t):
    """Directories to copy: all of the toolchain and as much of /usr as makes 30,000 files and 2 GiB; in quick mode a slice."""
    top = toolchain()
    if not t.long:
        for slice_ in ("lib/rustlib/etc", "etc", "share/doc/rust/html/std", "share", "libexec"):
            if os.path.isdir(os.path.join(top, slice_)) and len(os.listdir(os.path.join(top, slice_))) > 2:
                return [os.path.join(top, slice_), "/usr/share/perl5" if os.path.isdir("/usr/share/perl5") else "/etc"]
        return ["/etc"]
    if top == "/usr":
        return [top]
    chosen, entries, size = [], 0, 0
    libraries = [d for d in sorted(glob.glob("/usr/lib/*-linux-gnu")) if not os.path.islink(d)]
    for source in [top] + libraries + ["/usr/share", "/usr/bin", "/usr/include"]:
        if entries >= ENOUGH[0] * 1.05 and size >= ENOUGH[1] * 1.05:
            break
        more = measure(source)
        chosen, entries, size = chosen + [source], entries + more[0], size + more[1]
    return chosen


def copied(t, pool):
    """Copies the sources in; name -> description of the original."""
    wanted = {}
    for source in sources(t):
        name = source.strip("/").replace("/", "-")
        t.step("copying %s", source)
        run(["cp", "-a", "-x", source, os.path.join(pool.mountpoint, name)], timeout=900)
        wanted[name] = trees.describe(source, links_inside=True)
    entries = sum(trees.totals(d)[0] for d in wanted.values())
    size = sum(trees.totals(d)[1] for d in wanted.values())
    t.step("%d entries, %.2f GiB", entries, size / GIB)
    if t.long:
        check(entries >= ENOUGH[0] and size >= ENOUGH[1], "the trees here are too small for this test: %d entries, %d MiB", entries, size // MIB)
    return wanted


def compare_all(t, pool, wanted, when):
    for name, description in wanted.items():
        trees.compare(description, os.path.join(pool.mountpoint, name), "%s, %s" % (name, when))
    t.step("the same %s", when)


@options(seconds=240, long_seconds=900)
def test_copy_survives_restart_and_crash(t):
    """cp -a of a real tree is identical at once, after umount and restart, and after sync and kill -9; check --deep is clean."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=t.size(4 * GIB, 12 * GIB))
    pool.mount()
    wanted = copied(t, pool)
    compare_all(t, pool, wanted, "after the copy")
    pool.check()

    pool.umount()
    daemon.restart()
    pool.mount(pool.mountpoint)
    compare_all(t, pool, wanted, "after umount and restart")
    pool.check()

    extra = trees.make(t.path("extra"), files=300, seed=t.seed)
    run(["cp", "-a", extra, os.path.join(pool.mountpoint, "extra")], timeout=120)
    wanted["extra"] = trees.describe(extra)
    pool.sync()
    pool.crash()
    compare_all(t, pool, wanted, "after pool sync and kill -9")
    pool.check()


@options(seconds=180, anywhere=True)
def test_copy_of_everything_odd(t):
    """Sparse files, hard links, odd names, owners, modes, times and attributes survive cp -a, rsync and a restart."""
    source = trees.make(t.path("source"), files=t.size(300, 1500), seed=t.seed)
    with open(os.path.join(source, "linked from outside"), "w") as f:
        f.write("one name here, one elsewhere")
    os.link(f.name, t.path("outside"))
    wanted = trees.describe(source, links_inside=True)
    pool = t.filesystem()
    run(["cp", "-a", source, os.path.join(pool.mountpoint, "a")], timeout=300)
    run(["rsync", "-aHAXS", "--numeric-ids", source + "/", os.path.join(pool.mountpoint, "b")], timeout=300)
    for name in "ab":
        trees.compare(wanted, os.path.join(pool.mountpoint, name), name)
    pool.restart()
    for name in "ab":
        trees.compare(wanted, os.path.join(pool.mountpoint, name), name + " after a restart")
