"""What a kernel initiator sees: Debian's stock kernel with open-iscsi in a guest, on LUNs of a pool."""
import iscsi
from guest import Guest
from lib import GIB, MIB, Daemon, check, options, same, wait_for

KEY = "0xabc123"
DIGESTS = {"node.conn[0].iscsi.HeaderDigest": "CRC32C", "node.conn[0].iscsi.DataDigest": "CRC32C"}


def volume(t, size="512M"):
    """A daemon, its pool, a target with a volume of this size as its LUN."""
    daemon = Daemon(t).start()
    pool = daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", size)
    target = iscsi.Target(daemon)
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


#: Writes with its own checksums, and reads all of it again; FUA and flushes are what O_SYNC makes of them.
FIO = """fio --name=load --filename=/dev/%s --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=4k,64k --bsrange=4k-64k \
--size=%dm --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=%d --fdatasync=32 --output-format=normal"""


@options(seconds=900, vm=True)
def test_kill_under_a_verified_load(t):
    """kill -9 and a restart of the daemon under fio's verified writes: the session recovers, and no byte is wrong."""
    daemon, _, target, _ = volume(t)
    guest = Guest(t)
    disk = guest.login(target, **DIGESTS)
    size = t.size(64, 128)
    guest.start(FIO % (disk, size, 256))
    for turn in range(t.size(3, 5)):
        def written():
            return sum(lun["writes"]["bytes"] for s in target.sessions() for lun in s["luns"].values())
        start = written()
        wait_for(lambda: written() - start > 4 * MIB, 120, "4 MiB more of the load")
        daemon.kill()
        t.step("killed, turn %d", turn)
        daemon.start()
        wait_for(target.sessions, 120, "the session to come back")
        t.step("logged in again")
    result = guest.finish(600)
    check("err= 0" in result.out, "fio: %s", result)
    t.step("%s", result.out)
    guest.unharmed()
    guest.sh("iscsiadm -m node -u")
    daemon.cli("check", "tank", "--deep", timeout=300)
