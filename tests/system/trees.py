"""File trees: made, described completely, compared.

A description names for each path its type, mode, owner, size, modification time in nanoseconds, link count, SHA-256 or link
target, extended attributes (ACLs among them), and the first path that is the same file, so that hard links are compared as
such. Directories' own link counts and sizes differ between filesystems and are left out.
"""
import hashlib
import os
import random
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from lib import Failure

#: Attributes a security module sets by itself.
FOREIGN_XATTRS = {"security.selinux", "security.ima", "security.evm"}


def digest(path):
    """SHA-256 of a file's content."""
    with open(path, "rb", buffering=0) as f:
        h = hashlib.sha256()
        buf = bytearray(1 << 20)
        view = memoryview(buf)
        while True:
            n = f.readinto(buf)
            if not n:
                return h.hexdigest()
            h.update(view[:n])


def xattrs(path):
    """All extended attributes of a path, not following a link."""
    names = [n for n in os.listxattr(path, follow_symlinks=False) if n not in FOREIGN_XATTRS]
    return tuple(sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in names))


def describe(top, times=True, content=True, links_inside=False):
    """path -> description, for everything below (and with) a directory. `links_inside`: counts only the names that lie in the tree,
    as its copy will have them; a tree of the host may have links from elsewhere."""
    found, first = {}, {}
    jobs = []
    with ThreadPoolExecutor(2) as pool:
        for base, dirs, files in os.walk(top, onerror=_raise):
            dirs.sort()
            for name in [""] * (base == top) + sorted(dirs + files):
                path = os.path.join(base, name) if name else base
                rel = os.path.relpath(path, top)
                s = os.lstat(path)
                kind = stat.S_IFMT(s.st_mode)
                entry = {"type": oct(kind), "mode": oct(stat.S_IMODE(s.st_mode)), "owner": (s.st_uid, s.st_gid), "xattrs": xattrs(path)}
                if times:
                    entry["mtime"] = s.st_mtime_ns
                if kind != stat.S_IFDIR:
                    entry["nlink"] = s.st_nlink
                    entry["same as"] = first.setdefault((s.st_dev, s.st_ino), rel)
                if kind == stat.S_IFREG:
                    entry["size"] = s.st_size
                    if content and entry["same as"] == rel:
                        jobs.append((entry, pool.submit(digest, path)))
                elif kind == stat.S_IFLNK:
                    entry["target"] = os.readlink(path)
                elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                    entry["device"] = s.st_rdev
                found[rel] = entry
        for entry, job in jobs:
            entry["sha256"] = job.result()
    if links_inside:
        names = Counter(entry["same as"] for entry in found.values() if "same as" in entry)
        for entry in found.values():
            if "same as" in entry:
                entry["nlink"] = names[entry["same as"]]
    return found


def _raise(error):
    raise error


def differences(a, b, most=8):
    """Sentences on how two descriptions differ, at most so many."""
    out = []
    for path in sorted(a.keys() | b.keys()):
        if path not in a or path not in b:
            out.append("%s: only in the %s" % (path, "first" if path in a else "second"))
        elif a[path] != b[path]:
            for key in sorted(a[path].keys() | b[path].keys()):
                x, y = a[path].get(key), b[path].get(key)
                if x != y:
                    out.append("%s: %s is %.120r, then %.120r" % (path, key, x, y))
        if len(out) >= most:
            break
    return out


def compare(wanted, top, what, **kwargs):
    """Fails unless the tree at `top` is as described."""
    diff = differences(wanted, describe(top, **kwargs))
    if diff:
        raise Failure("%s:\n  %s" % (what, "\n  ".join(diff)))


def totals(description):
    """(entries, bytes of distinct files) of a description."""
    return len(description), sum(e.get("size", 0) for p, e in description.items() if e.get("same as") == p)


def make(top, files=400, seed=1, largest=4 << 20):
    """A small tree with a bit of everything: sizes from empty to `largest`, sparse files, hard and symbolic links, attributes,
    odd names, modes, owners and times. The same seed gives the same tree."""
    r = random.Random(seed)
    os.makedirs(top, exist_ok=True)
    dirs, made = [top], []
    for i in range(max(3, files // 20)):
        d = os.path.join(r.choice(dirs), "d%03d" % i)
        os.mkdir(d)
        dirs.append(d)
    for i in range(files):
        name = r.choice(["f%05d" % i, "n\u00e4me %d" % i, "-x%d" % i, "a\nb%d" % i, "l" * 240 + "%05d" % i])
        path = os.path.join(r.choice(dirs), name)
        size = r.choice([0, 1, r.randrange(100), r.randrange(4096), 4096, 4097, r.randrange(1 << 16), 131072, r.randrange(1 << 19), largest])
        with open(path, "wb") as f:
            if r.random() < 0.1:
                f.seek(r.randrange(1 << 22))
            f.write(r.randbytes(size))
        os.chmod(path, r.choice([0o644, 0o600, 0o755, 0o400]))
        if os.geteuid() == 0:
            os.chown(path, r.choice([0, 1000, 65534]), r.choice([0, 1000]))
            os.chmod(path, r.choice([0o644, 0o4755, 0o2755, 0o640]))
        if r.random() < 0.2:
            os.setxattr(path, "user.note", r.randbytes(r.randrange(1, 200)))
        made.append(path)
        if r.random() < 0.1:
            os.link(r.choice(made), os.path.join(r.choice(dirs), "h%05d" % i), follow_symlinks=False)
        if r.random() < 0.1:
            made.append(os.path.join(r.choice(dirs), "s%05d" % i))
            os.symlink(r.choice(["../x", "/nowhere/%d" % i, "y" * r.randrange(1, 1000)]), made[-1])
    if os.geteuid() == 0:
        made += [os.path.join(top, "fifo"), os.path.join(top, "null")]
        os.mkfifo(made[-2], 0o640)
        os.mknod(made[-1], 0o20666, os.makedev(1, 3))
    for path in made:
        t = r.randrange(0, 2_000_000_000_000_000_000)
        os.utime(path, ns=(t, t), follow_symlinks=False)
    for d in reversed(dirs):
        t = r.randrange(0, 2_000_000_000_000_000_000)
        os.utime(d, ns=(t, t))
    return top


def random_file(path, size, seed):
    """A file of random bytes; its SHA-256."""
    r = random.Random(seed)
    h = hashlib.sha256()
    with open(path, "wb", buffering=0) as f:
        left = size
        while left:
            block = memoryview(r.randbytes(min(left, 1 << 20)))
            left -= len(block)
            h.update(block)
            while block:
                block = block[f.write(block):]
    return h.hexdigest()
