#!/usr/bin/env python3
"""iscsi.py [DOC]: LUNs of this daemon beside tgt's, over loopback, one after another in one run; about four minutes.

Reads of 4 KiB are done by iscsi-perf, writes of 4 KiB and all of 1 MiB by `qemu-img bench`, both through libiscsi in the client. At QD 32 these
clients can be busier than the server is: the rows with "own client" are done by this project's load generator
(`qrvsa-iscsi/examples/load.rs`), which takes less of the processors, against all servers alike. File LUNs of both servers stand on the
same file; a 2+2 volume stands on four files of the same disk. The table goes to the terminal and, with DOC, into that file between its
markers.

With every figure goes the processor time that its client took, in hundredths of the time it ran: one thread that took 90 or more of them
could not have asked faster, whatever the server.

  RT=2          seconds per figure        REPS=3     figures per row; the best counts
  LUN_MB=512    size of each LUN          BENCH_DIR  where the files lie
  AWAKE=1       idle processors do not sleep (/dev/cpu_dma_latency), whichever server runs; without it only qrvsa sees to that itself
"""
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RT, REPS = float(os.environ.get("RT", "2")), int(os.environ.get("REPS", "3"))
LUN_MB = int(os.environ.get("LUN_MB", "512"))
IQN = "iqn.2026-01.test.bench:a"
BEGIN, END = "<!-- iscsi: begin -->", "<!-- iscsi: end -->"
ROWS = [("4 KiB random read, QD 1", "IOPS", "read", 4096, 1), ("4 KiB random read, QD 32", "IOPS", "read", 4096, 32),
        ("4 KiB random write, QD 1", "IOPS", "write", 4096, 1), ("4 KiB random write, QD 32", "IOPS", "write", 4096, 32),
        ("4 KiB random read, QD 32, own client", "IOPS", "own read", 4096, 32), ("4 KiB random write, QD 32, own client", "IOPS", "own write", 4096, 32),
        ("1 MiB sequential read, QD 4", "MB/s", "seqread", 1 << 20, 4), ("1 MiB sequential write, QD 4", "MB/s", "seqwrite", 1 << 20, 4)]
SERVERS = ["qrvsa file", "tgt rdwr", "tgt aio", "qrvsa 2+2 volume", "qrvsa null", "tgt null"]


def port_free():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(*cmd, **kwargs):
    result = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, timeout=120, **kwargs)
    if result.returncode:
        raise RuntimeError("%s: exit %d\n%s%s" % (" ".join(map(str, cmd)), result.returncode, result.stdout, result.stderr))
    return result.stdout


class Server:
    """One server with one LUN, ended with everything of it."""

    def __init__(self, where, name, image):
        self.dir, self.port = tempfile.mkdtemp(dir=where), port_free()
        self.url = "iscsi://127.0.0.1:%d/%s/1" % (self.port, IQN)
        self.log = open(os.path.join(self.dir, "log"), "w")
        self.child = None
        try:
            kind, store = name.split(" ", 1)
            (self.qrvsa if kind == "qrvsa" else self.tgt)(store, image)
        except BaseException:
            self.end()
            raise

    def spawn(self, *cmd, ready, **env):
        self.child = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True, env=dict(os.environ, **env))
        for _ in range(300):
            if os.path.exists(ready):
                return
            if self.child.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError("%s did not start: %s" % (cmd[0], open(self.log.name).read()[-500:]))

    def qrvsa(self, store, image):
        where = os.environ.get("QRVSA_BIN") or os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
        socket, config = os.path.join(self.dir, "s"), os.path.join(self.dir, "conf")
        with open(config, "w") as f:
            f.write('search_dirs = []\nlog_level = "warn"\n')
        self.spawn(os.path.join(where, "qrvsad"), "--socket", socket, "--state", os.path.join(self.dir, "st"), "--config", config, ready=socket)
        cli = lambda *args: run(os.path.join(where, "qrvsa"), "--socket", socket, *args)
        cli("target", "create", IQN, "--portal", "127.0.0.1:%d" % self.port)
        cli("target", "acl", IQN, "add", "--all")
        if store == "file":
            cli("target", "lun", "add", IQN, "--file", image)
        elif store == "null":
            cli("target", "lun", "add", IQN, "--null", "%dM" % LUN_MB)
        else:
            devices = ["%s/d%d.img:%dM" % (self.dir, n, 2 * LUN_MB) for n in range(4)]
            cli("pool", "create", "bench", "--geometry", "2+2", *devices)
            cli("volume", "create", "bench/v", "%dM" % LUN_MB)
            cli("target", "lun", "add", IQN, "--volume", "bench/v")
            run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, self.url)
            cli("pool", "sync", "bench")

    def tgt(self, store, image):
        base = os.path.join(self.dir, "tgt")
        self.spawn("tgtd", "-f", "--iscsi", "portal=127.0.0.1:%d" % self.port, ready=base + ".0", TGT_IPC_SOCKET=base)
        env = dict(os.environ, TGT_IPC_SOCKET=base)
        adm = lambda *args: run("/usr/sbin/tgtadm", "--lld", "iscsi", *args, env=env)
        adm("-m", "target", "-o", "new", "-t", "1", "-T", IQN)
        adm("-m", "lu", "-o", "new", "-t", "1", "-l", "1", "-E", store, "-b", image)
        adm("-m", "target", "-o", "bind", "-t", "1", "-I", "ALL")

    def end(self):
        if self.child:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def perf(url, size, depth):
    """IOPS of random reads by iscsi-perf."""
    out = run("iscsi-perf", "-r", "-m", depth, "-b", size // 512, "-t", max(1, round(RT)), url)
    return float(re.findall(r"iops average (\d+) \(", out)[-1])


def own(url, kind, size, depth):
    """IOPS of random reads or writes by this project's load generator."""
    where = os.environ.get("QRVSA_BIN") or os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
    address, target, lun = re.match(r"iscsi://([^/]+)/([^/]+)/(\d+)$", url).groups()
    return float(run(os.path.join(where, "examples", "load"), address, target, lun, kind.split()[1], size, depth, RT))


def qemu(url, kind, size, depth, count):
    """Seconds that qemu-img bench takes for so many requests."""
    step = size if kind.startswith("seq") else size * 10007
    write = ["-w", "--pattern=165"] if "write" in kind else []
    out = run("qemu-img", "bench", "-f", "raw", "-t", "none", "-c", count, "-d", depth, "-s", size, "-S", step, *write, url)
    return float(re.search(r"Run completed in ([0-9.]+)", out).group(1))


def figures(url, kind, size, depth):
    """REPS times: requests per second, and the share of that time that the client had a processor."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    by_qemu = kind != "read" and not kind.startswith("own")
    count = 64
    if by_qemu:
        while (took := qemu(url, kind, size, depth, count)) < 0.2:
            count *= 4
        # a number that takes about RT seconds
        count = max(32, int(count / took * RT))
    for _ in range(REPS):
        cpu, begun = used(), time.monotonic()
        if by_qemu:
            # without the flush behind them
            seconds = qemu(url, kind, size, depth, count)
            figure = count / seconds
        else:
            figure = perf(url, size, depth) if kind == "read" else own(url, kind, size, depth)
            seconds = time.monotonic() - begun
        yield figure, (used() - cpu) / seconds


def measure(where, image):
    found = {}
    for name in SERVERS:
        print("== %s" % name, flush=True)
        server = Server(where, name, image)
        try:
            for title, unit, kind, size, depth in ROWS:
                best, found[name, title, "client"] = max(figures(server.url, kind, size, depth))
                found[name, title] = best if unit == "IOPS" else best * size / 1e6
        finally:
            server.end()
    return found


def table(found):
    lines = ["| | unit | " + " | ".join(SERVERS) + " |", "|---|---|" + "---|" * len(SERVERS)]
    for title, unit, *_ in ROWS:
        lines.append("| %s | %s | %s |" % (title, unit, " | ".join("%d" % found[name, title] for name in SERVERS)))
    ratio = lambda title, ours, theirs: found[ours, title] / max(found[name, title] for name in theirs)
    lines += ["", "The file LUN beside the better of tgt's two, the null LUN beside tgt's, and the volume beside the better of tgt's file LUNs:", "",
              "| | file | null | 2+2 volume |", "|---|---|---|---|"]
    files = ["tgt rdwr", "tgt aio"]
    for title, *_ in ROWS:
        lines.append("| %s | %.1fx | %.1fx | %.1fx |" % (title, ratio(title, "qrvsa file", files), ratio(title, "qrvsa null", ["tgt null"]),
                                                     ratio(title, "qrvsa 2+2 volume", files)))
    lines += ["", "Processor time of the client, hundredths of the time it ran:", "", "| | " + " | ".join(SERVERS) + " |", "|---|" + "---|" * len(SERVERS)]
    for title, *_ in ROWS:
        lines.append("| %s | %s |" % (title, " | ".join("%d" % round(100 * found[name, title, "client"]) for name in SERVERS)))
    return "\n".join(lines)


def write(doc, text):
    section = "%s\n%s\n%s" % (BEGIN, text, END)
    with open(doc) as f:
        old = f.read()
    if BEGIN in old and END in old:
        new = old[:old.index(BEGIN)] + section + old[old.index(END) + len(END):]
    else:
        new = old.rstrip("\n") + "\n\n## iSCSI beside tgt\n\nBest of several, loopback, client and server on the same two cores; `tests/bench/iscsi.py`.\n\n" + section + "\n"
    with open(doc, "w") as f:
        f.write(new)


def stay_awake():
    """Keeps idle processors from sleeping as long as what is returned is open."""
    held = open("/dev/cpu_dma_latency", "wb", buffering=0)
    held.write(bytes(4))
    return held


def main():
    held = stay_awake() if os.environ.get("AWAKE") == "1" else None
    where = tempfile.mkdtemp(prefix="iscsi-bench.", dir=os.environ.get("BENCH_DIR") or "/var/tmp")
    try:
        image = os.path.join(where, "lun.img")
        run("dd", "if=/dev/urandom", "of=" + image, "bs=1M", "count=%d" % LUN_MB, "status=none")
        text = table(measure(where, image))
    finally:
        if held:
            held.close()
        shutil.rmtree(where, ignore_errors=True)
    print(text)
    if len(sys.argv) > 1:
        write(sys.argv[1], text)


if __name__ == "__main__":
    main()
