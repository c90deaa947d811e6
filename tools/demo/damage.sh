#!/bin/bash
# Damages the demo's pool on purpose: 64 KiB of random bytes every 256 KiB over what two of its four devices hold, the
# labels at both ends left out. Everything stays readable; `pool scrub` heals it.
#   damage.sh [NUMBER NUMBER]    which devices, by default 2 and 3
. "$(dirname "$0")/common.sh"
[ -d "$DISKS" ] || die "there is no demo: make up"
for n in "${1:-2}" "${2:-3}"; do
  disk=$DISKS/disk$n.img
  [ -f "$disk" ] || die "$disk is not there"
  python3 - "$disk" << 'END' || exit 1
import errno, os, sys
keep, at, count = 4 << 20, 4 << 20, 0
fd = os.open(sys.argv[1], os.O_RDWR)
end = os.fstat(fd).st_size - keep
while at < end:
    try:
        at = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as e:
        if e.errno == errno.ENXIO:
            break
        raise
    if at >= end:
        break
    hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
    for offset in range(at, hole, 256 << 10):
        count += os.pwrite(fd, os.urandom(min(64 << 10, hole - offset)), offset)
    at = hole
os.fsync(fd)
print("%s: %.1f MiB overwritten with random bytes" % (sys.argv[1], count / (1 << 20)))
END
done
