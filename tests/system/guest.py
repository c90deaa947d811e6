"""A guest in QEMU with Debian's stock kernel and open-iscsi: the initiator that people have.

The recipe is in `vm-images/`; what it builds is kept in the target directory. The guest reaches this host's loopback as
10.0.2.2, and, by its second card, as 10.0.3.2. Emulated without hardware's help, it is slow: deadlines are generous.
"""
import base64
import os
import re
import shlex
import socket
import sys
import time

from lib import ROOT, Failure, check, wait_for
from proc import Result, run


def image():
    """The directory of kernel and initial file system, built when it is not there."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    directory = os.path.join(target, "vm-images", "initiator")
    run([sys.executable, os.path.join(ROOT, "vm-images", "build.py"), directory], timeout=300)
    return directory


class Guest:
    """A running guest. One script runs in it at a time."""

    def __init__(self, t, memory=640, cards=1):
        self.t = t
        where = image()
        # the path of a socket is at most 107 bytes long
        control = os.path.join(t.run_dir, "guest-%d.sock" % os.getpid())
        cmd = ["qemu-system-x86_64", "-M", "q35,hpet=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", memory, "-nodefaults",
               "-no-user-config", "-no-reboot", "-display", "none", "-kernel", where + "/vmlinuz", "-initrd", where + "/initrd",
               "-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable random.trust_cpu=1",
               "-serial", "file:" + t.path("guest-console.log"), "-device", "virtio-serial",
               "-chardev", "socket,id=c,server=on,wait=off,path=" + control, "-device", "virtserialport,chardev=c"]
        for n in range(cards):
            cmd += ["-netdev", "user,id=n%d,ipv6=off,net=10.0.%d.0/24,host=10.0.%d.2" % (n, n + 2, n + 2),
                    "-device", "virtio-net-pci,netdev=n%d,romfile=" % n]
        self.child = t.spawn(cmd, log=t.path("guest-qemu.log"))
        self.got = b""
        self.socket = socket.socket(socket.AF_UNIX)
        t.defer(self.socket.close)
        wait_for(lambda: self.child.poll() is not None or self._connect(control), 30, "QEMU to listen")
        t.step("the guest's kernel is %s", self._answer(180)[0])

    def _connect(self, control):
        try:
            self.socket.connect(control)
            return True
        except OSError:
            return False

    def _answer(self, seconds):
        """(what follows `@@`, the output before it)."""
        deadline = time.monotonic() + seconds
        while True:
            end = re.search(rb"(?:^|\n)@@ (.*)\n", self.got)
            if end:
                out, self.got = self.got[:end.start()], self.got[end.end():]
                return end.group(1).decode(), out.decode(errors="replace")
            left = deadline - time.monotonic()
            check(left > 0, "no answer from the guest within %d s; it said: %s", seconds, self.got[-1000:])
            check(self.child.poll() is None, "QEMU ended with exit %s", self.child.returncode)
            self.socket.settimeout(min(left, 1))
            try:
                part = self.socket.recv(1 << 16)
                check(part, "QEMU closed the guest's port")
                self.got += part
            except TimeoutError:
                pass

    def start(self, script, *args):
        """Begins a script with arguments, which are quoted; [finish] waits for it."""
        self.script = script
        text = "set -- %s\n%s\n" % (" ".join(shlex.quote(str(a)) for a in args), script)
        self.socket.settimeout(30)
        self.socket.sendall(base64.b64encode(text.encode()) + b"\n")

    def finish(self, timeout=240, ok=True):
        """Waits for the script; with `ok`, anything but exit status 0 is a Failure."""
        status, out = self._answer(timeout)
        result = Result(["guest:", self.script.strip().split("\n")[0]], int(status), out, "")
        if ok and result.rc != 0:
            raise Failure("in the guest: %s\n%s" % (result, self.kernel_log()))
        return result

    def sh(self, script, *args, timeout=240, ok=True):
        """Runs a script to its end; its output."""
        begin = time.monotonic()
        self.start(script, *args)
        result = self.finish(timeout, ok)
        self.t.step("guest, %.1f s: %s", time.monotonic() - begin, " ".join(str(result).split())[:300])
        return result

    def kernel_log(self):
        """The ends of the guest's kernel log."""
        self.start("dmesg | tail -n 25")
        return self._answer(60)[1]

    def unharmed(self):
        """Fails if the guest's kernel saw an error of I/O, which would reach its programs."""
        seen = self.sh("dmesg | grep -iE 'I/O error|critical|EXT4-fs error|DID_|lost page write'", ok=False).out
        check(not seen, "the guest's kernel says: %s", seen)

    # -- the initiator --------------------------------------------------------------------------------------------------

    def login(self, target, host="10.0.2.2", **settings):
        """Logs in, with values of the node's database (`__` for `.`, see iscsid.conf); the name of the disk, such as sda."""
        lines = ["iscsiadm -m node -T $1 -p $2 -o update -n %s -v %s || exit" % (name, shlex.quote(value)) for name, value in settings.items()]
        self.sh("""iscsiadm -m node -o new -T $1 -p $2 || exit
            %s
            iscsiadm -m node -T $1 -p $2 --login || exit""" % "\n".join(lines), target.iqn, "%s:%d" % (host, target.port))
        return self.disk(target, host)

    def disk(self, target, host="10.0.2.2"):
        """The name of the only disk of the session with this address."""
        found = self.sh("""n=0
            while [ $n -lt 120 ]; do
              for s in /sys/class/iscsi_session/session*; do
                [ "$(cat $s/targetname)" = $1 ] || continue
                [ "$(cat $s/device/connection*/iscsi_connection/*/persistent_address)" = $2 ] || continue
                for d in $s/device/target*/*/block/*; do [ -e $d ] && basename $d && exit; done
              done
              n=$((n + 1)); sleep .5
            done
            exit 1""", target.iqn, host).out
        return found.strip()
