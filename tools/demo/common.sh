# shellcheck shell=bash disable=SC2034
# Shared by the demo scripts (sourced): where things are, and what counts as our daemon.
#
# DEMO_DIR   state, device files, socket, log      default /var/lib/qrvsa-demo
# DEMO_MNT   where the pool is mounted             default /mnt/qrvsa-demo
# DEMO_SIZE  size of each of the four containers   default 4G, dynamic
set -u
DEMO_DIR=${DEMO_DIR:-/var/lib/qrvsa-demo}
DEMO_MNT=${DEMO_MNT:-/mnt/qrvsa-demo}
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

daemon_answers() { [ -S "$SOCKET" ] && CLI_TIMEOUT=10 qrvsa pool list > /dev/null 2>&1; }

# mounted DIR: something is mounted there, dead or alive; does not touch it.
mounted() { awk -v d="$1" '$5 == d { found = 1 } END { exit !found }' /proc/self/mountinfo; }

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
