#!/bin/bash
# shellcheck disable=SC2034,SC2046,SC2115,SC2207
# Plain ext4, no redundancy: the ceiling.  up|down|remount|pids
# MODE=host (default): a directory on the machine's own ext4, where the backing
#   files of all peers lie.  MODE=loop: ext4 made on one loop device over one
#   backing file, which shows what the loop layer alone costs the peers.
MODE=${MODE:-host}
PEER=ext4${MODE}; . "$(dirname "$0")/lib/common.sh"
do_up() {
  if [ "$MODE" = host ]; then mkdir -p "$MNT"; return; fi
  N=1; disks; wipe 1
  local d; d=$(attach 1)
  mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$d"
  mount "$d" "$MNT"
}
down() {
  if [ "$MODE" = loop ]; then umount_all "$MNT"; detach_all; rmdir "$MNT" 2>/dev/null
  else rm -rf "$MNT"; fi
  rm -rf "$ST"
}
case ${1:-} in
  up) down; guard do_up; echo "$MNT" ;;
  down) down ;;
  remount)
    [ "$MODE" = host ] && exit 0
    d=$(loopdev 1); umount_all "$MNT"; mount "$d" "$MNT" ;;
  pids) ;;
  *) echo "usage: $0 up|down|remount|pids" >&2; exit 2 ;;
esac
