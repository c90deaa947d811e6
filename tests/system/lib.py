"""What the system tests share: a test's scope, the daemon, pools, mounts, damage on purpose.

A test is a function `test_*(t)` in a file `test_*.py`; the first line of its doc string is the promise it checks. `t` is a
[Test], which owns a directory and everything started in it. The runner (`run.py`) runs each test in a process of its own.
"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback

import contract
from proc import SLOWNESS, Failure, die_with_parent, is_mounted, kill_group, loops_below, record_pid, run, unmount_below, wait_group_gone

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

#: How long unsynced data may stay unwritten, by the daemon's default, in seconds.
COMMIT_SECONDS = 5
#: The daemon's resident size stays under `memory_limit` plus this.
MEMORY_SLACK = 128 * MIB


def check(condition, message, *args):
    """Fails the test unless the condition holds."""
    if not condition:
        raise Failure(message % args if args else message)


def same(found, wanted, what):
    """Fails the test unless both are equal, and shows both."""
    if found != wanted:
        raise Failure("%s: found %.500r, wanted %.500r" % (what, found, wanted))


def wait_for(condition, seconds, what, step=0.1):
    """Waits until a condition holds; returns its value. The seconds are for a machine that has nothing else to do. `what` says what
    is waited for; it may be a function, called at the end."""
    seconds *= SLOWNESS
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure("waited %s s for: %s" % (seconds, what() if callable(what) else what))
        time.sleep(step)


def options(seconds=120, long_seconds=None, long_only=False, anywhere=False, vm=False):
    """Marks a test: its deadline in quick and in long mode, for a machine that has nothing else to do, whether it runs in long mode only, whether it needs
    nothing but a directory, so that `run.py --against DIR` can check the test itself on another filesystem, and whether
    it boots a guest and runs with `run.py --vm` only."""
    def mark(function):
        function.seconds, function.long_seconds = seconds, long_seconds or seconds
        function.long_only, function.anywhere, function.vm = long_only, anywhere, vm
        return function
    return mark


def binary(name):
    """Path of one of the built programs: in $QRVSA_BIN, or the release directory of this checkout."""
    where = os.environ.get("QRVSA_BIN") or os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
    path = os.path.join(where, name)
    if not os.access(path, os.X_OK):
        raise Failure("%s is not there: build it with `cargo build --release`, or set QRVSA_BIN" % path)
    return path


class Test:
    """The scope of one test: a directory, what was started, what to undo."""

    def __init__(self, directory, run_dir, name, long=False, against=None, seed=None):
        self.dir, self.run_dir, self.name, self.long, self.against = directory, run_dir, name, long, against
        self.seed = seed if seed is not None else int.from_bytes(os.urandom(4), "little")
        self.random = random.Random(self.seed)
        self._undo = []
        self._begin = time.monotonic()
        os.makedirs(directory, mode=0o755, exist_ok=True)

    def step(self, text, *args):
        """One line of progress into the test's log."""
        print("[%7.2f] %s" % (time.monotonic() - self._begin, text % args if args else text), flush=True)

    def size(self, quick, long):
        """One of two amounts, by the mode."""
        return long if self.long else quick

    def defer(self, action, *args):
        """Does this at the end of the test, last first, whatever happened."""
        self._undo.append((action, args))

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def mkdir(self, *parts):
        path = self.path(*parts)
        os.makedirs(path, exist_ok=True)
        return path

    def close(self):
        """Undoes everything; returns what went wrong with that."""
        problems = []
        while self._undo:
            action, args = self._undo.pop()
            try:
                action(*args)
            except BaseException as e:  # the other actions still run
                problems.append("at the end of the test: %s" % e)
                traceback.print_exc()
        return problems

    # -- devices ------------------------------------------------------------------------------------------------------

    def disk(self, name, size=None):
        """The path of a file to become a device; with a size, created sparse."""
        path = os.path.join(self.mkdir("disks"), name + ".img")
        if size is not None:
            with open(path, "wb") as f:
                f.truncate(size)
        return path

    def loop(self, name, size):
        """(loop device, backing file): a sparse file as a block device, detached at the end."""
        path = self.disk(name, size)
        device = run(["losetup", "-f", "--show", "--direct-io=on", path], timeout=20).out.strip()
        self.defer(detach, device, path)
        return device, path

    # -- background commands ------------------------------------------------------------------------------------------

    def spawn(self, cmd, log=None, **kwargs):
        """Starts a command in a session of its own; it is killed at the end of the test."""
        out = open(log, "ab") if log else subprocess.DEVNULL
        kwargs.setdefault("stdout", out)
        kwargs.setdefault("stderr", subprocess.STDOUT if log else subprocess.DEVNULL)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        child = subprocess.Popen([str(c) for c in cmd], start_new_session=True, preexec_fn=die_with_parent, **kwargs)
        record_pid(self.run_dir, child.pid)
        self.defer(end_child, child)
        return child

    # -- the filesystem under test --------------------------------------------------------------------------------------

    def filesystem(self, **kwargs):
        """A fresh filesystem for tests that need nothing but one: a mounted 2+2 pool, or, with `--against DIR`, a
        directory there."""
        if self.against:
            place = os.path.join(self.against, "qrvsa-reference-%s-%d" % (self.name, os.getpid()))
            os.makedirs(place)
            self.defer(run, ["rm", "-rf", "--one-file-system", place], 120, False)
            return Elsewhere(place)
        pool = Daemon(self).start().pool(**kwargs)
        pool.mount()
        return pool


class Elsewhere:
    """Stands for a mounted pool where tests are run against another filesystem."""

    def __init__(self, place):
        self.mountpoint = place

    def restart(self):
        run(["sync", "-f", self.mountpoint])

    def sync(self):
        run(["sync", "-f", self.mountpoint])


def end_child(child):
    """Ends a spawned command with its whole session, and waits until nobody of that is left."""
    if child.poll() is None:
        kill_group(child.pid)
        try:
            child.wait(60 * SLOWNESS)
        except subprocess.TimeoutExpired:
            raise Failure("killed, but it does not end: %s" % " ".join(child.args)) from None
        wait_group_gone(child.pid)


def detach(device, backing):
    """Detaches a loop device, if it still has this file: by now it may be somebody else's."""
    if any(d == device and (b == backing or b == backing + " (deleted)") for d, b in loops_below(os.path.dirname(backing))):
        run(["losetup", "-d", device], 20, False)


class Daemon:
    """A `qrvsad` of the test's own: socket, state directory and log in the test's directory."""

    def __init__(self, t, name="qrvsad", **settings):
        self.t, self.name, self.settings = t, name, settings
        # the path of a socket is at most 107 bytes long
        self.socket = os.path.join(t.run_dir, "%s-%s.sock" % (t.name[-24:], name[-24:]))
        self.state = t.mkdir(name + ".state")
        self.log = t.path(name + ".log")
        self.child = None
        t.defer(self._end)

    def start(self, wait=60):
        """Starts it, and waits until it answers, which it does when pools, mounts and targets are back."""
        check(self.child is None, "the daemon runs already")
        cmd = [binary("qrvsad"), "--socket", self.socket, "--state", self.state]
        if self.settings:
            config = self.t.path(self.name + ".toml")
            with open(config, "w") as f:
                f.write(contract.config_text(self.settings))
            cmd += ["--config", config]
        with open(self.log, "ab") as log:
            # a session of its own: the end of the test process must not take it along before its log is read
            self.child = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                          env=dict(os.environ, RUST_BACKTRACE="1"))
        record_pid(self.t.run_dir, self.child.pid)

        def answers():
            if self.child.poll() is not None:
                raise Failure("the daemon ended at once, exit %s\n%s" % (self.child.returncode, self.log_tail(15)))
            return os.path.exists(self.socket) and self.cli("pool", "list", ok=False, timeout=wait).rc == 0
        wait_for(answers, wait, "the daemon to answer on its socket", 0.05)
        return self

    def stop(self, wait=90):
        """Asks it to end, as the service manager does; it has to end with exit status 0."""
        child, self.child = self.child, None
        if child is None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            rc = child.wait(wait * SLOWNESS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)
            raise Failure("the daemon did not end within %d s of SIGTERM\n%s" % (wait * SLOWNESS, self.log_tail(15))) from None
        check(rc == 0, "the daemon ended with exit %s\n%s", rc, self.log_tail(15))

    def kill(self):
        """kill -9: the crash of the process, with all it holds in memory."""
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.wait(120 * SLOWNESS)

    def restart(self):
        self.stop()
        return self.start()

    def freeze(self):
        """SIGSTOP; returns when all of its threads have stopped."""
        os.kill(self.child.pid, signal.SIGSTOP)
        wait_for(lambda: all(state == "T" for state in self._states()), 20, lambda: "all threads to stop: %s" % self._states(), 0.005)

    def _states(self):
        """The state of each thread, by its letter, but for the kernel's workers among them."""
        found, tasks = [], "/proc/%d/task" % self.pid
        for thread in os.listdir(tasks):
            try:
                with open(os.path.join(tasks, thread, "stat"), errors="replace") as f:
                    name, rest = f.read().rsplit(")", 1)
            except OSError:
                continue
            if "(iou-" not in name:
                found.append(rest.split()[0])
        return found

    def thaw(self):
        os.kill(self.child.pid, signal.SIGCONT)

    @property
    def pid(self):
        return self.child.pid

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def _end(self):
        if self.child is None:
            return
        if not self.alive():
            rc, self.child = self.child.returncode, None
            raise Failure("the daemon was gone at the end of the test, exit %s" % rc)
        self.stop()

    def cli(self, *args, timeout=120, ok=True, input=None):
        """Runs `qrvsa` on this daemon."""
        return run([binary("qrvsa"), "--socket", self.socket, *args], timeout=timeout, ok=ok, input=input)

    def json(self, *args, timeout=120, codes=(0,)):
        """The same with `--json`: the parsed answer. Any exit status but these is a Failure."""
        result = run([binary("qrvsa"), "--socket", self.socket, "--json", *args], timeout=timeout, ok=False)
        check(result.rc in codes, "%s", result)
        return last_json(result.out)

    def refused(self, pattern, *args, code=None, timeout=60):
        """The command has to be refused: one clear line on stderr matching `pattern`, an exit status that is an answer
        and not a crash, and a daemon that goes on. Returns the line."""
        result = self.cli(*args, ok=False, timeout=timeout)
        what = "qrvsa " + " ".join(map(str, args))
        check(result.rc != 0, "%s was accepted: %s", what, result.out)
        check(0 < result.rc < 126 and result.rc != contract.PANIC_EXIT, "%s ended with exit %s\n%s", what, result.rc, result.err)
        lines = [line for line in result.err.splitlines() if line.strip()]
        check(len(lines) == 1, "%s: not one line of error but %r", what, result.err)
        check(re.search(pattern, lines[0], re.I), "%s: the error does not match /%s/: %s", what, pattern, lines[0])
        check("panicked" not in result.err, "%s panicked: %s", what, result.err)
        if code is not None:
            same(result.rc, code, what + ": exit status")
        if self.child is not None:
            check(self.alive(), "the daemon died of: %s", what)
        self.t.step("refused, %d: %s", result.rc, lines[0])
        return lines[0]

    def pool(self, name="tank", **kwargs):
        """Creates a pool on this daemon."""
        return Pool(self, name, **kwargs).create()

    def pools(self):
        return contract.pool_names(self.json("pool", "list"))

    # -- memory -------------------------------------------------------------------------------------------------------

    def resident_peak(self):
        """Highest resident size of this process since its start or the last forget_peak(), in bytes."""
        with open("/proc/%d/status" % self.pid) as f:
            return int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1)) * KIB

    def forget_peak(self):
        with open("/proc/%d/clear_refs" % self.pid, "w") as f:
            f.write("5\n")

    def check_memory(self, limit):
        """The promise on memory: resident size never above the limit plus MEMORY_SLACK."""
        peak = self.resident_peak()
        self.t.step("resident peak %.1f MiB, memory_limit %.0f MiB", peak / MIB, limit / MIB)
        check(peak <= limit + MEMORY_SLACK, "the daemon took %.1f MiB with a memory_limit of %.0f MiB", peak / MIB, limit / MIB)

    # -- log ----------------------------------------------------------------------------------------------------------

    def log_text(self):
        try:
            with open(self.log, errors="replace") as f:
                return re.sub(r"\x1b\[[0-9;]*m", "", f.read())
        except OSError:
            return ""

    def log_tail(self, lines=30):
        return "\n".join(self.log_text().splitlines()[-lines:])


class Pool:
    """A pool and, once mounted, its directory."""

    def __init__(self, daemon, name="tank", geometry=(2, 2), size=2 * GIB, devices=None, extra=()):
        self.daemon, self.t, self.name, self.k, self.m, self.size = daemon, daemon.t, name, geometry[0], geometry[1], size
        self.devices = devices or [self.t.disk("%s-%d" % (name, i + 1)) for i in range(self.k + self.m)]
        self.extra = extra
        self.mountpoint = None

    def create(self, *extra):
        args = [d if os.path.exists(d) else "%s:%d" % (d, self.size) for d in self.devices]
        self.daemon.cli("pool", "create", self.name, "--geometry", "%d+%d" % (self.k, self.m), *self.extra, *extra, *args)
        return self

    def mount(self, directory=None, fs=None):
        """Mounts it; the mount is gone at the end of the test."""
        directory = directory or self.t.mkdir("mnt-" + self.name)
        os.makedirs(directory, exist_ok=True)
        self.daemon.cli("mount", self.name + ("/" + fs if fs else ""), directory)
        check(is_mounted(directory), "the mount command returned, but %s is not mounted", directory)
        self.mountpoint = directory
        self.t.defer(self._end_mount, directory)
        return directory

    def _end_mount(self, directory):
        if is_mounted(directory):
            if self.daemon.alive():
                self.daemon.cli("umount", directory, timeout=60)
                check(not is_mounted(directory), "umount returned, but %s is still mounted", directory)
            else:
                unmount_below(directory)

    def umount(self):
        self.daemon.cli("umount", self.mountpoint, timeout=120)
        check(not is_mounted(self.mountpoint), "umount returned, but %s is still mounted", self.mountpoint)

    def wait_mounted(self, seconds=60):
        """Waits until the daemon has restored the mount by itself and it serves."""
        def serves():
            if not is_mounted(self.mountpoint):
                return False
            return run(["stat", "-f", self.mountpoint], timeout=20, ok=False).rc == 0
        wait_for(serves, seconds, "the mount of %s to be restored" % self.name, 0.1)

    def restart(self):
        """Ends the daemon in order and starts it again; the mount comes back by itself. No cache survives this."""
        self.daemon.restart()
        if self.mountpoint:
            self.wait_mounted()

    def crash(self):
        """kill -9 of the daemon, and a new one; the mount comes back by itself."""
        self.daemon.kill()
        self.daemon.start()
        if self.mountpoint:
            self.wait_mounted()

    def status(self):
        return contract.Status(self.daemon.json("pool", "status", self.name))

    def status_text(self):
        return self.daemon.cli("pool", "status", self.name).out

    def sync(self):
        """Commits everything now."""
        self.daemon.cli("pool", "sync", self.name)

    def check(self, deep=True):
        """`qrvsa check`: everything consistent, or the test fails."""
        self.daemon.cli("check", self.name, *(["--deep"] if deep else []), timeout=900)

    def scrub(self):
        """One pass to its end; what it found."""
        found = contract.Scrub(self.daemon.json("pool", "scrub", self.name, "--wait", timeout=900, codes=(0, contract.Scrub.FOUND_PROBLEMS)))
        self.t.step("scrub: %s", found)
        return found

    def replace(self, old, new, size=None):
        """Replaces a device; returns when the rebuild is done or goes on by itself."""
        target = new if os.path.exists(new) else "%s:%d" % (new, size or self.size)
        self.daemon.cli("pool", "replace", self.name, old, target, timeout=900)
        self.devices[self.devices.index(old)] = new

    def bring_back(self):
        """What status says to do about devices that missed something: after a crash in the middle of a commit, one that was
        just coming in may lack it."""
        for device in self.status().devices:
            if device.state == contract.FAULTED:
                self.daemon.cli("pool", "online", self.name, device.path, timeout=300)

    def wait_healthy(self, seconds=600):
        """Waits until nothing is missing and no rebuild runs."""
        return wait_for(lambda: (lambda s: s if s.healthy else None)(self.status()), seconds,
                        lambda: "the pool to be whole again; it says\n%s" % self.status_text(), 0.5)

    def wait_degraded(self, names, seconds=60):
        """Waits until status says DEGRADED and names exactly these devices."""
        wanted = sorted(os.path.realpath(n) for n in names)

        def told():
            s = self.status()
            return s if s.health == contract.DEGRADED and sorted(os.path.realpath(p) for p in s.bad_devices()) == wanted else None
        try:
            return wait_for(told, seconds, "status to say DEGRADED and to name %s" % names, 0.5)
        except Failure as e:
            raise Failure("%s; it says %s" % (e, self.status())) from None

    def locate(self, path):
        """Where the bytes of a file lie: its records with their fragments."""
        return contract.records(self.daemon.json("debug", "locate", path))

    def statfs(self):
        return os.statvfs(self.mountpoint)

    def free_bytes(self):
        s = self.statfs()
        return s.f_bavail * s.f_frsize


def last_json(text):
    """The JSON in a command's output; where progress lines come before it, the last one."""
    text = text.strip()
    try:
        return json.loads(text)
    except ValueError:
        pass
    for line in reversed(text.splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise contract.ContractError("no JSON in %r" % text[-500:])


# -- damage on purpose ----------------------------------------------------------------------------------------------------

def scribble(path, offset, length):
    """Random bytes over a part of a device, on the disk before this returns."""
    fd = os.open(path, os.O_WRONLY)
    try:
        done = 0
        while done < length:
            done += os.pwrite(fd, os.urandom(min(MIB, length - done)), offset + done)
        os.fsync(fd)
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def device_bytes(path, offset, length):
    """What a device holds, past the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def vanish_file(path):
    """A device that is a file goes: truncated, then unlinked, under the daemon's hands."""
    os.truncate(path, 0)
    os.unlink(path)


def vanish_loop(device, backing):
    """A device that is a loop device goes: no capacity any more, so that every I/O fails, then detached."""
    os.truncate(backing, 0)
    run(["losetup", "-c", device], timeout=20)
    run(["losetup", "-d", device], timeout=20)
    os.unlink(backing)


def drop_caches():
    """Drops the kernel's clean pages and dentries."""
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3\n")


def here(name):
    """A file beside the tests."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


def python(script, *args):
    """Command line of a helper script in `workers/`."""
    return [sys.executable, here(os.path.join("workers", script)), *map(str, args)]
