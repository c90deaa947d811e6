"""Names: rename in all variants, links, symbolic links, removal, long and odd names."""
import errno
import os
import stat
import threading

import syscalls
from lib import check, drop_caches, options, same
from syscalls import name_to_handle, open_by_handle, read_file, refuses, refuses_at_last, write_file


def place(t, **kwargs):
    pool = t.filesystem(**kwargs)
    return pool, pool.mountpoint


@options(anywhere=True)
def test_rename(t):
    """rename replaces atomically, keeps the inode, updates link counts and parents, and refuses what it must."""
    _, d = place(t)
    a, b = os.path.join(d, "a"), os.path.join(d, "b")
    write_file(a, b"one")
    write_file(b, b"two")
    ino = os.stat(a).st_ino
    kept = os.open(b, os.O_RDONLY)
    os.rename(a, b)
    same(os.stat(b).st_ino, ino, "inode after rename")
    same(read_file(b), b"one", "content after rename over a file")
    same(os.fstat(kept).st_nlink, 0, "links of a replaced file that is open")
    same(os.read(kept, 10), b"two", "content of a replaced file that is open")
    os.close(kept)
    refuses(errno.ENOENT, os.rename, a, b)
    # the same file twice: nothing happens
    os.link(b, a)
    os.rename(a, b)
    check(os.path.exists(a) and os.path.exists(b), "rename of two links to one file removed one")
    # directories
    for name in ("d1", "d2", "d1/sub"):
        os.mkdir(os.path.join(d, name))
    d1, d2 = os.path.join(d, "d1"), os.path.join(d, "d2")
    refuses(errno.ENOTDIR, os.rename, d1, b)
    refuses(errno.EISDIR, os.rename, b, d1)
    refuses(errno.EINVAL, os.rename, d1, os.path.join(d1, "sub", "in"))
    refuses(errno.EINVAL, os.rename, d1, os.path.join(d1, "in"))
    write_file(os.path.join(d2, "x"))
    refuses(errno.ENOTEMPTY, os.rename, d1, d2)
    os.unlink(os.path.join(d2, "x"))
    links = os.stat(d).st_nlink
    os.rename(d1, d2)
    same(sorted(os.listdir(d)), ["a", "b", "d2"], "names after rename over an empty directory")
    if not t.against:
        same(os.stat(d).st_nlink, links - 1, "links of the parent after a directory was replaced")
        same(os.stat(d2).st_nlink, 3, "links of a directory with one subdirectory")
    os.mkdir(os.path.join(d, "e"))
    os.rename(os.path.join(d2, "sub"), os.path.join(d, "e", "sub"))
    same(os.stat(os.path.join(d, "e", "sub", "..")).st_ino, os.stat(os.path.join(d, "e")).st_ino, ".. of a moved directory")


@options(anywhere=True)
def test_rename_flags(t):
    """RENAME_NOREPLACE refuses an existing target, RENAME_EXCHANGE swaps files and directories."""
    _, d = place(t)
    a, b, c = (os.path.join(d, n) for n in "abc")
    write_file(a, b"one")
    write_file(b, b"two")
    os.mkdir(c)
    write_file(os.path.join(c, "in"), b"three")
    refuses(errno.EEXIST, syscalls.rename2, a, b, syscalls.RENAME_NOREPLACE)
    syscalls.rename2(a, os.path.join(d, "n"), syscalls.RENAME_NOREPLACE)
    syscalls.rename2(os.path.join(d, "n"), b, syscalls.RENAME_EXCHANGE)
    same((read_file(b), read_file(os.path.join(d, "n"))), (b"one", b"two"), "content after an exchange")
    syscalls.rename2(b, c, syscalls.RENAME_EXCHANGE)
    same((read_file(c), read_file(os.path.join(b, "in"))), (b"one", b"three"), "a file exchanged with a directory")
    refuses(errno.ENOENT, syscalls.rename2, b, os.path.join(d, "none"), syscalls.RENAME_EXCHANGE)
    refuses(errno.EINVAL, syscalls.rename2, b, c, syscalls.RENAME_EXCHANGE | syscalls.RENAME_NOREPLACE)


@options(anywhere=True)
def test_rename_is_atomic(t):
    """While one thread renames over a name again and again, another always finds it, with one of the two contents."""
    _, d = place(t)
    target = os.path.join(d, "target")
    write_file(target, b"0" * 5000)
    stop, wrong = threading.Event(), []

    def reader():
        while not stop.is_set():
            try:
                data = read_file(target)
                if len(data) != 5000 or len(set(data)) != 1:
                    wrong.append("mixed content, %d bytes" % len(data))
            except OSError as e:
                wrong.append(str(e))
    threads = [threading.Thread(target=reader, daemon=True) for _ in range(2)]
    for x in threads:
        x.start()
    for i in range(400):
        os.rename(write_file(os.path.join(d, "new"), b"%d" % (i % 10) * 5000), target)
    stop.set()
    for x in threads:
        x.join(10)
    check(not wrong, "%d wrong reads: %s", len(wrong), wrong[:3])


@options(anywhere=True)
def test_hard_links(t):
    """Hard links share everything, survive a restart, and the last one takes the file along."""
    pool, d = place(t)
    a = write_file(os.path.join(d, "a"), b"content")
    os.mkdir(os.path.join(d, "dir"))
    names = [os.path.join(d, "dir", "l%d" % i) for i in range(100)]
    for n in names:
        os.link(a, n)
    same(os.stat(a).st_nlink, 101, "links")
    pool.restart()
    same({os.stat(n).st_ino for n in names}, {os.stat(a).st_ino}, "inodes of the links")
    before = os.stat(a).st_ctime_ns
    os.chmod(names[3], 0o600)
    same(stat.S_IMODE(os.stat(a).st_mode), 0o600, "mode through another link")
    check(os.stat(a).st_ctime_ns > before, "ctime did not move")
    os.unlink(a)
    for n in names[1:]:
        os.unlink(n)
    same((os.stat(names[0]).st_nlink, read_file(names[0])), (1, b"content"), "the last link")
    refuses(errno.EEXIST, os.link, names[0], names[0])
    refuses(errno.EPERM, os.link, os.path.join(d, "dir"), os.path.join(d, "x"))
    os.symlink("nowhere", os.path.join(d, "s"))
    os.link(os.path.join(d, "s"), os.path.join(d, "s2"), follow_symlinks=False)
    same(os.readlink(os.path.join(d, "s2")), "nowhere", "a hard link to a symbolic link")


@options(anywhere=True)
def test_symbolic_links(t):
    """Targets of up to 4,095 bytes, any bytes but NUL, loops, dangling links, size and mode."""
    pool, d = place(t)
    targets = [b"a", b"../b", b"/", b"x" * 255, b"y" * 1000, b"/".join([b"z" * 60] * 67)[:4095], bytes(range(1, 256))]
    for i, target in enumerate(targets):
        os.symlink(target, os.path.join(os.fsencode(d), b"s%d" % i))
    os.symlink(b"w" * 4095, os.path.join(os.fsencode(d), b"longest"))
    refuses(errno.ENAMETOOLONG, os.symlink, b"w" * 4096, os.path.join(os.fsencode(d), b"over"))
    pool.restart()
    for i, target in enumerate(targets):
        path = os.path.join(os.fsencode(d), b"s%d" % i)
        same(os.readlink(path), target, "target %d" % i)
        same(os.lstat(path).st_size, len(target), "size of link %d" % i)
        same(stat.S_IMODE(os.lstat(path).st_mode), 0o777, "mode of a link")
    same(len(os.readlink(os.path.join(d, "longest"))), 4095, "length of the longest target")
    os.symlink("loop", os.path.join(d, "loop"))
    refuses(errno.ELOOP, os.stat, os.path.join(d, "loop"))
    refuses(errno.ENOENT, os.stat, os.path.join(d, "s0"))
    refuses(errno.EEXIST, os.symlink, "x", os.path.join(d, "loop"))


@options(anywhere=True)
def test_removal(t):
    """unlink and rmdir refuse what they must; a removed file that is open goes on until it is closed."""
    pool, d = place(t)
    os.makedirs(os.path.join(d, "p/q"))
    f = write_file(os.path.join(d, "f"), b"x" * 100_000)
    refuses(errno.ENOTEMPTY, os.rmdir, os.path.join(d, "p"))
    refuses(errno.ENOTDIR, os.rmdir, f)
    refuses(errno.EISDIR, os.unlink, os.path.join(d, "p"))
    refuses(errno.ENOENT, os.unlink, os.path.join(d, "none"))
    refuses(errno.EINVAL, os.rmdir, os.path.join(d, "p/q/."))
    fd = os.open(f, os.O_RDWR)
    os.unlink(f)
    check(not os.path.exists(f), "an unlinked name is still there")
    same(os.fstat(fd).st_nlink, 0, "links of an unlinked file")
    os.pwrite(fd, b"later", 200_000)
    same(os.pread(fd, 5, 200_000), b"later", "content written after unlink")
    same(os.pread(fd, 3, 0), b"xxx", "content written before unlink")
    os.ftruncate(fd, 10)
    os.fchmod(fd, 0o600)
    same(os.fstat(fd).st_size, 10, "size after ftruncate of an unlinked file")
    os.close(fd)
    # a removed current directory
    here = os.open(os.path.join(d, "p/q"), os.O_RDONLY)
    os.rmdir(os.path.join(d, "p/q"))
    same(os.listdir(here), [], "listing of a removed directory")
    refuses(errno.ENOENT, os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=here)
    os.close(here)
    os.rmdir(os.path.join(d, "p"))
    same([n for n in os.listdir(d) if n != "lost+found"], [], "names left")


@options(anywhere=True)
def test_names(t):
    """Names of up to 255 bytes with any bytes but NUL and slash; longer ones are refused; paths of up to 4,095 bytes work."""
    pool, d = place(t)
    top = os.fsencode(d)
    names = [b"x" * 255, b" ", b"-rf", b"\n", b"\xff\xfe", "\u00e9".encode(), b"e\xcc\x81", b"..x", b"a" * 254 + b"\x01", b"UPPER", b"upper",
             bytes(b for b in range(1, 128) if b != 0x2f)]
    for i, n in enumerate(names):
        write_file(os.path.join(top, n), b"%d" % i)
    for call in (lambda p: os.open(p, os.O_CREAT | os.O_WRONLY), os.mkdir, os.stat, os.unlink, lambda p: os.rename(os.path.join(top, b" "), p)):
        refuses(errno.ENAMETOOLONG, call, os.path.join(top, b"x" * 256))
    pool.restart()
    same(sorted(os.listdir(top)), sorted(names), "listing")
    for i, n in enumerate(names):
        same(read_file(os.path.join(top, n)), b"%d" % i, "content of %r" % n)
    # deeper than a path can say at once
    fd = os.open(d, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    same(os.listdir(fd), [], "a directory 8,000 bytes down")
    os.close(fd)


@options(anywhere=True)
def test_directory_reading(t):
    """A listing shows every name once, while names come and go; offsets can be returned to."""
    _, d = place(t)
    stable = {"stable%04d" % i for i in range(2000)}
    for n in stable:
        write_file(os.path.join(d, n))
    seen = []
    with os.scandir(d) as entries:
        for i, e in enumerate(entries):
            seen.append(e.name)
            if i % 10 == 0:
                write_file(os.path.join(d, "new%04d" % i))
            if i % 20 == 10:
                os.unlink(os.path.join(d, "new%04d" % (i - 10)))
    listed = [n for n in seen if n in stable]
    same(len(listed), len(set(listed)), "names seen twice")
    same(set(listed), stable, "stable names seen")
    # removing while reading, as rm -r does, leaves nothing
    with os.scandir(d) as entries:
        for e in entries:
            if e.name != "lost+found":
                os.unlink(e.path)
    left = [n for n in os.listdir(d) if n != "lost+found"]
    same(left, [], "names left by removal during a listing")
    for name in ("x", "y"):
        os.mkdir(os.path.join(d, name))
    types = {e.name: (e.is_dir(follow_symlinks=False), e.inode()) for e in os.scandir(d)}
    same(types["x"], (True, os.stat(os.path.join(d, "x")).st_ino), "type and inode in the listing")


@options(anywhere=True)
def test_a_listing_ends(t):
    """A listing ends, and misses nothing, when each entry it shows is renamed, linked or copied."""
    _, d = place(t)
    count = 2000

    def twice(here, name):
        os.rename(os.path.join(here, name), os.path.join(here, "temporary"))
        os.rename(os.path.join(here, "temporary"), os.path.join(here, name))

    def away(here, name):
        os.rename(os.path.join(here, name), os.path.join(here, name + ".b"))

    def copied(here, name):
        write_file(os.path.join(here, name + ".c"))
    for what, change in (("renamed twice", twice), ("renamed", away), ("copied", copied)):
        here = os.path.join(d, what)
        os.mkdir(here)
        for i in range(count):
            write_file(os.path.join(here, "%04d" % i))
        shown = []
        with os.scandir(here) as entries:
            for e in entries:
                shown.append(e.name)
                check(len(shown) <= 2 * count, "%d entries of %d so far, each %s", len(shown), count, what)
                change(here, e.name)
        same(len({n[:4] for n in shown}), count, "entries shown, each " + what)
    # what is new is there after a rewind, of a directory that was read to its end
    with os.scandir(d) as entries:
        same(len(list(entries)) >= 3, True, "directories")
    fd = os.open(d, os.O_RDONLY)
    before = set(os.listdir(fd))
    write_file(os.path.join(d, "new"))
    same(set(os.listdir(fd)) - before, {"new"}, "new names after a rewind")
    os.close(fd)


@options(anywhere=True)
def test_file_handles(t):
    """A file handle finds its file after renames and cold caches, and nothing once the file is gone."""
    _, d = place(t)
    os.mkdir(os.path.join(d, "sub"))
    path = write_file(os.path.join(d, "sub/f"), b"content")
    root = os.open(d, os.O_RDONLY)
    file, sub = name_to_handle(path), name_to_handle(os.path.join(d, "sub"))

    def contents(handle):
        fd = open_by_handle(root, handle)
        try:
            return os.pread(fd, 100, 0)
        finally:
            os.close(fd)
    drop_caches()
    same(contents(file), b"content", "by a handle")
    os.rename(path, os.path.join(d, "g"))
    drop_caches()
    same(contents(file), b"content", "by a handle, after a rename")
    fd = open_by_handle(root, sub)
    same(os.fstat(fd).st_ino, os.stat(os.path.join(d, "sub")).st_ino, "a directory by its handle")
    os.close(fd)
    held = open_by_handle(root, file)
    os.unlink(os.path.join(d, "g"))
    same(contents(file), b"content", "a removed file that is open, by its handle")
    os.close(held)
    os.rmdir(os.path.join(d, "sub"))
    drop_caches()
    for handle in (file, sub):
        refuses_at_last(errno.ESTALE, open_by_handle, root, handle)
    for i in range(50):
        path = write_file(os.path.join(d, "n%d" % i), b"x" * 5000)
        handle = name_to_handle(path)
        os.unlink(path)
        refuses_at_last(errno.ESTALE, open_by_handle, root, handle)
    os.close(root)
