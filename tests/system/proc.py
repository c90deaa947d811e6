"""Processes, mounts and loop devices of the tests: started with a deadline, found again, ended by id.

Every command runs in a session of its own and with a deadline, because a daemon under test may hang, and whoever touches
its mount hangs with it. Nothing is ever ended by name: a process counts as ours when it descends from the runner, or when
its pid and start time were recorded in the run directory.
"""
import ctypes
import os
import re
import signal
import subprocess
import time


#: Deadlines of commands and conditions are written for a machine that has nothing else to do; all of them are taken so many times.
SLOWNESS = 3


class Failure(AssertionError):
    """A promise that was not kept."""


class Result:
    """Exit status and output of a finished command."""

    def __init__(self, cmd, rc, out, err):
        self.cmd, self.rc, self.out, self.err = cmd, rc, out, err

    def __str__(self):
        return "%s: exit %s\n%s%s" % (" ".join(map(str, self.cmd)), self.rc, self.out[-2000:], self.err[-2000:])


_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def become_subreaper():
    """Orphans of our children become our children, so that descendants() finds them."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(how=signal.SIGKILL):
    """For preexec_fn: the child is killed, or told to end, when its parent ends."""
    _libc.prctl(PR_SET_PDEATHSIG, how, 0, 0, 0)


def run(cmd, timeout=60, ok=True, input=None, env=None, cwd=None):
    """Runs a command to its end. With `ok`, anything but exit status 0 is a Failure; so is a missed deadline, always: `timeout` seconds,
    and more on a slow machine."""
    cmd = [str(c) for c in cmd]
    timeout *= SLOWNESS
    child = subprocess.Popen(cmd, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                             start_new_session=True, env=env, cwd=cwd)
    try:
        out, err = child.communicate(input, timeout)
    except subprocess.TimeoutExpired:
        kill_group(child.pid)
        try:
            out, err = child.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            out = err = ""
        raise Failure("no end after %s s: %s\n%s%s" % (timeout, " ".join(cmd), out[-2000:], err[-2000:])) from None
    result = Result(cmd, child.returncode, out, err)
    if ok and result.rc != 0:
        raise Failure(str(result))
    return result


def ended(child, seconds=60):
    """Waits for the end of a child, `seconds` or more on a slow machine; its exit status."""
    try:
        return child.wait(seconds * SLOWNESS)
    except subprocess.TimeoutExpired:
        raise Failure("no end after %s s: %s" % (seconds * SLOWNESS, " ".join(map(str, child.args)))) from None


def kill(pid):
    """Kills a process that may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_group(pgid, sig=signal.SIGKILL):
    """Signals a process group that may be gone."""
    try:
        os.killpg(pgid, sig)
    except (ProcessLookupError, PermissionError):
        pass


def wait_group_gone(pgid, wait=20.0 * SLOWNESS):
    """Waits until nobody is left of a process group that was killed; its members are collected by their parents."""
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        try:
            os.killpg(pgid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.01)


def wait_gone(pid, wait=60.0 * SLOWNESS):
    """Waits until a process is gone with all that it held. A zombie does not count: some of its threads may still hold files."""
    deadline = time.monotonic() + wait
    start = start_time(pid)
    while start is not None and start_time(pid) == start:
        if time.monotonic() > deadline:
            raise Failure("process %d does not end within %d s" % (pid, wait))
        time.sleep(0.01)


def start_time(pid):
    """A process's start in clock ticks since boot, which with the pid names it for ever; None when it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return int(f.read().rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_live(pid):
    """Exists and is not a zombie."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (OSError, ValueError, IndexError):
        return False


def command_line(pid):
    """What a process runs, cut short; empty when it is gone."""
    try:
        with open("/proc/%d/cmdline" % pid, errors="replace") as f:
            return f.read().replace("\0", " ").strip()[:100]
    except OSError:
        return ""


def descendants(root):
    """Pids of all processes below `root`, without it."""
    parent = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry) as f:
                    parent[int(entry)] = int(f.read().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError, IndexError):
                pass
    found, grew = {root}, True
    while grew:
        more = {pid for pid, up in parent.items() if up in found and pid not in found}
        found |= more
        grew = bool(more)
    return found - {root}


def end_descendants(root, wait=10.0):
    """Kills everything below `root`; returns the pids that were still there when asked, with their command lines."""
    first = {pid: command_line(pid) for pid in descendants(root) if is_live(pid)}
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        live = {pid for pid in descendants(root) if is_live(pid)}
        if not live:
            break
        for pid in live:
            kill(pid)
        time.sleep(0.05)
        reap()
    reap()
    return first


def reap():
    """Collects the exit status of orphans that came to us."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def _unescape(text):
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), text)


def mounts():
    """(directory, type, source, options) of each mount of this namespace, in mount order. Never touches the mounts."""
    found = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as f:
        for line in f:
            left, right = line.rstrip("\n").split(" - ", 1)
            fields, tail = left.split(" "), right.split(" ")
            found.append((_unescape(fields[4]), tail[0], _unescape(tail[1]), fields[5] + "," + tail[2]))
    return found


def mounts_below(directory):
    """Mount points at or below a directory, deepest and latest first."""
    directory = directory.rstrip("/")
    return [m[0] for m in reversed(mounts()) if m[0] == directory or m[0].startswith(directory + "/")]


def is_mounted(directory):
    return any(m[0] == directory for m in mounts())


def unmount_below(directory):
    """Takes every mount at or below a directory away, lazily, so that a dead or hung server cannot hold us."""
    for _ in range(3):
        left = mounts_below(directory)
        if not left:
            return
        for point in left:
            try:
                run(["umount", "-l", point], timeout=20, ok=False)
            except Failure:
                pass


def loops_below(directory):
    """(device, backing file) of each loop device whose file lies, or lay, below a directory."""
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                with open("/sys/block/%s/loop/backing_file" % name) as f:
                    backing = f.read().rstrip("\n")
            except OSError:
                continue
            if backing.startswith(directory.rstrip("/") + "/"):
                found.append(("/dev/" + name, backing))
    return found


def detach_below(directory, wait=5.0):
    """Detaches those loop devices. A device that somebody holds open goes when it is closed."""
    deadline = time.monotonic() + wait
    while True:
        left = loops_below(directory)
        for device, _ in left:
            run(["losetup", "-d", device], timeout=20, ok=False)
        if not left or time.monotonic() > deadline:
            return loops_below(directory)
        time.sleep(0.1)


def record_pid(run_dir, pid):
    """Notes a process in the run directory, for the clean-up after a runner that was killed."""
    with open(os.path.join(run_dir, "pids"), "a") as f:
        f.write("%d %s\n" % (pid, start_time(pid)))


def end_recorded(run_dir):
    """Kills the processes noted in a run directory, if they are still the same."""
    try:
        with open(os.path.join(run_dir, "pids")) as f:
            lines = f.read().split("\n")
    except OSError:
        return
    for line in lines:
        part = line.split()
        if len(part) == 2 and part[1].isdigit() and start_time(int(part[0])) == int(part[1]):
            kill(int(part[0]))


def remove_tree(directory):
    """Removes a directory of ours; never crosses into a mount."""
    if os.path.isdir(directory):
        run(["rm", "-rf", "--one-file-system", "--", directory], timeout=300, ok=False)
