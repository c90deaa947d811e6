#!/bin/bash
# shellcheck disable=SC2034,SC2046,SC2115,SC2207
# zfs-fuse 0.7.0 (ZFS pool v26 in userspace, through FUSE): raidz<M> over K+M loop devices.
# The daemon has one fixed socket and lock (/run/zfs, /run/lock/zfs), so it runs in a mount namespace of
# its own and cannot meet another zfs-fuse on the machine; its mounts come back
# through a shared bind mount.  FUSE_OPTS: extra zfs-fuse switches.
PEER=zfsfuse; . "$(dirname "$0")/lib/common.sh"
POOL=${POOL:-pbench}
ARC_MB=${ARC_MB:-128}     # upstream's default; Debian's zfsrc says 100
SH=$BENCH_DIR/zfsfuse.shared; MNT=$SH/mnt
inns() { nsenter -m -t "$(cat "$ST/zfs.pid")" "$@"; }
zpool() { inns /usr/sbin/zpool "$@"; }
vdevs() { awk '{print $2}' "$ST/loops"; }
do_up() {
  disks
  local i p
  for i in $(seq 1 "$N"); do wipe "$i"; attach "$i" >/dev/null; done
  mkdir -p "$SH" /run/zfs /run/lock/zfs; mount --bind "$SH" "$SH"; mount --make-private "$SH"; mount --make-shared "$SH"; mkdir -p "$MNT"
  setsid unshare -m --propagation unchanged bash -c '
      mount -t tmpfs none /run/zfs && mount -t tmpfs none /run/lock/zfs && cp /etc/zfs/zfsrc "$1/zfsrc" && mount -t tmpfs none /etc/zfs &&
      cp "$1/zfsrc" /etc/zfs/ && echo $$ > "$1/zfs.pid" &&
      exec zfs-fuse -n -p "$1/zfs-fuse.pid" -m "$2" --no-kstat-mount $3
    ' _ "$ST" "$ARC_MB" "${FUSE_OPTS:-}" </dev/null >"$ST/zfs.log" 2>&1 &
  p=$!
  for i in $(seq 1 50); do [ -s "$ST/zfs.pid" ] && zpool list >/dev/null 2>&1 && break; sleep 0.1; done
  pid_note "$(cat "$ST/zfs.pid")"
  # on a busy machine a first create was once refused with "pool already exists" on a fresh daemon
  for i in 1 2 3; do zpool create -f -m "$MNT" "$POOL" raidz$M $(vdevs) && break; zpool destroy -f "$POOL" || true; sleep 1; done
  inns zfs set atime=off "$POOL"
  mountpoint -q "$MNT"
}
down() {
  if [ -n "$(pids_live)" ]; then inns timeout 60 /usr/sbin/zpool destroy -f "$POOL" 2>/dev/null; fi
  umount_all "$MNT"; pids_end; umount_all "$SH"; detach_all
  rm -rf "$SH" "$ST"
}
devdir() { rm -rf "$ST/dev"; mkdir -p "$ST/dev"; for d in $(vdevs); do ln -s "$d" "$ST/dev/$(basename "$d")"; done; }
exp() { local t; for t in 1 2 3 4 5; do zpool export "$POOL" 2>"$ST/err" && return; sleep 1; done; cat "$ST/err" >&2; return 1; }
imp() { devdir; zpool import -d "$ST/dev" "$POOL"; }
st() { zpool status "$POOL"; }
case ${1:-} in
  up) down 2>/dev/null; guard do_up; echo "$MNT" ;;
  down) down ;;
  remount) exp; imp ;;
  pids) pids_live ;;
  backing) shift; img "$1" ;;
  degrade)
    shift; exp
    for i in "$@"; do detach "$i"; done
    echo "$*" > "$ST/missing"; imp; st >&2 ;;
  rebuild)
    t0=$(now)
    # missing members show as their old path or a guid, in a state other than ONLINE
    old=($(st | awk -v p="$POOL" '/config:/{c=1} c && $2 ~ /UNAVAIL|FAULTED|OFFLINE|REMOVED/ && $1!=p && $1 !~ /^raidz/ {print $1}'))
    n=0
    for i in $(cat "$ST/missing"); do
      d=$(attach "$i"); log "replace ${old[$n]} by $d"
      zpool replace -f "$POOL" "${old[$n]}" "$d" || die "replace ${old[$n]}"
      n=$((n + 1))
    done
    while st | grep -q 'resilver in progress'; do sleep 0.2; done
    since "$t0"; echo; st >&2; rm -f "$ST/missing" ;;
  scrub) t0=$(now); zpool scrub "$POOL"
    while st | grep -q 'scrub in progress'; do sleep 0.2; done
    since "$t0"; echo; st | grep -A1 -E 'scan:|scrub:' >&2 ;;
  status) st | awk '/config:/{c=1} c && NF>=5 && $1!="NAME" && ($3!="0" || $4!="0" || $5!="0" || $2!="ONLINE")'; st | grep -E 'scan:|scrub:|errors:' ;;
  *) echo "usage: $0 $usage_verbs" >&2; exit 2 ;;
esac
