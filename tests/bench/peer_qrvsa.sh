#!/bin/bash
# shellcheck disable=SC2034
# This project: one pool of K+M plain files, a daemon of its own, release binaries ($QRVSA_BIN or target/release).
# MEMORY: the daemon's memory_limit (default: its own choice). CONFIG: further lines of its configuration.
PEER=qrvsa; . "$(dirname "$0")/lib/common.sh"
ROOT=$(cd "$HERE/../.." && pwd)
BIN=${QRVSA_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/release}
POOL=bench
q() { timeout "${CLI_TIMEOUT:-3600}" "$BIN/qrvsa" --socket "$ST/sock" "$@"; }
# member i: the file that is disk i now; a replacement has a name of its own
member() { cat "$ST/member.$1" 2>/dev/null || img "$1"; }
start() {
  : > "$ST/config.toml"
  [ -z "${MEMORY:-}" ] || echo "memory_limit = \"$MEMORY\"" >> "$ST/config.toml"
  [ -z "${CONFIG:-}" ] || echo "$CONFIG" >> "$ST/config.toml"
  setsid "$BIN/qrvsad" --socket "$ST/sock" --state "$ST/state" --config "$ST/config.toml" < /dev/null >> "$ST/log" 2>&1 &
  pid_note $!
  local t
  for t in $(seq 1 600); do CLI_TIMEOUT=10 q pool list > /dev/null 2>&1 && return; sleep 0.1; done
  tail -n 5 "$ST/log" >&2
  return 1
}
serve() { local t; for t in $(seq 1 300); do mountpoint -q "$MNT" && return; sleep 0.1; done; q mount "$POOL" "$MNT"; }
stop() {  # in order, so that the daemon restores the mount when it comes back
  local p t
  for p in $(pids_live); do kill -TERM "$p"; done
  for t in $(seq 1 900); do [ -z "$(pids_live)" ] && break; sleep 0.1; done
  pids_end
}
do_up() {
  mkdir -p "$ST/state"
  disks
  local i f=()
  for i in $(seq 1 "$N"); do wipe "$i"; f+=("$(img "$i")"); done
  start
  q pool create "$POOL" --geometry "$K+$M" --force "${f[@]}"
  q mount "$POOL" "$MNT"
  mountpoint -q "$MNT"
}
down() {
  [ -z "$(pids_live)" ] || CLI_TIMEOUT=60 q umount "$MNT" > /dev/null 2>&1
  stop
  umount_all "$MNT"
  rm -f "$DISKS"/r*.img
  rmdir "$MNT" 2>/dev/null
  rm -rf "$ST"
}
case ${1:-} in
  up) down 2>/dev/null; guard do_up; echo "$MNT" ;;
  down) down ;;
  remount) stop; start && serve ;;  # the daemon's cache goes with it
  pids) pids_live ;;
  backing) shift; member "$1" ;;
  qrvsa) shift; q "$@" ;;
  degrade)  # degrade A B..: these files go while the daemon is away; blank ones of another name stand ready
    shift; stop
    for i in "$@"; do
      member "$i" > "$ST/old.$i"; rm -f "$(member "$i")"
      r=$DISKS/r$i.$(date +%s%N).img
      dd if=/dev/zero of="$r" bs=4M count=$((DISK_MB / 4)) oflag=direct status=none || die "write $r"
      echo "$r" > "$ST/member.$i"
    done
    echo "$*" > "$ST/missing"; start && serve; q pool status "$POOL" >&2 ;;
  rebuild)
    t0=$(now)
    for i in $(cat "$ST/missing"); do q pool replace "$POOL" "$(cat "$ST/old.$i")" "$(member "$i")" >&2 || die "replace $i"; done
    for t in $(seq 1 6000); do q --json pool status "$POOL" | grep -q '"state": *"ONLINE"' && ! q --json pool status "$POOL" | grep -qE '"state": *"(DEGRADED|REBUILDING|MISSING|OFFLINE)"' && break; sleep 0.2; done
    since "$t0"; echo; rm -f "$ST/missing"; q pool status "$POOL" >&2 ;;
  scrub) t0=$(now); q pool scrub "$POOL" --wait >&2; since "$t0"; echo ;;
  status) q pool status "$POOL" ;;
  *) echo "usage: $0 $usage_verbs" >&2; exit 2 ;;
esac
