"""System calls that Python's os module lacks, and small helpers for the POSIX tests."""
import ctypes
import errno
import os

from lib import Failure, run, same, wait_for

_libc = ctypes.CDLL(None, use_errno=True)

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO_RANGE = 1, 2, 8, 16
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100


def _checked(value):
    if value < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return value


def fallocate(fd, mode, offset, length):
    _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def rename2(old, new, flags):
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link_open_file(fd, path):
    """Gives an open file that has no name (O_TMPFILE) one; os.link does not pass AT_SYMLINK_FOLLOW on."""
    _checked(_libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(path), 0x400))


def refuses(code, function, *args, **kwargs):
    """The call has to fail with this errno."""
    try:
        function(*args, **kwargs)
    except OSError as e:
        same(errno.errorcode.get(e.errno, e.errno), errno.errorcode[code], "errno of %s%r" % (function.__name__, args))
        return
    raise Failure("%s%r worked, wanted %s" % (function.__name__, args, errno.errorcode[code]))


def refuses_at_last(code, function, *args):
    """The call has to fail with this errno, once what the kernel does behind our back (it tells a FUSE server of a close
    after close() has returned, and keeps the inode until then) is done. Closes the descriptor that it returns before."""
    def refused():
        try:
            os.close(function(*args))
        except OSError as e:
            same(errno.errorcode.get(e.errno, e.errno), errno.errorcode[code], "errno of %s%r" % (function.__name__, args))
            return True
        return False
    wait_for(refused, 60, "%s%r to fail with %s" % (function.__name__, args, errno.errorcode[code]), step=0.01)


class Handle(ctypes.Structure):
    """A file handle, as an NFS server keeps it."""
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]


def name_to_handle(path):
    handle, mount = Handle(size=128), ctypes.c_int()
    _checked(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return handle


def open_by_handle(mount_fd, handle, flags=os.O_RDONLY):
    return _checked(_libc.open_by_handle_at(mount_fd, ctypes.byref(handle), flags))


def write_file(path, data=b"", mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        while data:
            data = data[os.write(fd, data):]
    finally:
        os.close(fd)
    return path


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def extents(fd):
    """[(start, end)] of the data of a file by SEEK_DATA and SEEK_HOLE."""
    found, at, size = [], 0, os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        if at <= start:
            raise Failure("SEEK_HOLE from %d gives %d" % (start, at))
        found.append((start, at))
    return found


def as_user(uid, gid, groups, function):
    """Runs a function in a child process as another user; its exception text, or None. The function must not need the parent."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            function()
            os._exit(0)
        except BaseException as e:
            os.write(w, ("%s: %s" % (type(e).__name__, e)).encode()[:4000])
            os._exit(1)
    os.close(w)
    text = b""
    while True:
        block = os.read(r, 4096)
        if not block:
            break
        text += block
    os.close(r)
    _, status = os.waitpid(pid, 0)
    return None if status == 0 else text.decode(errors="replace") or "ended with status %d" % status


def in_child(function):
    """Runs a function in a child process, so that closing or locking there does not touch our own; its exception text, or None."""
    return as_user(os.geteuid(), os.getegid(), os.getgroups(), function)


def shell(text, cwd, ok=True, timeout=60):
    return run(["bash", "-c", text], cwd=cwd, ok=ok, timeout=timeout)
