#!/bin/bash
# shellcheck disable=SC2034,SC2046,SC2115,SC2207
# GlusterFS 10.3 dispersed volume (Reed-Solomon in the FUSE client), one brick
# (xfs on a loop device) per disk, all on this machine.  Gluster demands
# bricks > 2 * redundancy, so 2+2 on 4 disks is refused: the smallest volume that
# survives two lost disks is 4+2 on 6, and that is the default here.
# BITROT=1: with the bit-rot daemon and scrubber (signs a file some time after its last
# close; off by default in GlusterFS).  Without it there are no checksums at all.
# glusterd and its children run in a mount + network namespace of their own.
K=${K:-4}; M=${M:-2}
PEER=gluster; . "$(dirname "$0")/lib/common.sh"
VOL=pv; IP=10.99.0.1
SH=$BENCH_DIR/gluster.shared; MNT=$SH/mnt; BR=$BENCH_DIR/gluster.bricks
inns() { nsenter -m -n -t "$(cat "$ST/glusterd.pid")" "$@"; }
g() { inns gluster --mode=script "$@"; }
client() { inns glusterfs --volfile-server=$IP --volfile-id=$VOL --log-file="$ST/log/client.log" ${CLIENT_OPTS:-} "$MNT"; }
nspids() {  # every process in our glusterd's mount namespace
  local me p; me=$(readlink "/proc/$(cat "$ST/glusterd.pid" 2>/dev/null)/ns/mnt" 2>/dev/null) || return 0
  for p in /proc/[0-9]*; do [ "$(readlink "$p/ns/mnt" 2>/dev/null)" = "$me" ] && basename "$p"; done
}
brickpid() { local p; for p in $(nspids); do tr '\0' ' ' < "/proc/$p/cmdline" | grep -q -- "--brick-name $BR/b$1/d " && echo "$p"; done; }
mkbrick() {  # mkbrick i: blank xfs on disk i
  local d; d=$(attach "$1"); mkfs.xfs -q -f -K -i size=512 "$d"; mkdir -p "$BR/b$1"; mount "$d" "$BR/b$1"; mkdir -p "$BR/b$1/d"
}
do_up() {
  disks
  local i b=""
  mkdir -p "$BR" "$SH"; mount --bind "$BR" "$BR"; mount --make-private "$BR"; mount --make-shared "$BR"
  mount --bind "$SH" "$SH"; mount --make-private "$SH"; mount --make-shared "$SH"; mkdir -p "$MNT"
  for i in $(seq 1 "$N"); do wipe "$i"; mkbrick "$i"; b="$b $IP:$BR/b$i/d"; done
  mkdir -p "$ST/lib" "$ST/log"
  setsid unshare -m -n --propagation unchanged bash -c '
      ip link set lo up && ip addr add "$2/32" dev lo && mount -t tmpfs none /run && mkdir -p /run/gluster /run/lock &&
      mount --bind "$1/lib" /var/lib/glusterd && mount --bind "$1/log" /var/log/glusterfs &&
      echo $$ > "$1/glusterd.pid" && exec glusterd -N
    ' _ "$ST" "$IP" </dev/null >"$ST/glusterd.out" 2>&1 &
  for i in $(seq 1 100); do [ -s "$ST/glusterd.pid" ] && g volume list >/dev/null 2>&1 && break; sleep 0.2; done
  pid_note "$(cat "$ST/glusterd.pid")"
  g volume create $VOL disperse-data "$K" redundancy "$M" $b force
  [ -z "${VOL_OPTS:-}" ] || for i in $VOL_OPTS; do g volume set $VOL "${i%%=*}" "${i#*=}"; done
  g volume start $VOL
  if [ "${BITROT:-0}" = 1 ]; then g volume bitrot $VOL enable; g volume bitrot $VOL signing-time 10; fi
  client
  mountpoint -q "$MNT"
}
down() {
  local p t i
  umount_all "$MNT"
  if [ -n "$(pids_live)" ]; then
    timeout 30 nsenter -m -n -t "$(cat "$ST/glusterd.pid")" gluster --mode=script volume stop $VOL force >/dev/null 2>&1
    local all; all=$(nspids)
    for p in $all; do kill "$p" 2>/dev/null; done
    for t in $(seq 1 30); do [ -z "$(nspids)" ] && break; sleep 0.1; done
    for p in $(nspids); do kill -9 "$p" 2>/dev/null; done
    # glusterd is gone now, so look its former companions up by pid once more
    sleep 0.3; for p in $all; do [ -d "/proc/$p" ] && tr '\0' ' ' < "/proc/$p/cmdline" 2>/dev/null | grep -q gluster && kill -9 "$p" 2>/dev/null; done
  fi
  rm -f "$ST/pids"
  for i in "$BR"/b*; do [ -d "$i" ] && umount_all "$i"; done
  umount_all "$SH"; umount_all "$BR"; detach_all
  rm -rf "$BR" "$SH" "$ST"
}
unhealed() { g volume heal $VOL info summary 2>/dev/null | awk '/Total Number of entries/{if($NF=="-")$NF=1; n+=$NF} END{print n+0}'; }
case ${1:-} in
  up) down 2>/dev/null; guard do_up; echo "$MNT" ;;
  down) down ;;
  remount) umount_all "$MNT"; client; for i in $(seq 1 50); do mountpoint -q "$MNT" && stat "$MNT" >/dev/null 2>&1 && break; sleep 0.1; done ;;
  pids) nspids ;;
  backing) shift; img "$1" ;;
  gluster) shift; g "$@" ;;
  degrade)
    shift
    for i in "$@"; do for p in $(brickpid "$i"); do kill -9 "$p"; done; sleep 0.3; umount_all "$BR/b$i"; detach "$i"; done
    echo "$*" > "$ST/missing"; g volume status $VOL >&2 ;;
  rebuild)
    t0=$(now)
    for i in $(cat "$ST/missing"); do
      g volume reset-brick $VOL "$IP:$BR/b$i/d" start >&2
      mkbrick "$i"
      g volume reset-brick $VOL "$IP:$BR/b$i/d" "$IP:$BR/b$i/d" commit force >&2 || die "reset-brick $i"
    done
    g volume heal $VOL full >&2
    for t in $(seq 1 600); do  # done: nothing pending, and as much on each new brick as on brick 1's peers
      ref=$(for i in $(seq 1 "$N"); do du -sk "$BR/b$i/d" --exclude=.glusterfs | cut -f1; done | sort -n | tail -1)
      low=$(for i in $(cat "$ST/missing"); do du -sk "$BR/b$i/d" --exclude=.glusterfs | cut -f1; done | sort -n | head -1)
      [ "$((low * 100))" -ge "$((ref * 98))" ] && [ "$(unhealed)" = 0 ] && break
      sleep 0.5
    done
    since "$t0"; echo; g volume heal $VOL info summary >&2; rm -f "$ST/missing" ;;
  scrub) # bit-rot scrubber (must have been enabled, and files signed: see faults.sh)
    t0=$(now); g volume bitrot $VOL scrub ondemand >&2
    for t in $(seq 1 600); do sleep 0.5; g volume bitrot $VOL scrub status > "$ST/scrub"; grep -q 'In Progress' "$ST/scrub" || break; done
    since "$t0"; echo; cat "$ST/scrub" >&2 ;;
  settle) # every brick's copy of every file signed
    t0=$(now)
    for t in $(seq 1 300); do
      n=$(find "$BR"/b*/d -path '*/.glusterfs' -prune -o -type f -print | wc -l)
      k=$(find "$BR"/b*/d -path '*/.glusterfs' -prune -o -type f -exec getfattr --absolute-names -n trusted.bit-rot.signature {} + 2>/dev/null | grep -c '^trusted.bit-rot')
      [ "$n" -gt 0 ] && [ "$k" = "$n" ] && break
      sleep 1
    done
    log "$k of $n signed"; since "$t0"; echo ;;
  status) g volume heal $VOL info summary | awk '/^Brick/{b=$2} /Total Number|split-brain|Number of entries in heal pending/ && $NF>0 {print b": "$0}'; g volume status $VOL | grep -E ' N +N/A' ;;
  *) echo "usage: $0 $usage_verbs$([ "${BITROT:-0}" = 1 ] && echo "|settle")" >&2; exit 2 ;;
esac
