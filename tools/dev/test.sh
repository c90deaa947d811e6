#!/bin/bash
# test.sh quick|long: lints, unit and property tests, system tests; one summary line at the end. A part that fails does
# not keep the others from running. Whatever a test leaves (mounts, loop devices, processes) is cleaned up by its runner.
set -u
cd "$(dirname "$0")/../.." || exit 1
mode=${1:-long}
begin=$SECONDS
passed=0 failed=0
log=$(mktemp)
child=
trap 'rm -f "$log"' EXIT

# group SIGNAL: to all that the part started, for which it is the leader of a group.
group() { kill "-$1" -- "-$child" 2> /dev/null; }
# Ends the part that runs, and waits until all of it is gone. Asked again, it does not wait.
stop() {
  trap '[ -z "$child" ] || group KILL; exit 130' INT TERM HUP
  if [ -n "$child" ]; then
    # it may not have become a leader yet
    group TERM || kill -TERM "$child" 2> /dev/null
    wait
    local end=$((SECONDS + 20))
    while group 0 && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    ! group 0 || group KILL
  fi
  exit 130
}
trap stop INT TERM HUP

# Runs a part with its output kept in $log, which is whole when the part has ended, and shown. It gets a session of its own,
# so that all it starts can be ended with it.
part() {
  printf '\n==== %s (after %d s)\n' "$1" $((SECONDS - begin))
  shift
  : > "$log"
  setsid setpriv --pdeathsig TERM -- "$@" < /dev/null >> "$log" 2>&1 &
  child=$!
  # tail is this shell's child, not the part's: the system tests end every child that is not theirs to keep
  tail -n +1 -s 0.2 -f --pid="$child" "$log" 2> /dev/null &
  local show=$!
  wait "$child"
  local rc=$?
  child=
  wait "$show"
  return $rc
}

# Adds what the part's own summary counted; a part that broke without a count is one failure.
count() {
  local rc=$1 p=$2 f=$3
  passed=$((passed + p))
  failed=$((failed + f))
  [ "$rc" = 0 ] || [ "$f" != 0 ] || failed=$((failed + 1))
}
sum() { awk -v re="$1" '{ s = $0; while (match(s, re)) { t = substr(s, RSTART, RLENGTH); n += t; s = substr(s, RSTART + RLENGTH) } } END { print n + 0 }' "$log"; }

# What has to be fetched, on a machine that has nothing yet, is asked for more than once.
export CARGO_NET_RETRY=${CARGO_NET_RETRY:-10}

part "lint" tools/dev/lint.sh
rc=$?
count $rc $((rc == 0)) 0

# Property tests draw the same cases every time, so that a run can be repeated; PROPTEST_RNG_SEED=n draws others.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}

# Tests and the simulator share a profile, so that what they stand on is compiled once.
if command -v cargo-nextest > /dev/null; then
  part "unit and property tests" cargo nextest run --cargo-profile sim --workspace --locked --no-fail-fast --status-level fail --hide-progress-bar --no-tests pass
  rc=$?
  count $rc "$(sum '[0-9]+ passed')" "$(sum '[0-9]+ failed')"
else
  part "unit and property tests" cargo test --profile sim --workspace --locked --no-fail-fast --quiet --lib --bins --tests
  rc=$?
  count $rc "$(sum '[0-9]+ passed')" "$(sum '[0-9]+ failed')"
fi
part "examples in the documentation" cargo test --profile sim --workspace --locked --quiet --doc
rc=$?
count $rc "$(sum '[0-9]+ passed')" "$(sum '[0-9]+ failed')"

# The quick share of the simulator; `make test-quick` takes a tenth of it.
export states=200000 seeds=2000
[ "$mode" = long ] || states=20000 seeds=200
sim() {
  cargo build --profile sim --locked --quiet -p qrvsa-sim || return 1
  local bin=${CARGO_TARGET_DIR:-target}/sim/qrvsa-sim rc=0
  "$bin" crash-states --states "$states" || rc=1
  "$bin" seeds --count "$seeds" --known tests/sim/known-seeds || rc=1
  return $rc
}
export -f sim
part "crash states and seeds" bash -c sim
rc=$?
# each of the two is a test; one without its line of figures broke
clean=$(grep -cE '^(crash states: [0-9]+ explored|seeds: [0-9]+ run), 0 violations$' "$log")
count $rc "$clean" $((2 - clean))

if part "release build" cargo build --release --locked -p qrvsa -p qrvsad -p qrvsa-tgt; then
  part "system tests" python3 tests/system/run.py "--$mode" --lanes 2
  rc=$?
  count $rc "$(awk '/^[0-9]+ passed, [0-9]+ failed$/ { n = $1 } END { print n + 0 }' "$log")" \
    "$(awk '/^[0-9]+ passed, [0-9]+ failed$/ { n = $3 } END { print n + 0 }' "$log")"
else
  count 1 0 0
fi

printf '\n%d s\n%d passed, %d failed\n' $((SECONDS - begin)) "$passed" "$failed"
[ "$failed" = 0 ]
