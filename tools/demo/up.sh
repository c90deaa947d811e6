#!/bin/bash
# Starts the demo: a daemon with a pool of four VHDX containers, two of which may be lost, mounted. Run again, it only
# brings back what is missing.
. "$(dirname "$0")/common.sh"
[ "$(id -u)" = 0 ] || die "mounting needs root: run it as root"

if [ -z "${SKIP_BUILD:-}" ]; then
  "$ROOT/tools/dev/need.sh" build mount demo || die "packages are missing"
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  command -v cargo > /dev/null || die "Rust is missing: see https://rustup.rs"
  (cd "$ROOT" && cargo build --release --locked -p qrvsa -p qrvsad) || die "the build failed"
fi
[ -x "$BIN/qrvsad" ] && [ -x "$BIN/qrvsa" ] || die "$BIN has no qrvsad and qrvsa: build them first"

mkdir -p "$DEMO_DIR" || die "cannot create $DEMO_DIR"
alone
mkdir -p "$STATE" "$DISKS" || die "cannot create $DEMO_DIR"
chmod 700 "$DEMO_DIR"

if pid=$(daemon_pid) && daemon_answers; then
  say "The daemon runs already (pid $pid)."
else
  if pid=$(daemon_pid); then
    # alive, but not answering: starting up, or stuck
    wait_until 30 daemon_answers || die "the daemon (pid $pid) does not answer; see $LOG, then: make down"
  else
    # one that was killed may still be going
    wait_until 5 state_free ||
      die "a daemon that $PIDFILE does not name is at work in $STATE: end it (kill $(daemon_holder)), then: make up"
    setsid "$BIN/qrvsad" --socket "$SOCKET" --state "$STATE" < /dev/null >> "$LOG" 2>&1 9<&- &
    if ! echo $! > "$PIDFILE"; then
      kill $!
      wait $!
      die "cannot write $PIDFILE: is there space left? Nothing was started"
    fi
    wait_until 60 daemon_answers || {
      tail -n 20 "$LOG" >&2
      die "the daemon did not start; its log is $LOG"
    }
    say "Started the daemon (pid $(cat "$PIDFILE"))."
  fi
fi

if ! qrvsa --json pool list | grep -q "\"name\": *\"$POOL\""; then
  if compgen -G "$DISKS/*.vhdx" > /dev/null || compgen -G "$DISKS/*.img" > /dev/null; then
    qrvsa pool import --search "$DISKS" "$POOL" || die "the pool in $DISKS cannot be imported; if nothing in it is worth keeping: make down PURGE=1, then make up"
  else
    qrvsa pool create "$POOL" --geometry 2+2 "vhdx:$DISKS"/disk{1,2,3,4}.vhdx:"$DEMO_SIZE" || die "the pool cannot be created"
  fi
fi

# the daemon restores its mounts by itself; what is left is a first mount, or a dead one of a daemon that is gone
mkdir -p "$DEMO_MNT" 2> /dev/null || true
{ mounted "$DEMO_MNT" && wait_until 10 serves "$DEMO_MNT"; } || {
  if mounted "$DEMO_MNT" && ! serves "$DEMO_MNT"; then umount -l "$DEMO_MNT"; fi
  mounted "$DEMO_MNT" || qrvsa mount "$POOL" "$DEMO_MNT" || die "the pool cannot be mounted"
}
serves "$DEMO_MNT" || die "$DEMO_MNT is mounted, but does not answer; its log is $LOG"

df -h "$DEMO_MNT"
cat << END

The pool "$POOL" is mounted at $DEMO_MNT: four VHDX containers, any two of which may be lost.

  use it         cp -a /usr/share/doc $DEMO_MNT/
  look at it     tools/demo/qrvsa.sh pool status $POOL
  break it       tools/demo/damage.sh     (random bytes all over two of the four devices)
  heal it        tools/demo/qrvsa.sh pool scrub $POOL --wait
  lose a device  tools/demo/qrvsa.sh pool offline $POOL $DISKS/disk1.vhdx
  replace it     tools/demo/qrvsa.sh pool replace $POOL $DISKS/disk1.vhdx vhdx:$DISKS/new1.vhdx:$DEMO_SIZE
  read the log   less $LOG
  stop           make down                (keeps the pool; PURGE=1 removes it)
END
