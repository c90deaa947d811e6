"""Permissions: modes, owners, groups, sticky and setgid directories, suid removal, ACLs, extended attributes."""
import errno
import mmap
import os
import stat
import struct

from lib import check, options, run, same
from syscalls import as_user, read_file, refuses, write_file

ALICE, BOB, STAFF = 40001, 40002, 40100


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@options(anywhere=True)
def test_access(t):
    """Owner, group and others get exactly what the mode grants, supplementary groups included."""
    pool = t.filesystem()
    d = os.path.join(pool.mountpoint, "d")
    os.mkdir(d)
    os.chmod(pool.mountpoint, 0o755)
    os.chmod(d, 0o777)
    path = write_file(os.path.join(d, "f"), b"secret")
    os.chown(path, ALICE, STAFF)
    os.chmod(path, 0o640)

    def read():
        return read_file(path)

    def write():
        with open(path, "ab") as f:
            f.write(b"+")
    same(as_user(ALICE, ALICE, [], read), None, "the owner reads")
    same(as_user(ALICE, ALICE, [], write), None, "the owner writes")
    same(as_user(BOB, BOB, [STAFF], read), None, "a group member reads")
    check("PermissionError" in (as_user(BOB, BOB, [STAFF], write) or ""), "a group member writes without the right")
    check("PermissionError" in (as_user(BOB, BOB, [], read) or ""), "others read without the right")
    os.chmod(path, 0o046)
    check("PermissionError" in (as_user(ALICE, ALICE, [], read) or ""), "the owner's class counts, not that of others")
    same(as_user(BOB, BOB, [], write), None, "others write")
    os.chmod(d, 0o700)
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: os.stat(path)) or ""), "passing a closed directory")
    os.chmod(d, 0o755)
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: write_file(os.path.join(d, "new"))) or ""), "creating in a foreign directory")
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: os.chmod(path, 0o777)) or ""), "chmod of a foreign file")
    check("PermissionError" in (as_user(ALICE, ALICE, [], lambda: os.chown(path, BOB, -1)) or ""), "giving a file away")
    same(as_user(ALICE, ALICE, [STAFF, BOB], lambda: os.chown(path, -1, BOB)), None, "chgrp to one's own group")
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: os.utime(path, ns=(1, 1))) or ""), "setting times of a foreign file")


@options(anywhere=True)
def test_sticky_and_setgid(t):
    """A sticky directory protects names of others; a setgid directory hands its group and bit down."""
    pool = t.filesystem()
    os.chmod(pool.mountpoint, 0o755)
    tmp = os.path.join(pool.mountpoint, "tmp")
    os.mkdir(tmp)
    os.chmod(tmp, 0o1777)
    same(as_user(ALICE, ALICE, [], lambda: write_file(os.path.join(tmp, "a"), mode=0o666)), None, "creating in a sticky directory")
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: os.unlink(os.path.join(tmp, "a"))) or ""), "unlink in a sticky directory")
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: os.rename(os.path.join(tmp, "a"), os.path.join(tmp, "b"))) or ""), "rename in a sticky directory")
    same(as_user(ALICE, ALICE, [], lambda: os.unlink(os.path.join(tmp, "a"))), None, "the owner's unlink")
    shared = os.path.join(pool.mountpoint, "shared")
    os.mkdir(shared)
    os.chown(shared, 0, STAFF)
    os.chmod(shared, 0o2777)

    def inside():
        write_file(os.path.join(shared, "f"))
        os.mkdir(os.path.join(shared, "sub"))
    same(as_user(ALICE, ALICE, [], inside), None, "creating in a setgid directory")
    same(os.stat(os.path.join(shared, "f")).st_gid, STAFF, "group of a file in a setgid directory")
    same((os.stat(os.path.join(shared, "sub")).st_gid, mode(os.path.join(shared, "sub")) & 0o2000), (STAFF, 0o2000), "a directory in a setgid directory")
    f = os.path.join(shared, "f")
    as_user(ALICE, ALICE, [], lambda: os.chmod(f, 0o2755))
    same(mode(f) & 0o2000, 0, "setgid by an owner who is not in the group")


@options(anywhere=True)
def test_suid_is_dropped(t):
    """Writing, truncating and chown by an ordinary user take setuid and setgid away; by root's write they stay off too."""
    pool = t.filesystem()
    os.chmod(pool.mountpoint, 0o755)
    path = write_file(os.path.join(pool.mountpoint, "f"), b"x" * 100)

    def prepare():
        os.chown(path, ALICE, ALICE)
        os.chmod(path, 0o6775)

    def write():
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"y")
        os.close(fd)

    def shorten():
        os.truncate(path, 10)

    def open_truncating():
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    for what, action in (("write", write), ("truncate", shorten), ("O_TRUNC", open_truncating)):
        prepare()
        same(as_user(ALICE, ALICE, [], action), None, what)
        same(oct(mode(path) & 0o6000), "0o0", "suid and sgid after %s by the owner" % what)
    prepare()
    same(as_user(ALICE, ALICE, [STAFF], lambda: os.chown(path, -1, STAFF)), None, "chgrp")
    same(oct(mode(path) & 0o6000), "0o0", "suid and sgid after chgrp by the owner")
    # setgid without group execute: it stays only with those in the group
    for groups, wanted in (([], "0o0"), ([STAFF], "0o2000")):
        for what, action in (("write", write), ("truncate", shorten), ("O_TRUNC", open_truncating)):
            os.chown(path, ALICE, STAFF)
            os.chmod(path, 0o6666)
            same(as_user(BOB, BOB, groups, action), None, what)
            same(oct(mode(path) & 0o6000), wanted, "suid and sgid after %s by %s" % (what, groups))
    # a chown to nobody is one too, but not from everybody
    for user, wanted in ((BOB, "0o6000"), (ALICE, "0o0"), (0, "0o0")):
        prepare()
        as_user(user, user, [], lambda: os.chown(path, -1, -1))
        same(oct(mode(path) & 0o6000), wanted, "suid and sgid after chown -1 by %d" % user)
    prepare()
    os.chown(path, BOB, -1)
    same(oct(mode(path) & 0o6000), "0o0", "suid and sgid after chown by root")


@options(anywhere=True)
def test_capabilities_go_with_each_write(t):
    """security.capability does not outlive a write, also root's, buffered or direct."""
    pool = t.filesystem()
    path = os.path.join(pool.mountpoint, "f")
    # cap_net_raw+ep, version 2
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    for flags in (0, os.O_DIRECT):
        write_file(path, bytes(8192))
        os.chmod(path, 0o755)
        os.setxattr(path, "security.capability", capability)
        same(os.getxattr(path, "security.capability"), capability, "capability")
        fd = os.open(path, os.O_WRONLY | flags)
        with mmap.mmap(-1, 4096) as buffer:
            same(os.pwritev(fd, [buffer], 0), 4096, "bytes written")
        os.close(fd)
        refuses(errno.ENODATA, os.getxattr, path, "security.capability")


@options(anywhere=True)
def test_acl(t):
    """setfacl and getfacl: entries grant and refuse, the mask limits, defaults are inherited, chmod changes the mask, all survives."""
    pool = t.filesystem()
    os.chmod(pool.mountpoint, 0o755)
    d = os.path.join(pool.mountpoint, "d")
    os.mkdir(d)
    path = write_file(os.path.join(d, "f"), b"x")
    os.chmod(path, 0o600)
    run(["setfacl", "-m", "u:%d:rw,g:%d:r" % (ALICE, STAFF), path])
    same(as_user(ALICE, ALICE, [], lambda: write_file(path, b"y")), None, "a named user writes")
    same(as_user(BOB, BOB, [STAFF], lambda: read_file(path)), None, "a named group reads")
    check("PermissionError" in (as_user(BOB, BOB, [STAFF], lambda: write_file(path)) or ""), "a named group writes without the right")
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: read_file(path)) or ""), "others read")
    run(["setfacl", "-m", "m::r", path])
    check("PermissionError" in (as_user(ALICE, ALICE, [], lambda: write_file(path)) or ""), "the mask does not limit a named user")
    os.chmod(path, 0o660)
    same(as_user(ALICE, ALICE, [], lambda: write_file(path, b"z")), None, "chmod g+w widens the mask")
    run(["setfacl", "-d", "-m", "u:%d:rwx,g::r-x,o::-" % BOB, d])
    old = os.umask(0o077)
    write_file(os.path.join(d, "child"), mode=0o666)
    os.mkdir(os.path.join(d, "sub"))
    os.umask(old)
    pool.restart()
    text = run(["getfacl", "-cpn", os.path.join(d, "child")]).out
    check("user:%d:rwx" % BOB in text and "mask::rw-" in text and "other::---" in text, "inherited ACL:\n%s", text)
    text = run(["getfacl", "-cpn", os.path.join(d, "sub")]).out
    check("default:user:%d:rwx" % BOB in text, "inherited default ACL:\n%s", text)
    same(as_user(BOB, BOB, [], lambda: write_file(os.path.join(d, "child"), b"b")), None, "access by an inherited entry")
    text = run(["getfacl", "-cpn", path]).out
    check("user:%d:rw-" % ALICE in text, "ACL after a restart:\n%s", text)
    run(["setfacl", "-b", path])
    check("PermissionError" in (as_user(ALICE, ALICE, [], lambda: read_file(path)) or ""), "a removed entry still grants")


@options(anywhere=True)
def test_xattrs(t):
    """Extended attributes: create, replace, list, remove, sizes, name spaces, on files, directories and links; they survive."""
    pool = t.filesystem()
    path = write_file(os.path.join(pool.mountpoint, "f"))
    values = {"user.empty": b"", "user.bin": bytes(range(256)), "user.big": os.urandom(2000), "trusted.t": b"root only", "user." + "n" * 200: b"long name"}
    for n, v in values.items():
        os.setxattr(path, n, v, os.XATTR_CREATE)
    refuses(errno.EEXIST, os.setxattr, path, "user.bin", b"", os.XATTR_CREATE)
    refuses(errno.ENODATA, os.setxattr, path, "user.none", b"", os.XATTR_REPLACE)
    for n, code in (("user.bin", errno.EEXIST), ("user.none", errno.ENODATA)):
        refuses(code, os.setxattr, path, n, b"", os.XATTR_CREATE | os.XATTR_REPLACE)
    refuses(errno.ENODATA, os.getxattr, path, "user.none")
    refuses(errno.ENODATA, os.removexattr, path, "user.none")
    os.setxattr(path, "user.bin", b"replaced", os.XATTR_REPLACE)
    values["user.bin"] = b"replaced"
    os.setxattr(pool.mountpoint, "user.dir", b"on a directory")
    pool.restart()
    same({n: os.getxattr(path, n) for n in os.listxattr(path)}, values, "attributes after a restart")
    same(os.getxattr(pool.mountpoint, "user.dir"), b"on a directory", "an attribute of a directory")
    os.removexattr(path, "user.big")
    check("user.big" not in os.listxattr(path), "a removed attribute is listed")
    os.symlink("f", os.path.join(pool.mountpoint, "s"))
    refuses(errno.EPERM, os.setxattr, os.path.join(pool.mountpoint, "s"), "user.x", b"", follow_symlinks=False)
    os.setxattr(os.path.join(pool.mountpoint, "s"), "trusted.x", b"1", follow_symlinks=False)
    os.chmod(pool.mountpoint, 0o755)
    os.chmod(path, 0o644)
    check("PermissionError" in (as_user(BOB, BOB, [], lambda: os.setxattr(path, "user.x", b"")) or ""), "setxattr on a foreign file")
    same(as_user(BOB, BOB, [], lambda: os.getxattr(path, "user.bin")), None, "getxattr on a readable file")
    check(as_user(BOB, BOB, [], lambda: os.getxattr(path, "trusted.t")) is not None, "an ordinary user reads trusted.*")
    same(as_user(BOB, BOB, [], lambda: check("trusted.t" not in os.listxattr(path), "listed")), None, "trusted.* in an ordinary user's list")
    check("trusted.t" in os.listxattr(path), "trusted.* is not in root's list")
    if not t.against:
        os.setxattr(path, "user.64k", bytes(65536))
        same(len(os.getxattr(path, "user.64k")), 65536, "an attribute of 64 KiB")
        for i in range(500):
            os.setxattr(path, "user.many%d" % i, b"%d" % i * 10)
        same(len(os.listxattr(path)), len(values) - 1 + 501, "number of attributes")
