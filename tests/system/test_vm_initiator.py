"""What a kernel initiator sees: Debian's stock kernel with open-iscsi in a guest, on LUNs of a pool."""
import iscsi
from guest import Guest
from lib import GIB, MIB, Daemon, Failure, check, options, same, wait_for

KEY = "0xabc123"
DIGESTS = {"node.conn[0].iscsi.HeaderDigest": "CRC32C", "node.conn[0].iscsi.DataDigest": "CRC32C"}


def volume(t, size="512M", portals=1):
    """A daemon, its pool, a target with a volume of this size as its LUN."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", size)
    target = iscsi.Target(daemon, portals=portals)
    lun = target.lun("--volume", "tank/v")
    return daemon, pool, target, lun


@options(seconds=600, vm=True)
def test_files_on_a_lun(t):
    """CHAP, digests, mkfs, files that compare equal after a remount and a restart; TRIM returns space; an online grow is seen."""
    daemon, pool, target, _ = volume(t)
    secret = "correct-horse-16"
    daemon.cli("target", "user", target.iqn, "add", "alice", input=secret + "\n")
    guest = Guest(t)
    chap = {"node.session.auth.authmethod": "CHAP", "node.session.auth.username": "alice"}
    refused = guest.sh("""iscsiadm -m node -o new -T $1 -p $2 && iscsiadm -m node -T $1 -p $2 --login""", target.iqn,
                       "10.0.2.2:%d" % target.port, ok=False)
    check(refused.rc != 0, "a login without CHAP is taken: %s", refused)
    disk = guest.login(target, **chap, **DIGESTS, **{"node.session.auth.password": secret})
    shown = guest.sh("iscsiadm -m session -P 2 | grep Digest").out.split()
    same(shown, ["HeaderDigest:", "CRC32C", "DataDigest:", "CRC32C"], "digests in use")
    guest.sh("""mkfs.ext4 -q -F -b 4096 /dev/$1 && mount /dev/$1 /mnt && mkdir /mnt/d || exit
        dd if=/dev/urandom of=/mnt/big bs=1M count=%d || exit
        for n in $(seq 200); do dd if=/mnt/big of=/mnt/d/$n bs=1000 skip=$n count=$((n %% 40 + 1)) || exit; done
        cd /mnt && find . -type f | sort | xargs md5sum > /tmp/sums && cd / && umount /mnt""" % t.size(24, 48), disk)
    verify = """echo 3 > /proc/sys/vm/drop_caches; mount /dev/$1 /mnt && cd /mnt && md5sum -c /tmp/sums | grep -v OK; wc -l < /tmp/sums
        cd / && umount /mnt && fsck.ext4 -fn /dev/$1"""
    guest.sh(verify, disk)

    t.step("TRIM")
    pool.sync()
    before = pool.status().used
    guest.sh("mount /dev/$1 /mnt && rm /mnt/big && sync && fstrim -v /mnt && umount /mnt && sed -i '/big$/d' /tmp/sums", disk)

    def returned():
        pool.sync()
        return before - pool.status().used >= t.size(24, 48) * MIB * 9 // 10
    wait_for(returned, 60, "what TRIM gave back to be free in the pool", 0.5)
    t.step("%.1f MiB of the pool are free again", (before - pool.status().used) / MIB)

    t.step("an online grow")
    daemon.cli("volume", "resize", "tank/v", "640M")
    guest.sh("""echo 1 > /sys/block/$1/device/rescan; cat /sys/block/$1/size
        n=0; while [ $(cat /sys/block/$1/size) != %d ]; do n=$((n + 1)); [ $n -lt 60 ] || exit 1; sleep .5; done""" % (640 * MIB // 512), disk)
    guest.sh("dd if=/dev/zero of=/dev/$1 bs=1M seek=639 count=1 oflag=direct && " + verify, disk)

    t.step("a restart of the daemon")
    daemon.restart()
    guest.sh(verify, disk)
    guest.unharmed()
    guest.sh("iscsiadm -m node -u")
    same(target.sessions(), [], "sessions after the logout")


@options(seconds=600, vm=True)
def test_reservations_of_a_kernel(t):
    """A registration and a reservation made with sg_persist are there after a restart of the daemon and after kill -9."""
    daemon, _, target, lun = volume(t)
    guest = Guest(t)
    disk = guest.login(target)
    guest.sh("""sg_persist --out --register --param-sark=$2 --param-aptpl /dev/$1 &&
        sg_persist --out --reserve --param-rk=$2 --prout-type=5 /dev/$1""", disk, KEY)
    for name, again in (("SIGTERM", daemon.restart), ("kill -9", lambda: (daemon.kill(), daemon.start()))):
        again()
        t.step("after %s", name)
        shown = guest.sh("""n=0; until sg_turs /dev/$1; do n=$((n + 1)); [ $n -lt 40 ] || exit 1; sleep .5; done
            sg_persist -i -k /dev/$1 && sg_persist -i -r /dev/$1 && sg_persist -i -s /dev/$1""", disk).out
        check(KEY in shown and "Write Exclusive, registrants only" in shown, "what is left of the reservation after %s: %s", name, shown)
        guest.sh("dd if=/dev/zero of=/dev/$1 bs=4k count=1 oflag=direct", disk)
        other = target.initiator("other").settle(lun)
        try:
            other.write(lun, 0, bytes(512))
            check(False, "a write past the guest's reservation after %s", name)
        except iscsi.Conflict:
            pass
        other.close()
    guest.sh("""sg_persist --out --release --param-rk=$2 --prout-type=5 /dev/$1 &&
        sg_persist --out --register --param-rk=$2 --param-sark=0 /dev/$1 && iscsiadm -m node -u""", disk, KEY)
    same(target.initiator("other").settle(lun).reserve_keys(lun), [], "keys at the end")


#: fio's verified writes, each on stable storage before it counts (FUA): what was answered has to be there after kill -9.
FIO = """fio --name=load --filename=/dev/%s --ioengine=libaio --direct=1 --sync=1 --iodepth=16 --rw=randwrite --bsrange=4k-64k \
--size=%dm --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=256"""


class Load:
    """A verified load that runs in the guest."""

    def __init__(self, guest, target, disk, mebibytes, rate=None):
        """`rate`: MiB that it reads, and writes, in a second at most, so that what takes the guest time happens before its end."""
        self.guest, self.target, self.size = guest, target, mebibytes * MIB
        fio = FIO % (disk, mebibytes) + (" --rate=%dm,%dm" % (rate, rate) if rate else "")
        guest.sh("rm -f /tmp/status; (%s; echo $? > /tmp/s; mv /tmp/s /tmp/status) > /tmp/fio 2>&1 &" % fio)

    def written(self):
        """Bytes written by the sessions that there are."""
        return sum(lun["writes"]["bytes"] for s in self.target.sessions() for lun in s["luns"].values())

    def advance(self):
        """Waits for an eighth of it; the load has to go on then."""
        start = self.written()
        wait_for(lambda: self.written() - start > self.size // 8 or self.ended(), 150, "the load to go on")
        check(not self.ended(), "the load has ended early")

    def ended(self):
        """Whether it is over; it must not have failed."""
        found = self.guest.sh("cat /tmp/status && cat /tmp/fio", ok=False, quiet=True)
        if found.rc == 0 and not found.out.startswith("0\n"):
            raise Failure("fio: %s\n%s" % (found, self.guest.kernel_log()))
        return found.rc == 0

    def finish(self):
        """Waits for the end, which has to be a good one."""
        wait_for(self.ended, 400, "the end of the load", 1)
        self.guest.sh("cat /tmp/fio")


@options(seconds=900, vm=True)
def test_kill_under_a_verified_load(t):
    """kill -9 and a restart of the daemon under fio's verified writes: the session recovers, and no byte is wrong."""
    daemon, _, target, _ = volume(t)
    guest = Guest(t)
    disk = guest.login(target, **DIGESTS)
    load = Load(guest, target, disk, t.size(64, 128))
    for turn in range(3):
        load.advance()
        daemon.kill()
        t.step("killed, turn %d", turn)
        daemon.start()
        wait_for(target.sessions, 120, "the session to come back")
        t.step("logged in again")
    load.finish()
    guest.unharmed()
    guest.sh("iscsiadm -m node -u")
    daemon.cli("check", "tank", "--deep", timeout=300)


@options(seconds=900, vm=True)
def test_multipath_loses_a_portal(t):
    """dm-multipath over two portals goes on when one falls silent under a verified load, and takes it again when it is back."""
    _, _, target, _ = volume(t, portals=2)
    guest = Guest(t, cards=2)
    soon = {"node.session.timeo.replacement_timeout": "5"}
    disks = [guest.login(target, "10.0.2.2", 0, **soon), guest.login(target, "10.0.3.2", 1, **soon)]
    same(len(set(disks)), 2, "disks")
    guest.sh("""a=$(cat /sys/block/$1/dev) b=$(cat /sys/block/$2/dev)
        [ $(cat /sys/block/$1/device/wwid) = $(cat /sys/block/$2/device/wwid) ] || exit
        echo "0 $(cat /sys/block/$1/size) multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $a 16 $b 16" | dmsetup create mp --noudevsync
        dmsetup mknodes mp && dmsetup status mp""", *disks)
    load = Load(guest, target, "mapper/mp", t.size(64, 128), rate=2)
    load.advance()
    guest.sh("ip link set eth1 down")
    wait_for(lambda: " F " in guest.sh("dmsetup status mp", quiet=True).out, 120, "the path to fail", 1)
    t.step("the path has failed")
    load.advance()
    guest.sh("ip link set eth1 up")
    wait_for(lambda: guest.sh("[ $(cat /sys/block/$1/device/state) = running ]", disks[1], ok=False, quiet=True).rc == 0, 120,
             "the second session to come back", 1)
    guest.sh("dmsetup message mp 0 reinstate_path $(cat /sys/block/$1/dev)", disks[1])
    load.advance()
    same(guest.sh("dmsetup status mp").out.count(" A "), 3, "the group and both paths active")
    load.finish()
    guest.sh("dmsetup remove --noudevsync mp; iscsiadm -m node -u")
