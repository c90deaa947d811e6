"""Who gets in, and what strangers can do: access lists, CHAP, hostile peers."""
import os
import socket
import struct

import iscsi
from lib import MIB, Daemon, Failure, check, options, run, same, wait_for


def refused(status, login):
    """The login has to be refused with this status."""
    try:
        login().close()
    except iscsi.LoginRefused as e:
        same(e.status, status, "status of the login")
        return
    raise Failure("a login that should be refused with %04x was accepted" % status)


@options(seconds=60)
def test_access_lists(t):
    """A new target lets nobody in; names, addresses and --all let in whom they say, at once, and no longer than they are there."""
    daemon = Daemon(t).start()
    target = iscsi.Target(daemon, everybody=False)
    target.lun("--null", "1G")
    change = lambda *args: daemon.cli("target", "acl", target.iqn, *args)
    refused(0x0203, target.initiator)
    name = "%s.client:friend" % iscsi.IQN
    change("add", "--initiator", name)
    target.initiator("friend").close()
    refused(0x0203, lambda: target.initiator("stranger"))
    change("remove", "--initiator", name)
    refused(0x0203, lambda: target.initiator("friend"))
    change("add", "--address", "127.0.0.0/8")
    target.initiator("anybody").close()
    change("remove", "--address", "127.0.0.0/8")
    change("add", "--address", "10.0.0.0/8")
    refused(0x0203, target.initiator)
    change("add", "--all")
    target.initiator().close()
    daemon.refused("already", "target", "acl", target.iqn, "add", "--all", code=7)
    daemon.refused("no address", "target", "acl", target.iqn, "add", "--address", "300.1.1.1", code=2)
    daemon.refused("not in the access list", "target", "acl", target.iqn, "remove", "--address", "10.0.0.0/9", code=6)


@options(seconds=60)
def test_chap(t):
    """With a user, only the right secret gets in; the secret is read from standard input, never shown, and kept at mode 0600."""
    daemon = Daemon(t).start()
    target = iscsi.Target(daemon)
    lun = target.lun("--null", "1G")
    secret = "correct-horse-16"
    daemon.cli("target", "user", target.iqn, "add", "alice", input=secret + "\n")
    target.initiator(user="alice", secret=secret).close()
    refused(0x0201, lambda: target.initiator(user="alice", secret="wrong-horse-1234"))
    refused(0x0201, lambda: target.initiator(user="mallory", secret=secret))
    refused(0x0201, target.initiator)
    with open(t.path("secret"), "w") as f:
        f.write("mutual-secret-16\n")
    daemon.cli("target", "user", target.iqn, "add", "me", "--mutual", "--secret-file", t.path("secret"))
    run(["iscsi-inq", "iscsi://alice%%%s@%s/%s/%d?target_user=me&target_password=mutual-secret-16" % (secret, target.portal, target.iqn, lun)], timeout=30)
    wrong = run(["iscsi-inq", "iscsi://alice%%%s@%s/%s/%d?target_user=me&target_password=another-secret-1" % (secret, target.portal, target.iqn, lun)],
                timeout=30, ok=False)
    check(wrong.rc != 0, "an initiator that checks the target took a wrong secret")
    daemon.restart()
    target.initiator(user="alice", secret=secret).close()
    for text in (daemon.log_text(), daemon.cli("target", "show").out, daemon.cli("--json", "target", "show").out):
        check(secret not in text and "mutual-secret-16" not in text, "a secret is shown")
    for where, _, names in os.walk(daemon.state):
        for name in names:
            path = os.path.join(where, name)
            if not os.path.isfile(path):
                continue
            try:
                with open(path, "rb") as f:
                    text, mode = f.read(), os.fstat(f.fileno()).st_mode & 0o777
            except FileNotFoundError:
                continue  # replaced meanwhile
            if secret.encode() in text:
                same(mode, 0o600, "mode of " + path)
    daemon.cli("target", "user", target.iqn, "remove", "alice")
    target.initiator().close()


@options(seconds=60)
def test_discovery(t):
    """Discovery shows each initiator the targets it may use, under the advertised address; its users are apart from the targets'."""
    daemon = Daemon(t).start()
    port = iscsi.free_port()
    iqns = []
    for name, who in (("open", ["--all"]), ("closed", ["--initiator", "iqn.2026-01.test:nobody"])):
        iqn = "%s:%s" % (iscsi.IQN, name)
        extra = ["--advertise", "192.0.2.7:3260"] if name == "open" else []
        daemon.cli("target", "create", iqn, "--portal", "127.0.0.1:%d" % port, *extra)
        daemon.cli("target", "acl", iqn, "add", *who)
        iqns.append(iqn)
    listed = run(["iscsi-ls", "iscsi://127.0.0.1:%d" % port], timeout=30, ok=False).out
    check(iqns[0] in listed and "192.0.2.7:3260" in listed, "discovery: %s", listed)
    check(iqns[1] not in listed, "discovery shows a target that lets this initiator not in: %s", listed)
    daemon.cli("target", "user", iqns[0], "add", "finder", "--discovery", input="discover-secret1\n")
    refused(0x0201, lambda: iscsi.Initiator(port, discovery=True))
    iscsi.Initiator(port, discovery=True, user="finder", secret="discover-secret1").close()
    iscsi.Initiator(port, iqns[0]).close()


@options(seconds=60)
def test_portals(t):
    """Nothing listens before a target exists; a taken port is one clear error and changes nothing; --portal 0 is refused."""
    port = iscsi.free_port()
    daemon = Daemon(t, iscsi_portals=["127.0.0.1:%d" % port]).start()
    with socket.socket() as s:
        check(s.connect_ex(("127.0.0.1", port)) != 0, "something listens without a target")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = "127.0.0.1:%d" % holder.getsockname()[1]
        daemon.refused("listen", "target", "create", iscsi.IQN + ":x", "--portal", taken, code=7)
        same(daemon.json("target", "list"), [], "targets after the refusal")
    daemon.refused("portal", "target", "create", iscsi.IQN + ":x", "--portal", "127.0.0.1:0", code=2)
    daemon.refused("iSCSI name", "target", "create", "disk one", code=2)
    daemon.cli("target", "create", iscsi.IQN + ":x")
    with socket.socket() as s:
        same(s.connect_ex(("127.0.0.1", port)), 0, "connect to the default portal")
    daemon.refused("exists", "target", "create", iscsi.IQN + ":X", code=7)
    daemon.refused("no target", "target", "show", iscsi.IQN + ":y", code=6)
    daemon.cli("target", "destroy", iscsi.IQN + ":x")
    with socket.socket() as s:
        check(s.connect_ex(("127.0.0.1", port)) != 0, "something listens after the last target")


@options(seconds=120)
def test_sessions_are_shown_and_dropped(t):
    """target sessions names initiators with their counts; --drop ends one; destroying a target in use wants --force."""
    daemon = Daemon(t).start()
    target = iscsi.Target(daemon)
    lun = target.lun("--file", t.disk("f", 64 * MIB))
    one, two = target.initiator("one", isid=1).settle(lun), target.initiator("two", isid=2).settle(lun)
    one.write(lun, 0, bytes(64 * 512))
    one.read(lun, 0, 8)
    sessions = {s["initiator"].rsplit(":", 1)[1]: s for s in target.sessions()}
    same(sorted(sessions), ["one", "two"], "sessions")
    counts = sessions["one"]["luns"][str(lun)]
    same((counts["writes"], counts["reads"]["commands"] >= 1), ({"commands": 1, "bytes": 64 * 512}, True), "counts")
    total = target.show()["luns"][0]["counters"]
    check(total["writes"]["bytes"] >= 64 * 512 and sum(total["latency"]) > 0, "counts of the LUN: %s", total)
    daemon.cli("target", "sessions", target.iqn, "--drop", str(sessions["two"]["sid"]))
    wait_for(lambda: [s["initiator"] for s in target.sessions()] == [one.name], 60, "the dropped session to go")
    one.read(lun, 0)
    daemon.refused("sessions", "target", "destroy", target.iqn, code=7)
    daemon.cli("target", "destroy", target.iqn, "--force")
    same(daemon.json("target", "list"), [], "targets")
    one.close()
    two.close()


@options(seconds=120)
def test_hostile_peers(t):
    """Garbage, oversized and out-of-order PDUs, and hundreds of half-open logins: others feel nothing, memory stays bounded."""
    daemon = Daemon(t).start()
    target = iscsi.Target(daemon)
    lun = target.lun("--file", t.disk("f", 64 * MIB))
    friend = target.initiator("friend").settle(lun)
    data = t.random.randbytes(512)
    friend.write(lun, 1, data)
    before = daemon.resident_peak()

    def raw(payload):
        with socket.create_connection(("127.0.0.1", target.port), 20) as s:
            try:
                s.sendall(payload)
                s.settimeout(0.2)
                s.recv(4096)
            except OSError:
                pass
    login = struct.pack(">BBBB I6sHIHxxII16x", 0x43, 0x87, 0, 0, 0xffffff, b"\x80" + bytes(5), 0, 1, 0, 1, 0)
    for payload in (b"GET / HTTP/1.0\r\n\r\n" * 10, bytes(48), b"\xff" * 4096, login, login + bytes(100000), os.urandom(20000),
                    iscsi.frame(0x01, 0xc1, lun, 1, struct.pack(">III", 512, 1, 1)), iscsi.frame(0x05, 0x80, 0, 1, b"\xff" * 28, bytes(8192))):
        raw(payload)
        same(friend.read(lun, 1), data, "a read beside garbage")
    # in a session: a command number from the far future, a data-out that nobody asked for, a command beyond the end
    for attack in (struct.pack(">III", 0, 2 ** 31, 0), struct.pack(">III", 2 ** 32 - 1, 1, 0)):
        enemy = target.initiator("enemy", isid=9)
        enemy.sock.sendall(iscsi.frame(0x01, 0xc1, lun, 77, attack + bytes(16)))
        enemy.sock.sendall(iscsi.frame(0x05, 0x80, lun, 78, b"\xee" * 28, bytes(4096)))
        enemy.close()
        same(friend.read(lun, 1), data, "a read beside an attack")
    for lba, blocks in ((64 * MIB // 512, 1), (2 ** 64 - 1, 1), (64 * MIB // 512 - 1, 2)):
        try:
            friend.read(lun, lba, blocks)
            raise Failure("a read beyond the end at %d" % lba)
        except iscsi.CheckCondition as e:
            same((e.key, e.asc), (5, 0x21), "sense beyond the end")
    crowd = []
    for _ in range(300):
        s = socket.socket()
        s.settimeout(20)
        if s.connect_ex(("127.0.0.1", target.port)) == 0:
            try:
                s.sendall(login[:24])
            except OSError:
                pass  # closed already
        crowd.append(s)
    same(friend.read(lun, 1), data, "a read beside half-open logins")
    late = target.initiator("late", isid=3).settle(lun)
    same(late.read(lun, 1), data, "a login beside half-open ones")
    for s in crowd:
        s.close()
    late.close()
    grown = daemon.resident_peak() - before
    check(grown < 64 * MIB, "the daemon grew by %.1f MiB", grown / MIB)
    friend.close()
