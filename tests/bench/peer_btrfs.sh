#!/bin/bash
# shellcheck disable=SC2034,SC2046,SC2115,SC2207
# btrfs (kernel): data raid6, metadata raid1c3, crc32c checksums, K+M loop devices.
PEER=btrfs; . "$(dirname "$0")/lib/common.sh"
OPTS=${OPTS:-nodiscard,noatime}
first() { awk 'NR==1{print $2}' "$ST/loops"; }
do_mount() {  # do_mount EXTRA
  btrfs device scan $(awk '{print $2}' "$ST/loops") >/dev/null
  mount -t btrfs -o "$OPTS${1:+,$1}" "$(first)" "$MNT"
}
do_up() {
  disks
  local i; for i in $(seq 1 "$N"); do wipe "$i"; attach "$i" >/dev/null; done
  mkfs.btrfs -q -f -K -d raid6 -m raid1c3 $(awk '{print $2}' "$ST/loops")
  do_mount
}
down() {
  umount_all "$MNT"
  # the kernel remembers scanned devices: make it forget ours before they go
  [ -f "$ST/loops" ] && for d in $(awk '{print $2}' "$ST/loops"); do btrfs device scan --forget "$d" 2>/dev/null; done
  detach_all; rmdir "$MNT" 2>/dev/null; rm -rf "$ST"
}
case ${1:-} in
  up) down 2>/dev/null; guard do_up; echo "$MNT" ;;
  down) down ;;
  remount) umount_all "$MNT"; if [ -f "$ST/missing" ]; then do_mount degraded; else do_mount; fi ;;
  pids) ;;
  backing) shift; img "$1" ;;
  degrade)  # degrade A B: take these disks away (unmounted), mount without them
    shift; umount_all "$MNT"
    for i in "$@"; do btrfs device scan --forget "$(loopdev "$i")" 2>/dev/null; detach "$i"; done
    echo "$*" > "$ST/missing"
    do_mount degraded ;;
  rebuild)  # put blank disks in place of the missing ones; prints seconds
    t0=$(now); ids=$(cat "$ST/missing")
    miss=$(btrfs filesystem show "$MNT" | awk '$1=="devid"{s[$2]=1} END{for(i=1;i<=64;i++) if(s[i]) printf "%d ", i}' )
    # devids start as 1..N, equal to our disk numbers
    for i in $ids; do
      d=$(attach "$i")
      btrfs replace start -f -B "$i" "$d" "$MNT" 1>&2 || die "replace $i"
    done
    since "$t0"; echo; btrfs filesystem show "$MNT" >&2; rm -f "$ST/missing" ;;
  scrub) t0=$(now); btrfs scrub start -B "$MNT" >&2; since "$t0"; echo ;;
  status) btrfs device stats "$MNT" | awk '$2>0'; true ;;
  *) echo "usage: $0 $usage_verbs" >&2; exit 2 ;;
esac
