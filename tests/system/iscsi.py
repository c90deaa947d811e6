"""iSCSI for the system tests: targets of a daemon, libiscsi's suite, and a small initiator.

The initiator speaks just enough of RFC 7143 to log in, with CHAP or without, and to send one command at a time. Its frames
are built by hand, so that tests can also send what no initiator would.
"""
import hashlib
import random
import re
import select
import socket
import struct

from lib import Failure, check, run
from proc import SLOWNESS

IQN = "iqn.2026-01.test.system"


_given = set()


def free_port():
    """A port that was free a moment ago, outside the range that the kernel gives to clients; each time another."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        low, high = map(int, f.read().split())
    ports = set(range(20000, 32000)) - _given
    ports = ports - set(range(low, high + 1)) or ports
    for port in random.SystemRandom().sample(sorted(ports), min(200, len(ports))):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise Failure("no free port between 20000 and 32000")


class Target:
    """A target of a daemon, on portals of its own."""

    def __init__(self, daemon, name="a", everybody=True, port=None, portals=1):
        self.daemon, self.iqn, self.port = daemon, "%s:%s" % (IQN, name), port or free_port()
        self.ports = [self.port] + [free_port() for _ in range(portals - 1)]
        daemon.cli("target", "create", self.iqn, *(arg for p in self.ports for arg in ("--portal", "127.0.0.1:%d" % p)))
        if everybody:
            daemon.cli("target", "acl", self.iqn, "add", "--all")

    @property
    def portal(self):
        return "127.0.0.1:%d" % self.port

    def lun(self, *args):
        """Adds a LUN; its number."""
        return self.daemon.json("target", "lun", "add", self.iqn, *args)["lun"]

    def url(self, lun, user=None, secret=None):
        login = "%s%%%s@" % (user, secret) if user else ""
        return "iscsi://%s%s/%s/%d" % (login, self.portal, self.iqn, lun)

    def show(self):
        return self.daemon.json("target", "show", self.iqn)

    def sessions(self):
        return self.daemon.json("target", "sessions", self.iqn)

    def initiator(self, name="client", **kwargs):
        return Initiator(self.port, self.iqn, name, **kwargs)


# -- libiscsi's suite ------------------------------------------------------------------------------------------------------

def suite_tests():
    """The names of all its tests."""
    out = run(["iscsi-test-cu", "-l"], timeout=30, ok=False).out
    names = re.findall(r"^ALL\.(\w+\.[\w-]+)$", out, re.M)
    check(len(names) > 200, "iscsi-test-cu lists %d tests", len(names))
    return names


def suite_run(name, url, second, timeout):
    """Runs one test: `passed`, `failed` or `skipped`, and its output. CUnit counts a skip as a pass."""
    cmd = ["iscsi-test-cu", "--dataloss", "--allow-sanitize", "-n", "-V", "-t", "ALL." + name, url, second]
    try:
        result = run(cmd, timeout=timeout, ok=False)
    except Failure as e:
        return "failed", str(e)
    text = result.out + result.err
    if result.rc != 0 or not re.search(r"^\s+tests\s+1\s+1\s+1\s+0\s+0", result.out, re.M):
        return "failed", text
    return ("skipped" if "[SKIPPED]" in text else "passed"), text


# -- a small initiator -----------------------------------------------------------------------------------------------------

class LoginRefused(Exception):
    """The target's answer to a login, class and detail as one number."""

    def __init__(self, status):
        super().__init__("login refused with status %04x" % status)
        self.status = status


class CheckCondition(Exception):
    """Sense data of a command."""

    def __init__(self, sense):
        self.key, self.asc, self.ascq = (sense[2] & 15, sense[12], sense[13]) if len(sense) > 13 else (None, None, None)
        super().__init__("sense %s/%s/%s" % (self.key, self.asc, self.ascq))


class Conflict(Exception):
    """RESERVATION CONFLICT."""


def pad(data):
    return data + bytes(-len(data) % 4)


def frame(opcode, flags=0x80, lun=0, tag=0, specific=b"", data=b""):
    """A PDU: basic header segment (RFC 7143 11.2) and data segment."""
    head = struct.pack(">BB2xI8sI", opcode, flags, len(data), struct.pack(">H6x", lun), tag)
    return head + specific.ljust(28, b"\0") + pad(data)


class Initiator:
    """One session with one connection."""

    def __init__(self, port, iqn=None, name="client", isid=1, user=None, secret=None, login=True, timeout=60, discovery=False):
        self.name, self.iqn, self.isid = "%s.client:%s" % (IQN, name), iqn, isid
        self.sock = socket.create_connection(("127.0.0.1", port), timeout * SLOWNESS)
        self.cmdsn, self.expstatsn, self.tag = 1, 0, 1
        if login:
            try:
                self.login(user, secret, discovery)
            except BaseException:
                self.close()
                raise

    def close(self):
        self.sock.close()

    def recv(self, n):
        data = b""
        while len(data) < n:
            try:
                part = self.sock.recv(n - len(data))
            except TimeoutError:
                raise Failure("no answer from the target within %d s" % self.sock.gettimeout()) from None
            if not part:
                raise ConnectionError("closed by the target")
            data += part
        return data

    def answer(self):
        """The next PDU: header, data."""
        head = self.recv(48)
        length = int.from_bytes(head[5:8], "big")
        ahs = head[4] * 4
        data = self.recv(ahs + length + -length % 4)[ahs:ahs + length]
        return head, data

    def text(self, flags, pairs):
        """One step of a login."""
        data = b"".join(("%s=%s" % pair).encode() + b"\0" for pair in pairs)
        isid = bytes([0x80]) + self.isid.to_bytes(5, "big")
        head = struct.pack(">BBBB I6sHIHxxII16x", 0x43, flags, 0, 0, len(data), isid, 0, 1, 0, self.cmdsn, self.expstatsn)
        self.sock.sendall(head + pad(data))
        answer, data = self.answer()
        if answer[0] & 0x3f != 0x23:
            raise Failure("not a login answer but opcode %02x" % answer[0])
        status = int.from_bytes(answer[36:38], "big")
        if status:
            raise LoginRefused(status)
        self.expstatsn = int.from_bytes(answer[24:28], "big") + 1
        return answer, dict(p.decode().split("=", 1) for p in data.split(b"\0") if p)

    def login(self, user, secret, discovery):
        names = [("InitiatorName", self.name), ("SessionType", "Discovery" if discovery else "Normal")]
        if not discovery:
            names.append(("TargetName", self.iqn))
        keys = [("HeaderDigest", "None"), ("DataDigest", "None"), ("MaxRecvDataSegmentLength", 262144), ("InitialR2T", "No"),
                ("ImmediateData", "Yes"), ("FirstBurstLength", 65536), ("MaxBurstLength", 262144)]
        if discovery:
            keys = keys[:3]
        answer, got = self.text(0x81, names + [("AuthMethod", "CHAP,None" if user else "None")])
        if got.get("AuthMethod") == "CHAP":
            _, got = self.text(0x00, [("CHAP_A", 5)])
            digest = hashlib.md5(bytes([int(got["CHAP_I"])]) + secret.encode() + bytes.fromhex(got["CHAP_C"][2:])).hexdigest()
            self.text(0x81, [("CHAP_N", user), ("CHAP_R", "0x" + digest)])
        for _ in range(5):
            answer, got = self.text(0x87, keys)
            keys = []
            if answer[1] & 0x80 and answer[1] & 3 == 3:
                return
        raise Failure("the login does not end")

    def pong(self, head):
        """Answers a ping."""
        if int.from_bytes(head[20:24], "big") != 0xffffffff:
            nop = struct.pack(">III", int.from_bytes(head[20:24], "big"), self.cmdsn, self.expstatsn)
            self.sock.sendall(struct.pack(">BBxxI8sI", 0x40, 0x80, 0, head[8:16], 0xffffffff) + nop.ljust(28, b"\0"))

    def answer_pings(self):
        """Answers the pings that have come while no command is under way."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while poll.poll(0):
            head, _ = self.answer()
            check(head[0] & 0x3f == 0x20, "not a ping but opcode %02x", head[0])
            self.pong(head)

    def command(self, lun, cdb, data=b"", expect=0):
        """A SCSI command with at most a first burst of data: what it returned."""
        flags = 0x80 | (0x20 if data else 0x40 if expect else 0) | 1
        specific = struct.pack(">III16s", len(data) or expect, self.cmdsn, self.expstatsn, bytes(cdb).ljust(16, b"\0"))
        self.tag += 1
        self.sock.sendall(frame(0x01, flags, lun, self.tag, specific, data))
        self.cmdsn += 1
        got = b""
        while True:
            head, part = self.answer()
            opcode = head[0] & 0x3f
            if opcode == 0x25:
                got += part
                if not head[1] & 1:
                    continue
                status = head[3]
            elif opcode == 0x21:
                status = head[3]
            elif opcode == 0x20:
                self.pong(head)
                continue
            elif opcode == 0x32:
                continue
            else:
                raise Failure("an answer with opcode %02x" % opcode)
            self.expstatsn = int.from_bytes(head[24:28], "big") + 1
            if status == 2:
                raise CheckCondition(part[2:])
            if status == 0x18:
                raise Conflict()
            check(status == 0, "status %02x", status)
            return got

    def settle(self, lun):
        """Takes the unit attentions that wait."""
        for _ in range(8):
            try:
                self.command(lun, [0] * 6)
                return self
            except CheckCondition as e:
                if e.key != 6:
                    raise
        raise Failure("unit attentions without end")

    def read(self, lun, lba, blocks=1, block=512):
        return self.command(lun, struct.pack(">BxQIxx", 0x88, lba, blocks), expect=blocks * block)

    def write(self, lun, lba, data, block=512, fua=False):
        self.command(lun, struct.pack(">BBQIxx", 0x8a, 8 if fua else 0, lba, len(data) // block), data)

    def sync(self, lun):
        self.command(lun, struct.pack(">BxIxHx", 0x35, 0, 0))

    def reserve_out(self, lun, action, key=0, new=0, kind=0, aptpl=False):
        data = struct.pack(">QQ4xBxxx", key, new, 1 if aptpl else 0)
        self.command(lun, struct.pack(">BBBxxIx", 0x5f, action, kind, len(data)), data)

    def reserve_keys(self, lun):
        got = self.command(lun, struct.pack(">BBxxxxxHx", 0x5e, 0, 1024), expect=1024)
        count = int.from_bytes(got[4:8], "big") // 8
        return [int.from_bytes(got[8 + 8 * i:16 + 8 * i], "big") for i in range(count)]
