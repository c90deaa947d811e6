# shellcheck shell=bash disable=SC2034
# Shared by the peer_*.sh scripts (source it; needs PEER set first).
# Every script keeps what it started (mountpoint, loop devices, pids) in
# $BENCH_DIR/$PEER.state, and ends only those.
set -u
BENCH_DIR=${BENCH_DIR:-/var/tmp/qrvsa-bench}      # images, state, mountpoints
BENCH_LOCK=${BENCH_LOCK:-/tmp/qrvsa-bench.lock}
K=${K:-2}; M=${M:-2}; N=$((K + M))        # geometry: K data + M parity
DISK_MB=${DISK_MB:-3072}                  # size of each backing file
HERE=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
SELF=$HERE/$(basename "${BASH_SOURCE[1]}")
ST=$BENCH_DIR/$PEER.state
MNT=$BENCH_DIR/$PEER.mnt
DISKS=$BENCH_DIR/disks
mkdir -p "$BENCH_DIR"; touch "$BENCH_LOCK" 2>/dev/null || true

# daemons inherit this niceness, the same as the suite's own, so that both yield little to what else runs
renice -n "${PRIO:--19}" -p $$ >/dev/null 2>&1 || true

log() { echo "[$PEER] $*" >&2; }
die() { log "FAILED: $*"; exit 1; }

# img i: path of backing file i (1-based)
img() { echo "$DISKS/d$1.img"; }

# fill i: (re)write backing file i with zeros, every block allocated and written,
# so that no peer pays for (or gains from) holes in the file underneath.
fill() {
  mkdir -p "$DISKS"
  rm -f "$(img "$1")"
  dd if=/dev/zero of="$(img "$1")" bs=4M count=$((DISK_MB / 4)) oflag=direct status=none || die "fill $1"
}

# disks: backing files 1..N exist in full (a file with holes is rewritten)
disks() {
  local i f want=$((DISK_MB * 2048)) have
  for i in $(seq 1 "$N"); do
    f=$(img "$i"); have=0
    [ -f "$f" ] && have=$(stat -c %b "$f")
    if [ "$have" -lt "$want" ] || [ "$(stat -c %s "$f")" -ne $((DISK_MB * 1048576)) ]; then
      log "writing $f ($DISK_MB MiB)"; fill "$i"
    fi
  done
}

# wipe i: forget any old label at both ends of backing file i
wipe() {
  dd if=/dev/zero of="$(img "$1")" bs=4M count=4 oflag=direct conv=notrunc status=none
  dd if=/dev/zero of="$(img "$1")" bs=4M seek=$((DISK_MB / 4 - 4)) count=4 oflag=direct conv=notrunc status=none
}

# attach i: loop device over backing file i, direct I/O; recorded and printed
attach() {
  local d
  d=$(losetup -f --show --direct-io=on "$(img "$1")") || die "losetup $1"
  echo "$1 $d" >> "$ST/loops"
  # deletes inside the pool must not punch holes in the backing file
  echo 0 > "/sys/block/$(basename "$d")/queue/discard_max_bytes" 2>/dev/null || true
  echo "$d"
}
loopdev() { awk -v i="$1" '$1==i{d=$2} END{print d}' "$ST/loops" 2>/dev/null; }
detach() {  # detach i
  local d; d=$(loopdev "$1"); [ -n "$d" ] || return 0
  losetup -d "$d" 2>/dev/null
  awk -v i="$1" '$1!=i' "$ST/loops" > "$ST/loops.n"; mv "$ST/loops.n" "$ST/loops"
}
detach_all() {
  local i
  [ -f "$ST/loops" ] || return 0
  for i in $(awk '{print $1}' "$ST/loops" | sort -u); do detach "$i"; done
}

# Own processes: pid and start time, so that a reused pid is never touched.
pid_note() { echo "$1 $(awk '{print $22}' "/proc/$1/stat" 2>/dev/null)" >> "$ST/pids"; }
pid_ours() { [ -n "$2" ] && [ "$(awk '{print $22}' "/proc/$1/stat" 2>/dev/null)" = "$2" ]; }
pids_live() {
  local p s
  [ -f "$ST/pids" ] || return 0
  while read -r p s; do pid_ours "$p" "$s" && echo "$p"; done < "$ST/pids"
}
pids_end() {
  local p t
  for p in $(pids_live); do kill "$p" 2>/dev/null; done
  for t in $(seq 1 50); do [ -z "$(pids_live)" ] && break; sleep 0.1; done
  for p in $(pids_live); do kill -9 "$p" 2>/dev/null; done
  rm -f "$ST/pids"
}

umount_all() {  # umount PATH, wait until it is gone
  local t
  for t in $(seq 1 20); do
    mountpoint -q "$1" || return 0
    umount "$1" 2>/dev/null && continue
    sleep 0.25
  done
  umount -l "$1" 2>/dev/null
}

drop_caches() { sync; echo 3 > /proc/sys/vm/drop_caches; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN{printf "%.2f", b-a}'; }

# guard FUNC: run FUNC with stdout moved to stderr; undo everything if it fails
guard() {
  mkdir -p "$ST" "$MNT"
  GUARD=1
  trap '[ "$GUARD" = 0 ] || { set +e; log "up failed, undoing"; [ -n "${KEEP_LOGS:-}" ] && cp -r "$ST" "$ST.failed"; down; }' EXIT
  trap 'exit 1' INT TERM
  set -e
  "$1" 1>&2
  set +e
  GUARD=0
  trap - EXIT INT TERM
}

usage_verbs="up|down|remount|pids|disks|degrade|rebuild|scrub|status|backing"
