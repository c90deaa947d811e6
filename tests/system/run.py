#!/usr/bin/env python3
"""Runs the system tests: one process per test, one line per test, nothing left behind.

    run.py [--quick | --long] [--vm] [--list] [--keep] [--seed N] [--lanes N] [--against DIR] [NAME...]

NAME selects by substring of `file.test`. `--against DIR` runs those tests that need nothing but a directory on another
filesystem: it checks the tests, not the program. `--vm` runs those that boot a guest, and no others. `--lanes N` runs N tests
at a time, those with the most patience first. Ends with the line `N passed, N failed`, and exit status 1 if any failed.

A test has a deadline. When it passes, the daemons of the test are killed first, which frees whoever waits for their mounts.
After each test, kept or failed, its processes, mounts and loop devices are gone; what a test that says it succeeded left
behind makes it fail.
"""
import argparse
import faulthandler
import glob
import importlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lanes  # noqa: E402
import proc  # noqa: E402
from lib import Test, binary  # noqa: E402

PREFIX = "qrvsa-test-"
#: Begins the line in a test's log that says why it failed.
REASON = "the test failed: "
#: How long what a test told to end may take for it, in seconds.
PATIENCE = 20


def discover():
    """(name, function, promise) of every test, in the order of files and lines."""
    found = []
    for path in sorted(glob.glob(os.path.join(HERE, "test_*.py"))):
        module = importlib.import_module(os.path.basename(path)[:-3])
        tests = [f for n, f in vars(module).items() if n.startswith("test_") and inspect.isfunction(f) and f.__module__ == module.__name__]
        for f in sorted(tests, key=lambda f: f.__code__.co_firstlineno):
            promise = (f.__doc__ or "").strip().split("\n")[0]
            assert promise, "%s.%s has no promise" % (module.__name__, f.__name__)
            found.append((module.__name__[5:] + "." + f.__name__[5:], f, promise))
    return found


def child(args):
    """Runs one test in this process; exit status 0 if it held."""
    name, directory, run_dir = args.one, args.dir, args.run_dir
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    function = dict((n, f) for n, f, _ in discover())[name]
    t = Test(directory, run_dir, name, long=args.long, against=args.against, seed=args.seed)
    t.step("%s, seed %d", name, t.seed)
    reasons = []
    try:
        function(t)
    except BaseException as e:
        traceback.print_exc()
        reasons.append("%s: %s" % (type(e).__name__, e))
    reasons += t.close()
    for reason in reasons:
        print(REASON + " | ".join(line.strip() for line in reason.splitlines() if line.strip()))
    sys.stdout.flush()
    os._exit(1 if reasons else 0)  # no waiting for threads that hang in a dead mount


def panics(directory):
    """Lines of the test's daemon logs that tell of a panic."""
    found = []
    for log in glob.glob(os.path.join(directory, "*.log")):
        with open(log, errors="replace") as f:
            found += ["%s: %s" % (os.path.basename(log), line.strip()) for line in f if "panicked at" in line]
    return found


def wait_and_reap(child, seconds):
    """Waits for a child, and meanwhile collects orphans that came to us, so that none stays a zombie that looks alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            time.sleep(0.02)
        elif ended.si_pid == child.pid:
            return child.wait()
        else:
            os.waitpid(ended.si_pid, 0)
    raise subprocess.TimeoutExpired(child.args, seconds)


class Runner:
    def __init__(self, args):
        self.args = args
        self.run_dir = tempfile.mkdtemp(prefix=PREFIX, dir=base_dir())
        os.chmod(self.run_dir, 0o755)  # the database server runs as another user
        self.logs = os.path.join(self.run_dir, "logs")
        os.mkdir(self.logs)
        with open(os.path.join(self.run_dir, "runner"), "w") as f:
            f.write("%d %s\n" % (os.getpid(), proc.start_time(os.getpid())))
        proc.become_subreaper()

    def one(self, name, function):
        """(seconds, complaint or None)"""
        directory = os.path.join(self.run_dir, name)
        log = os.path.join(self.logs, name + ".log")
        limit = patience(function, self.args.long) * proc.SLOWNESS
        cmd = [sys.executable, os.path.abspath(__file__), "--one", name, "--dir", directory, "--run-dir", self.run_dir]
        cmd += options_of(self.args)
        begin = time.monotonic()
        complaint = None
        with open(log, "wb") as out:
            test = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                                    preexec_fn=proc.die_with_parent)
            try:
                status = wait_and_reap(test, limit)
                if status != 0:
                    complaint = "failed" if status == 1 else "the test process ended with exit %d" % status
            except subprocess.TimeoutExpired:
                complaint = "no end after %d s" % limit
                test.send_signal(signal.SIGUSR1)  # its stack into the log
                time.sleep(2)
        seconds = time.monotonic() - begin
        left = self.clean(directory, test, PATIENCE if complaint is None else 1)
        if complaint is None and left:
            complaint = "left behind: " + ", ".join(left)
        broken = panics(directory)
        if broken:
            complaint = (complaint or "") + " panic: " + "; ".join(broken[:2])
        if complaint:
            for path in glob.glob(os.path.join(directory, "*.log")):
                shutil.copy(path, os.path.join(self.logs, "%s.%s" % (name, os.path.basename(path))))
        elif not self.args.keep:
            os.unlink(log)
        if not self.args.keep:
            proc.remove_tree(directory)
        return seconds, complaint

    def clean(self, directory, test=None, patience=0):
        """Ends and undoes whatever lives in a test's directory; names what the test should have ended itself. What it told to
        end gets some patience: a process that was killed, or a loop device somebody still looks at, takes a moment to go."""
        if test is not None and test.poll() is None:
            # the daemons first: who waits for their mounts cannot even be killed before
            proc.end_recorded(self.run_dir)
            proc.kill_group(test.pid)
        left = []
        if test is not None:
            try:
                test.wait(10)
            except subprocess.TimeoutExpired:
                left.append("the test process itself")
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and (proc.mounts_below(directory) or proc.loops_below(directory) or
                                               any(proc.is_live(p) for p in proc.descendants(os.getpid()))):
            time.sleep(0.05)
            proc.reap()
        left += ["process %d (%s)" % each for each in sorted(proc.end_descendants(os.getpid()).items())]
        left += ["mount %s" % m for m in proc.mounts_below(directory)]
        proc.unmount_below(directory)
        left += ["loop device %s" % d for d, _ in proc.loops_below(directory)]
        proc.detach_below(directory)
        try:
            os.unlink(os.path.join(self.run_dir, "pids"))
        except FileNotFoundError:
            pass
        return left

    def tails(self, name):
        """The ends of a failed test's logs, as lines."""
        lines = []
        for path in sorted(glob.glob(os.path.join(self.logs, name + ".*log"))):
            lines.append("--- %s" % os.path.basename(path))
            with open(path, errors="replace") as f:
                lines += [line[:400] for line in f.read().splitlines()[-25:]]
        return lines

    def reason(self, name, complaint):
        """Why a test failed, in one line: what it says itself; of one that did not end, where it was and how far it had come."""
        with open(os.path.join(self.logs, name + ".log"), errors="replace") as f:
            lines = f.read().splitlines()
        told = [line[len(REASON):] for line in lines if line.startswith(REASON)]
        if not told:
            # innermost first
            told = [line.strip() for line in lines if re.match(r'\s+File ".*/test_\w+\.py", line \d+ in test_', line)][:1]
            told += [line for line in lines if re.match(r"\[ *\d+\.\d+\] ", line)][-1:]
        text = "; ".join(told if complaint == "failed" and told else [complaint.strip()] + told)
        return text if len(text) <= 700 else text[:400] + " ... " + text[-300:]

    def finish(self, failed):
        """Cleans up; the directory of the logs, if they are kept."""
        self.clean(self.run_dir)
        if failed or self.args.keep:
            return self.logs
        proc.remove_tree(self.run_dir)
        return None


def base_dir():
    """Where runners make their directories."""
    return os.environ.get("QRVSA_TEST_TMP", "/var/tmp")


def sweep():
    """Cleans up after runners that were killed. Directories that hold the logs of failed tests stay."""
    for run_dir in glob.glob(os.path.join(base_dir(), PREFIX + "*")):
        try:
            with open(os.path.join(run_dir, "runner")) as f:
                pid, start = (int(x) for x in f.read().split())
        except (OSError, ValueError):
            continue
        if proc.start_time(pid) == start:
            continue  # at work
        proc.end_recorded(run_dir)
        proc.unmount_below(run_dir)
        proc.detach_below(run_dir)
        for entry in os.listdir(run_dir):
            if entry not in ("logs", "runner"):
                path = os.path.join(run_dir, entry)
                proc.remove_tree(path) if os.path.isdir(path) else os.unlink(path)
        try:
            os.rmdir(os.path.join(run_dir, "logs"))
            proc.remove_tree(run_dir)
        except OSError:
            os.unlink(os.path.join(run_dir, "runner"))


def patience(function, long):
    """The deadline of a test, in seconds, on a machine that has nothing else to do."""
    return function.long_seconds if long else function.seconds


def options_of(args):
    """The options that a test's own process, and a lane, have to know."""
    given = ["--long"] if args.long else []
    given += ["--keep"] if args.keep else []
    given += ["--against", args.against] if args.against else []
    return given + (["--seed", str(args.seed)] if args.seed is not None else [])


def end_on_signals():
    """Being told to end means to clean up first."""
    ends = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def end(number, _):
        for s in ends:  # a second one is not to break off the cleaning
            signal.signal(s, signal.SIG_IGN)
        sys.exit(128 + number)

    for s in ends:
        signal.signal(s, end)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="small sizes, without the long tests (the default)")
    mode.add_argument("--long", action="store_true", help="full sizes and all tests")
    p.add_argument("--vm", action="store_true", help="the tests that boot a guest, and no others")
    p.add_argument("--list", action="store_true", help="only list the tests and what they promise")
    p.add_argument("--keep", action="store_true", help="keep logs and directories")
    p.add_argument("--seed", type=int, help="repeat a random run")
    p.add_argument("--lanes", type=int, default=1, metavar="N", help="this many tests at a time")
    p.add_argument("--against", metavar="DIR", help="run the tests that need only a directory, there")
    p.add_argument("names", nargs="*")
    for hidden in ("--one", "--dir", "--run-dir"):
        p.add_argument(hidden, help=argparse.SUPPRESS)
    p.add_argument("--lane", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    for out in (sys.stdout, sys.stderr):
        out.reconfigure(errors="backslashreplace")  # names of files may be anything
    if args.one:
        child(args)
    found = discover()
    if args.lane:
        end_on_signals()
        lanes.serve(Runner(args), {n: f for n, f, _ in found}, sys.stdin, sys.stdout)
        return
    tests = [(n, f, text) for n, f, text in found
             if (not args.names or any(x in n for x in args.names)) and (not args.against or f.anywhere)
             and (args.list or args.vm == f.vm)]
    if args.list:
        for name, f, text in tests:
            print("%-44s %s%s" % (name, "(long) " if f.long_only else "(vm) " if f.vm else "", text))
        return
    if os.geteuid() != 0:
        sys.exit("the system tests mount filesystems and attach loop devices: run them as root")
    tests = [x for x in tests if args.long or not x[1].long_only or x[0] in args.names]
    if not tests:
        sys.exit("no test matches")
    if not args.against:
        try:
            binary("qrvsad"), binary("qrvsa")
        except proc.Failure as e:
            sys.exit(str(e))
    end_on_signals()
    sweep()  # here, as lanes would get into each other's way
    if args.lanes > 1:
        # what takes longest is not to begin last
        tests.sort(key=lambda test: -patience(test[1], args.long))
    command = [sys.executable, os.path.abspath(__file__), "--lane"] + options_of(args)
    done, failed = [], {}

    def report(name, answer):
        done.append(name)
        complaint = answer["complaint"]
        print("[%3d/%d] %-5s %7.1f s  %s%s" % (len(done), len(tests), "FAIL" if complaint else "ok", answer["seconds"], name,
                                               "  (%s)" % complaint if complaint else ""), flush=True)
        if complaint:
            failed[name] = answer["reason"]
            print("".join("    %s\n" % line for line in answer["log"]), end="", flush=True)

    for kept in lanes.spread(command, max(1, args.lanes), [name for name, _, _ in tests], report):
        print("logs kept in %s" % kept)
    # once more, at the end, where who sees only the last lines finds it
    for name, reason in failed.items():
        print("failed: %s (%s)" % (name, reason))
    print("%d passed, %d failed" % (len(done) - len(failed), len(failed)))
    sys.exit(0 if len(done) == len(tests) and not failed else 1)


if __name__ == "__main__":
    main()
