# shellcheck shell=bash disable=SC2034
# Shared by the demo scripts (sourced): where things are, and what counts as our daemon.
#
# DEMO_DIR   state, device files, socket, log      default /var/lib/qrvsa-demo
# DEMO_MNT   where the pool is mounted             default /mnt/qrvsa-demo
# DEMO_SIZE  size of each of the four containers   default 4G, dynamic
set -u
# canonical PATH: without links, trailing slashes and such, as the kernel and the daemon write it. Asks no mount, dead or
# alive, that is there.
canonical() {
  local path=${1%"${1##*[!/]}"}
  realpath -m -- "${path:-/}"
}
DEMO_DIR=$(canonical "${DEMO_DIR:-/var/lib/qrvsa-demo}") || exit 1
DEMO_MNT=$(canonical "${DEMO_MNT:-/mnt/qrvsa-demo}") || exit 1
DEMO_SIZE=${DEMO_SIZE:-4G}
POOL=demo
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BIN=${QRVSA_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/release}
SOCKET=$DEMO_DIR/qrvsad.sock
STATE=$DEMO_DIR/state
DISKS=$DEMO_DIR/disks
PIDFILE=$DEMO_DIR/qrvsad.pid
LOG=$DEMO_DIR/qrvsad.log

say() { printf '%s\n' "$*"; }
die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

# Our qrvsa, on the demo's socket, never waiting for ever.
qrvsa() { timeout "${CLI_TIMEOUT:-120}" "$BIN/qrvsa" --socket "$SOCKET" "$@"; }

# daemon_pid: the pid of the demo's daemon, if it lives. The recorded number is believed only if that process runs a
# program named qrvsad with this demo's state directory: a number can come to belong to somebody else.
daemon_pid() {
  local pid exe
  [ -r "$PIDFILE" ] || return 1
  read -r pid < "$PIDFILE" || return 1
  case $pid in '' | *[!0-9]*) return 1 ;; esac
  exe=$(readlink "/proc/$pid/exe") || return 1
  exe=${exe% (deleted)} # built anew since it was started
  [ "${exe##*/}" = qrvsad ] || return 1
  tr '\0' '\n' < "/proc/$pid/cmdline" | grep -qxF -- "$STATE" || return 1
  printf '%s\n' "$pid"
}

# daemon_holder: who holds the lock of the demo's state directory, as far as the kernel tells.
daemon_holder() {
  awk -v inode="$(stat -c %i -- "$STATE/lock")" '$2 == "FLOCK" && $6 ~ ":" inode "$" { print $5; exit }' /proc/locks
}

# state_free: no daemon owns the demo's state directory, whatever the recorded number says.
state_free() { [ ! -e "$STATE/lock" ] || flock -n "$STATE/lock" true; }

# alone: waits until no other demo script changes things, and keeps others out until this one ends. What it starts must not
# inherit descriptor 9.
alone() {
  while [ -d "$DEMO_DIR" ]; do
    exec 9< "$DEMO_DIR" || die "cannot open $DEMO_DIR"
    flock -w 600 9 || die "another make up or make down does not end"
    # it may have removed the directory meanwhile
    if [ "$DEMO_DIR" -ef /proc/self/fd/9 ]; then return; fi
  done
}

daemon_answers() { [ -S "$SOCKET" ] && CLI_TIMEOUT=10 qrvsa pool list > /dev/null 2>&1; }

# mounted DIR: something is mounted there, dead or alive; does not touch it.
mounted() {
  local point
  while read -r _ _ _ _ point _; do
    printf -v point %b "$point" # blanks and such are written as \040
    [ "$point" != "$1" ] || return 0
  done < /proc/self/mountinfo
  return 1
}

# serves DIR: the mount answers.
serves() { mounted "$1" && timeout 10 stat -f -- "$1" > /dev/null 2>&1; }

# wait_until SECONDS COMMAND...: until the command succeeds.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}
