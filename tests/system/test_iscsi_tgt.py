"""People who run tgt move here without touching their scripts: tgt's own programs, and ours of the same name, manage targets."""
import os
import re

import iscsi
from lib import MIB, Daemon, Failure, binary, check, options, run, same

OURS, THEIRS = "ours", "tgt's own"


def tgtadm_of(which):
    return binary("tgtadm") if which == OURS else "/usr/sbin/tgtadm"


class Tgt:
    """tgtadm on a daemon's management socket."""

    def __init__(self, daemon, which):
        self.base = daemon.cli("target", "tgt-socket").out.strip()
        self.program = tgtadm_of(which)
        self.env = dict(os.environ, TGT_IPC_SOCKET=self.base)

    def __call__(self, line, rc=0, err=None):
        args = line if isinstance(line, list) else line.split()
        result = run([self.program, "--lld", "iscsi", *args], timeout=30, ok=False, env=self.env)
        same(result.rc, rc, "exit status of tgtadm %s (%s)" % (line, result.err.strip()))
        if err is not None:
            same(result.err, "tgtadm: %s\n" % err, "tgtadm %s: stderr" % line)
        return result.out

    def admin(self, *args, rc=0):
        """tgt-admin, which runs the tgtadm that is first in the path."""
        path = os.path.dirname(self.program) + ":" + os.environ["PATH"]
        result = run(["/usr/sbin/tgt-admin", *args], timeout=60, ok=False, env=dict(self.env, PATH=path))
        same(result.rc, rc, "exit status of tgt-admin %s (%s)" % (" ".join(args), result.err.strip()))
        return result.out


def start(t, port, which=OURS):
    daemon = Daemon(t, iscsi_portals=["127.0.0.1:%d" % port]).start()
    return daemon, Tgt(daemon, which)


CONTROLLER = """\
        LUN: 0
            Type: controller
            SCSI ID: IET     %(tid)04x0000
            SCSI SN: beaf%(tid)d0
            Size: 0 MB, Block size: 1
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: No
            Backing store type: null
            Backing store path: None
            Backing store flags: 
"""
DISK = """\
        LUN: %(lun)d
            Type: disk
            SCSI ID: *
            SCSI SN: *
            Size: %(mb)d MB, Block size: 512
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: %(thin)s
            Backing store type: %(type)s
            Backing store path: %(path)s
            Backing store flags: 
"""
TARGET = """\
Target %(tid)d: %(iqn)s
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
%(luns)s    Account information:
%(accounts)s    ACL information:
%(acl)s"""


def target_text(tid, iqn, disks, accounts=(), acl=()):
    luns = CONTROLLER % {"tid": tid} + "".join(
        DISK % dict({"thin": "No", "type": "rdwr"}, **disk) for disk in disks)
    lines = ["".join("        %s\n" % line for line in part) for part in (accounts, acl)]
    return TARGET % {"tid": tid, "iqn": iqn, "luns": luns, "accounts": lines[0], "acl": lines[1]}


def without_identifiers(text):
    """Identifiers of disks are the daemon's own; those of the controller are tgt's."""
    def blank(match):
        return match.group(0) if match.group(2).startswith(("IET ", "beaf")) else match.group(1) + "*"
    return re.sub(r"^(            SCSI (?:ID|SN): )(.*)$", blank, text, flags=re.M)


@options(seconds=120)
def test_the_transcript_of_tgt(t):
    """The recorded session with tgtd is reproduced, byte for byte but for identifiers, by tgt's tgtadm and by ours."""
    for which in (THEIRS, OURS):
        port = iscsi.free_port()
        daemon = Daemon(t, "d-" + which.split("'")[0], iscsi_portals=["127.0.0.1:%d" % port]).start()
        tgt = Tgt(daemon, which)
        files = [t.disk("%s-%d" % (which[0], n), 1 << 30) for n in (1, 2, 3)]
        names = ["iqn.2026-01.test:t1", "iqn.2026-01.test:vm", "iqn.2026-01.test:null"]
        for tid, name in enumerate(names, 1):
            same(tgt("--mode target --op new --tid %d --targetname %s" % (tid, name)), "", "output of new")
        tgt("--mode lu --op new --tid 1 --lun 1 -b " + files[0])
        tgt("--mode lu --op new --tid 1 --lun 2 -b " + files[1])
        tgt("--mode lu --op update --tid 1 --lun 2 --params thin_provisioning=1")
        tgt("--mode lu --op new --tid 2 --lun 1 -b " + files[2])
        tgt("--mode lu --op new --tid 3 --lun 1 --bstype null -b /dev/null")
        tgt("--mode account --op new --user u1 --password pass-u1")
        tgt("--mode account --op new --user o1 --password pass-o1")
        tgt("--mode account --op bind --tid 2 --user u1")
        tgt("--mode target --op bind --tid 1 -I ALL")
        tgt("--mode target --op bind --tid 2 -I 127.0.0.1")
        tgt("--mode target --op bind --tid 2 -Q iqn.2026-01.test.vm:init1")
        tgt("--mode target --op bind --tid 3 -I ALL")
        wanted = (target_text(1, names[0], [{"lun": 1, "mb": 1074, "path": files[0]},
                                            {"lun": 2, "mb": 1074, "path": files[1], "thin": "Yes"}], (), ["ALL"]) +
                  target_text(2, names[1], [{"lun": 1, "mb": 1074, "path": files[2]}], ["u1"], ["127.0.0.1", "iqn.2026-01.test.vm:init1"]) +
                  target_text(3, names[2], [{"lun": 1, "mb": 1099512, "path": "/dev/null", "type": "null"}], (), ["ALL"]))
        same(without_identifiers(tgt("--mode target --op show")), wanted, "target show")
        system = tgt("--mode sys --op show").split("\n")
        for line in ("System:", "    State: ready", "    debug: off", "LLDs:", "    iscsi: ready", "    iser: error", "Backing stores:",
                     "    null", "    rdwr (bsoflags sync:direct)", "    aio", "Device types:", "    disk", "    controller",
                     "iSNS:", "    iSNS=Off", "    iSNSServerIP=", "    iSNSServerPort=3205", "    iSNSAccessControl=Off"):
            check(line in system, "sys show lacks %r:\n%s", line, "\n".join(system))
        same(tgt("--mode account --op show"), "Account list:\n    o1\n    u1\n", "account show")
        same(tgt("--mode portal --op show"), "Portal: 127.0.0.1:%d,1\n" % port, "portal show")
        lld = "LLDs:\n    iscsi: ready\n" + "".join("        Target %d: %s\n" % x for x in enumerate(names, 1)) + "    iser: error\n"
        same(tgt("--mode lld --op show"), lld, "lld show")
        head = "tgt lun sid rd_subm(bytes,cmds) rd_done(bytes,cmds) wr_subm(bytes,cmds) wr_done(bytes,cmds) errs\n"
        same(tgt("--mode target --op stat --tid 1"), head, "target stat")
        same(tgt("--mode conn --op show --tid 1"), "", "conn show")
        keys = [line.split("=")[0] for line in tgt("--mode target --op show --tid 1").splitlines()]
        same(keys, ["nop_interval", "nop_count", "MaxRecvDataSegmentLength", "HeaderDigest", "DataDigest", "InitialR2T", "MaxOutstandingR2T",
                    "ImmediateData", "FirstBurstLength", "MaxBurstLength", "DataPDUInOrder", "DataSequenceInOrder", "ErrorRecoveryLevel",
                    "IFMarker", "OFMarker", "DefaultTime2Wait", "DefaultTime2Retain", "OFMarkInt", "IFMarkInt", "MaxConnections",
                    "RDMAExtensions", "TargetRecvDataSegmentLength", "InitiatorRecvDataSegmentLength", "MaxOutstandingUnexpectedPDUs",
                    "MaxXmitDataSegmentLength", "MaxQueueCmd"], "keys of target show --tid")
        # with an initiator logged in
        with open(t.path("holder"), "w") as log:
            initiator = iscsi.Initiator(port, names[0])
            initiator.settle(1)
            log.write(repr(initiator.read(1, 0)))
        shown = tgt("--mode target --op show")
        nexus = re.search(r"    I_T nexus information:\n        I_T nexus: (\d+)\n            Initiator: (\S+) alias: none\n"
                          r"            Connection: 0\n                IP Address: 127\.0\.0\.1\n    LUN information:\n", shown)
        check(nexus, "no nexus in\n%s", shown[:600])
        same(tgt("--mode conn --op show --tid 1"), "Session: %s\n    Connection: 0\n        Initiator: %s\n        IP Address: 127.0.0.1\n"
             % nexus.groups(), "conn show")
        check(re.search(r"\n  1   1 +%s +\d+ +\d+" % nexus.group(1), tgt("--mode lu --op stat --tid 1 --lun 1")), "no counts of the LUN")
        tgt("--mode target --op delete --tid 1", 22, "this target is still active")
        tgt("--mode conn --op delete --tid 1 --sid %s --cid 9" % nexus.group(1), 22, "can't find the connection")
        tgt("--mode conn --op delete --tid 1 --sid %s --cid 0" % nexus.group(1))
        initiator.close()
        tgt("--mode target --op delete --force --tid 1")
        daemon.stop()


@options(seconds=60)
def test_errors_of_tgt(t):
    """Exit codes and error texts are tgt's, whichever tgtadm asks."""
    daemon, _ = start(t, iscsi.free_port())
    disk = t.disk("a", 100 * MIB)
    for which in (THEIRS, OURS):
        tgt = Tgt(daemon, which)
        tgt("--mode target --op new --tid 1 --targetname iqn.2026-01.test:a")
        tgt("--mode target --op new --tid 1 --targetname iqn.2026-01.test:b", 22, "this target already exists")
        tgt("--mode target --op new --tid 2 --targetname iqn.2026-01.test:a", 22, "this target already exists")
        tgt("--mode lu --op new --tid 1 --lun 1 -b " + disk)
        tgt("--mode lu --op new --tid 1 --lun 1 -b " + disk, 22, "this logical unit number already exists")
        tgt("--mode lu --op new --tid 1 --lun 2 -b /nonexistent", 22, "invalid request")
        tgt("--mode lu --op new --tid 9 --lun 2 -b " + disk, 22, "can't find the target")
        tgt("--mode lu --op update --tid 1 --lun 8 --params online=0", 22, "can't find the logical unit")
        tgt("--mode lu --op update --tid 1 --lun 1 --params foo=1", 22, "invalid request")
        tgt("--mode lu --op delete --tid 1 --lun 8", 22, "can't find the logical unit")
        tgt("--mode target --op bind --tid 1 -I ALL")
        tgt("--mode target --op bind --tid 1 -I ALL", 22, "this access control rule already exists")
        tgt("--mode target --op unbind --tid 1 -I 10.0.0.1", 22, "this access control rule does not exist")
        tgt("--mode account --op bind --tid 1 --user u9", 22, "can't find the account")
        tgt("--mode account --op new --user u1 --password p1")
        tgt("--mode account --op new --user u1 --password p1", 22, "this account already exists")
        tgt("--mode account --op delete --user u1")
        tgt("--mode target --op update --tid 1 --name nope --value 1", 22, "invalid request")
        tgt("--mode target --op delete --tid 9", 22, "can't find the target")
        tgt("--mode nope --op show", 1, "unknown mode: nope")
        tgt("--mode sys --op delete", 22, "this driver is busy")
        tgt("--mode target --op delete --tid 1")
    nobody = dict(os.environ, TGT_IPC_SOCKET=t.path("nobody"))
    for which in (THEIRS, OURS):
        result = run([tgtadm_of(which), "--mode", "target", "--op", "show"], ok=False, env=nobody)
        same((result.rc, "Transport endpoint is not connected" in result.err), (107, True), "exit without a daemon: " + result.err)


def unit_shown(tgt, lun):
    """What target show says of a LUN of target 1."""
    text = tgt("--mode target --op show").split("        LUN: %d\n" % lun)[1].split("        LUN: ")[0]
    return dict(re.findall(r"^            ([^:\n]+): (.*)$", text, re.M))


@options(seconds=60)
def test_a_medium_that_initiators_eject(t):
    """What initiators do to a medium is shown: locked, write-protected, ejected; online=1 loads it again."""
    port = iscsi.free_port()
    daemon, tgt = start(t, port)
    iqn, disk = "iqn.2026-01.test:cd", t.disk("a", 16 * MIB)
    tgt("--mode target --op new --tid 1 --targetname " + iqn)
    tgt("--mode lu --op new --tid 1 --lun 1 -b " + disk)
    tgt("--mode lu --op update --tid 1 --lun 1 --params removable=1")
    tgt("--mode target --op bind --tid 1 -I ALL")
    initiator = iscsi.Initiator(port, iqn).settle(1)

    def shown():
        unit = unit_shown(tgt, 1)
        return tuple(unit[key] for key in ("Online", "Prevent removal", "SWP"))

    def state():
        lun = daemon.json("target", "show", iqn)["luns"][0]
        return lun["state"], bool(lun["message"])

    same((shown(), state()), (("Yes", "No", "No"), ("online", False)), "at first")
    initiator.command(1, [0x1e, 0, 0, 0, 1, 0])
    same(shown(), ("Yes", "Yes", "No"), "locked")
    initiator.command(1, [0x1e, 0, 0, 0, 0, 0])
    page = bytearray(initiator.command(1, [0x1a, 8, 0x0a, 0, 255, 0], expect=255)[4:16])
    page[0] &= 0x3f
    page[4] |= 8
    initiator.command(1, [0x15, 0x10, 0, 0, 16, 0], bytes(4) + bytes(page))
    same(shown(), ("Yes", "No", "Yes"), "write-protected")
    page[4] &= ~8
    initiator.command(1, [0x15, 0x10, 0, 0, 16, 0], bytes(4) + bytes(page))
    initiator.command(1, [0x1b, 0, 0, 0, 2, 0])
    same((shown(), state()), (("No", "No", "No"), ("offline", True)), "ejected")
    tgt("--mode lu --op update --tid 1 --lun 1 --params online=1")
    same((shown(), state()), (("Yes", "No", "No"), ("online", False)), "loaded again")
    initiator.settle(1).read(1, 0)
    initiator.close()


@options(seconds=60)
def test_an_offline_system(t):
    """While the system is offline nobody new gets in, and whoever is there stays; every start is ready."""
    port = iscsi.free_port()
    daemon, tgt = start(t, port)
    iqn = "iqn.2026-01.test:s"
    tgt("--mode target --op new --tid 1 --targetname " + iqn)
    tgt("--mode lu --op new --tid 1 --lun 1 -b " + t.disk("a", 16 * MIB))
    tgt("--mode target --op bind --tid 1 -I ALL")
    stays = iscsi.Initiator(port, iqn).settle(1)
    tgt("--mode sys --op update --name State --value offline")
    check("    State: offline\n" in tgt("--mode sys --op show"), "sys show does not say so")
    try:
        iscsi.Initiator(port, iqn, "new", isid=2)
        raise Failure("somebody got in")
    except (ConnectionError, BrokenPipeError):
        pass
    stays.read(1, 0)
    tgt("--mode sys --op update --name State --value ready")
    iscsi.Initiator(port, iqn, "new", isid=2).settle(1).close()
    tgt("--mode sys --op update --name State --value offline")
    stays.close()
    daemon.restart()
    check("    State: ready\n" in tgt("--mode sys --op show"), "sys show after a restart")
    iscsi.Initiator(port, iqn).settle(1).close()


@options(seconds=60)
def test_the_socket_takes_anything(t):
    """Garbage, half requests and impossible lengths on the management socket hurt nobody; others are refused by user id."""
    import socket
    import struct
    daemon, tgt = start(t, iscsi.free_port())
    path = tgt.base + ".0"
    good = struct.pack("<II64sIiQQIIIIII", 1, 2, b"iscsi", 120, -1, 0, 2 ** 64 - 1, 0, 0, 0, 0, 0, 0)
    for data in (b"", b"x", os.urandom(120), good[:72] + struct.pack("<I", 2 ** 32 - 1) + good[76:], good[:72] + struct.pack("<I", 119) + good[76:],
                 struct.pack("<II", 99, 99) + good[8:]):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(20)
            s.connect(path)
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            try:
                s.recv(100)
            except ConnectionResetError:
                pass
    same(tgt("--mode target --op show"), "", "target show afterwards")
    same(os.stat(path).st_mode & 0o777, 0o600, "mode of the socket")
    check(os.path.exists(path + ".lock"), "no lock file")
    tgt("--mode sys --op delete")
    result = run([tgtadm_of(OURS), "--mode", "sys", "--op", "show"], ok=False, env=tgt.env)
    same(result.rc, 107, "exit after sys delete")
    daemon.cli("target", "list")


CINDER = """\
default-driver iscsi
<target %(iqn)s>
    backing-store %(path)s
    driver iscsi
    incominguser cinder secret-of-16char
    bsoflags sync
    write-cache on
</target>
"""


@options(seconds=120)
def test_tgt_admin_and_cinder(t):
    """tgt-admin makes, shows, dumps, updates and deletes targets from a file, with the calls that Cinder's driver makes."""
    daemon, tgt = start(t, iscsi.free_port(), THEIRS)
    iqn, path = "iqn.2010-10.org.openstack:volume-1", t.disk("volume", 100 * MIB)
    conf = t.path("volume-1")
    with open(conf, "w") as f:
        f.write(CINDER % {"iqn": iqn, "path": path})
    tgt.admin("--conf", conf, "--update", iqn)
    shown = tgt.admin("--show")
    check("        LUN: 1\n" in shown, "Cinder looks for '        LUN: 1':\n%s", shown)
    tid = re.search(r"^Target (\d+): %s$" % re.escape(iqn), shown, re.M).group(1)
    check("    Account information:\n        cinder\n" in shown, "no account:\n%s", shown)
    dump = tgt.admin("--dump")
    check("<target %s>" % iqn in dump and path in dump and "incominguser cinder" in dump, "dump:\n%s", dump)
    info = daemon.json("target", "show", iqn)
    check(info["luns"][0]["options"]["write_through"], "bsoflags sync is lost to write-cache on")
    same((info["tid"], info["acl"], [u["name"] for u in info["users"]]), (int(tid), ["all"], ["cinder"]), "what the daemon has")
    tgt.admin("--offline", iqn)
    check(daemon.json("target", "show", iqn)["offline"], "not offline")
    tgt.admin("--ready", iqn)
    tgt.admin("--conf", conf, "--update", iqn)
    # its fallback when tgt-admin's update leaves no LUN
    tgt("--op show --mode target")
    tgt.admin("--force", "--conf", conf, "--delete", iqn)
    same(daemon.json("target", "list"), [], "targets after the deletion")


@options(seconds=120)
def test_pacemaker(t):
    """The calls of Pacemaker's iSCSITarget and iSCSILogicalUnit agents work, and what they leave survives a restart."""
    port = iscsi.free_port()
    daemon, tgt = start(t, port, THEIRS)
    iqn, disk = "iqn.2026-01.test:cluster", t.disk("c", 100 * MIB)
    tgt("--op new --mode target --tid 1 --targetname " + iqn)
    tgt("--op update --mode target --tid 1 --name MaxBurstLength --value 131072")
    tgt("--op bind --mode target --tid 1 --initiator-address=127.0.0.1")
    tgt("--mode account --op new --user=ha --password=cluster-secret")
    tgt("--mode account --op bind --tid 1 --user=ha")
    tgt("--op new --mode logicalunit --tid 1 --lun 1 --backing-store " + disk)
    tgt(["--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--params", "scsi_sn=5e7f7a,scsi_id=cluster-disk,vendor_id=HA,product_id=DISK"])
    monitor = tgt("--op show --mode target")
    check(re.search(r"Target 1: %s\n" % re.escape(iqn), monitor) and "LUN: 1\n" in monitor, "monitor:\n%s", monitor)
    daemon.restart()
    same(tgt("--op show --mode target"), monitor, "target show after a restart")
    check("MaxBurstLength=131072\n" in tgt("--op show --mode target --tid 1"), "the parameter is lost")
    initiator = iscsi.Initiator(port, iqn, user="ha", secret="cluster-secret").settle(1)
    inquiry = initiator.command(1, [0x12, 0, 0, 0, 96, 0], expect=96)
    same((inquiry[8:16], inquiry[16:32]), (b"HA      ", b"DISK            "), "vendor and product")
    serial = initiator.command(1, [0x12, 1, 0x80, 0, 96, 0], expect=96)
    same(serial[4:].rstrip(b"\0"), b"5e7f7a", "serial number")
    initiator.close()
    tgt("--op delete --mode logicalunit --tid 1 --lun 1")
    tgt("--op unbind --mode target --tid 1 --initiator-address=127.0.0.1")
    tgt("--op delete --force --mode target --tid 1")
    tgt("--mode account --op delete --user=ha")
    same(tgt("--op show --mode target"), "", "what is left")


@options(seconds=60)
def test_import_of_targets_conf(t):
    """target import-tgt makes what a targets.conf says, includes and all; --dry-run only tells; secrets are never printed."""
    daemon, tgt = start(t, iscsi.free_port())
    a, b = t.disk("a", 50 * MIB), t.disk("b", 60 * MIB)
    os.makedirs(t.path("conf.d"))
    with open(t.path("conf.d", "x.conf"), "w") as f:
        f.write("<target iqn.2026-01.test:x>\n    backing-store %s\n    incominguser u top-secret-word\n    initiator-address 127.0.0.1\n</target>\n" % a)
    with open(t.path("targets.conf"), "w") as f:
        f.write("include conf.d/*.conf\nincomingdiscoveryuser d another-secret\n<target iqn.2026-01.test:y>\n  <backing-store %s>\n    lun 7\n"
                "    vendor_id ACME\n    readonly 1\n  </backing-store>\n  initiator-name iqn.2026-01.test:only\n</target>\n" % b)
    dry = daemon.cli("target", "import-tgt", t.path("targets.conf"), "--dry-run")
    same(daemon.json("target", "list"), [], "targets after a dry run")
    result = daemon.cli("target", "import-tgt", t.path("targets.conf"))
    check("only the named initiators" in result.err, "no word on who is let in: %s", result.err)
    for text in (dry.out, dry.err, result.out, result.err, daemon.log_text(), daemon.cli("target", "show").out, daemon.cli("--json", "target", "show").out):
        check("top-secret-word" not in text and "another-secret" not in text, "a secret is shown: %s", text)
    same([x["iqn"] for x in daemon.json("target", "list")], ["iqn.2026-01.test:x", "iqn.2026-01.test:y"], "targets")
    y = daemon.json("target", "show", "iqn.2026-01.test:y")
    same((y["acl"], y["luns"][0]["lun"], y["luns"][0]["options"]["read_only"]), ([{"initiator": "iqn.2026-01.test:only"}], 7, True), "y")
    same(os.stat(os.path.join(daemon.state, "targets.json")).st_mode & 0o777, 0o600, "mode of the file with secrets")
    daemon.refused("exists", "target", "import-tgt", t.path("targets.conf"), code=7)
