#!/bin/bash
# Ends the demo: unmounts, stops the daemon, leaves no mount and no process. The pool stays unless PURGE=1.
. "$(dirname "$0")/common.sh"
[ "$(id -u)" = 0 ] || die "unmounting needs root: run it as root"

alone
pid=$(daemon_pid) || wait_until 5 state_free ||
  die "a daemon that $PIDFILE does not name is at work in $STATE: nothing was stopped; end it (kill $(daemon_holder)), then: make down"

if mounted "$DEMO_MNT"; then
  { daemon_answers && CLI_TIMEOUT=60 qrvsa umount "$DEMO_MNT"; } || umount "$DEMO_MNT" 2> /dev/null ||
    { say "$DEMO_MNT is busy or dead: detached, it goes when nobody uses it."; umount -l "$DEMO_MNT"; }
fi

# a zombie with threads left may still hold files
gone() {
  [ ! -d "/proc/$pid" ] ||
    awk '/^State:/ { zombie = $2 == "Z" } /^Threads:/ { alone = $2 <= 1 } END { exit !(zombie && alone) }' "/proc/$pid/status" 2> /dev/null
}
if [ -n "$pid" ]; then
  kill -TERM "$pid"
  if ! wait_until 60 gone; then
    say "The daemon (pid $pid) did not end in 60 s: killed. What it had acknowledged is safe."
    kill -KILL "$pid"
    wait_until 10 gone || die "pid $pid does not end"
  fi
elif daemon_answers; then
  die "a daemon answers on $SOCKET, but $PIDFILE does not name it: nothing was stopped"
fi
rm -f "$PIDFILE" "$SOCKET" "$SOCKET.lock"
# a mount that the daemon left when it was killed
while mounted "$DEMO_MNT"; do umount -l "$DEMO_MNT" || break; done
rmdir "$DEMO_MNT" 2> /dev/null

if [ "${PURGE:-}" = 1 ]; then
  rm -rf --one-file-system -- "$STATE" "$DISKS" "$LOG"
  rmdir "$DEMO_DIR" 2> /dev/null
  [ ! -d "$DEMO_DIR" ] || say "$DEMO_DIR holds other files and stays."
  say "The demo is stopped and its pool is removed."
elif [ -d "$DISKS" ]; then
  say "The demo is stopped. Its pool stays in $DISKS: make up brings it back, make down PURGE=1 removes it."
else
  say "The demo is stopped; there was no pool."
fi
