#!/bin/bash
# Damages the demo's pool on purpose: 64 KiB of random bytes every 256 KiB over what two of its four containers hold, the
# pool's labels at both ends of the disk and the container's own structures left out. Everything stays readable; `pool
# scrub` heals it.
#   damage.sh [NUMBER NUMBER]    which containers, by default 2 and 3
. "$(dirname "$0")/common.sh"
[ -d "$DISKS" ] || die "there is no demo: make up"
for n in "${1:-2}" "${2:-3}"; do
  disk=$DISKS/disk$n.vhdx
  [ -f "$disk" ] || die "$disk is not there"
  python3 - "$disk" << 'END' || exit 1
import errno, os, struct, sys, uuid
keep, count = 4 << 20, 0
fd = os.open(sys.argv[1], os.O_RDWR)
at = lambda layout, offset: struct.unpack(layout, os.pread(fd, struct.calcsize(layout), offset))

# where the container's table and metadata lie, and what they say: see docs/vhdx.md
regions = {}
for i in range(at("<I", (192 << 10) + 8)[0]):
    guid, offset = at("<16sQ", (192 << 10) + 16 + 32 * i)
    regions[str(uuid.UUID(bytes_le=guid))] = offset
table, metadata = regions["2dc27766-f623-4200-9d64-115e9bfd4a08"], regions["8b7ca206-4790-4b9a-b8fe-575f050f886e"]
items = {}
for i in range(at("<H", metadata + 10)[0]):
    guid, offset = at("<16sI", metadata + 32 + 32 * i)
    items[str(uuid.UUID(bytes_le=guid))] = metadata + offset
block = at("<I", items["caa16737-fa36-4d43-b3b6-33f0aa44e76b"])[0]
size = at("<Q", items["2fa54224-cd1b-4876-b211-5dbed83bf4b8"])[0]
sector = at("<I", items["8141bf1d-a96f-4709-ba47-f233a8faab5f"])[0]
ratio = (sector << 23) // block

def data(start, end):
    """The parts of a run of the file that are no holes."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        if start < end:
            hole = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            yield start, hole
            start = hole

for n in range((size + block - 1) // block):
    entry = at("<Q", table + 8 * (n + n // ratio))[0]
    if entry & 7 != 6:
        continue
    place = entry >> 20 << 20
    first, last = max(0, keep - n * block), min(block, size - keep - n * block)
    for start, end in data(place + first, place + last):
        for offset in range(start, end, 256 << 10):
            count += os.pwrite(fd, os.urandom(min(64 << 10, end - offset)), offset)
os.fsync(fd)
print("%s: %.1f MiB overwritten with random bytes" % (sys.argv[1], count / (1 << 20)))
END
done
