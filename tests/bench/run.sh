#!/bin/bash
# run.sh: what `make bench` runs. The filesystem suite on a 4+2 pool of six files; btrfs raid6, zfs-fuse raidz2 and
# GlusterFS disperse 4+2 on six files of the same disk, one after another in one run; then the engine's own benchmarks. The
# tables go to the terminal and into docs/performance.md between its markers.
#
#   PEERS="qrvsa btrfs zfsfuse gluster"   also: ext4 (the bare disk)
#   SIZE_MB DISK_MB RT CAP REPS META_N META_CAP   sizes, see README.md; the defaults here take about twenty minutes on two cores
#   FAULTS=1      the fault suite as well         ENGINE=0   without the engine's benchmarks   ISCSI=0  without iSCSI   VHDX=0  without VHDX
#   OUT=DIR       keep the JSON of every figure there       DOC=FILE   write the tables elsewhere
set -u
cd "$(dirname "$0")" || exit 1
ROOT=$(cd ../.. && pwd)
[ "$(id -u)" = 0 ] || { echo "bench: mounting needs root" >&2; exit 1; }
export K=${K:-4} M=${M:-2} DISK_MB=${DISK_MB:-1536} SIZE_MB=${SIZE_MB:-512} RT=${RT:-2} CAP=${CAP:-5} REPS=${REPS:-3}
export META_N=${META_N:-4000} META_CAP=${META_CAP:-6} QUIET_WAIT=${QUIET_WAIT:-1} RETRY=${RETRY:-0} DATA_MB=${DATA_MB:-512}
export BENCH_DIR=${BENCH_DIR:-/var/tmp/qrvsa-bench}
DOC=${DOC:-$ROOT/docs/performance.md}
peers=${PEERS:-qrvsa btrfs zfsfuse gluster}
begin=$SECONDS

if [ -z "${SKIP_BUILD:-}${QRVSA_BIN:-}" ]; then
  (cd "$ROOT" && cargo build --release --locked -p qrvsa -p qrvsad) || exit 1
fi
mkdir -p "$BENCH_DIR"
out=${OUT:-$BENCH_DIR/out}
mkdir -p "$out"
rm -f "$out"/fs_*.json "$out"/faults_*.json "$out"/engine.txt

current=
tidy() {
  [ -z "$current" ] || "./peer_$current.sh" down > /dev/null 2>&1
  rm -rf "$BENCH_DIR/disks" /dev/shm/bench_tree
  [ -n "${OUT:-}" ] || rm -rf "$out"
  rmdir "$BENCH_DIR" 2> /dev/null
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP

failed=0
for peer in $peers; do
  printf '== %s (after %d s)\n' "$peer" $((SECONDS - begin))
  current=$peer
  if ! dir=$("./peer_$peer.sh" up); then
    echo "bench: $peer did not come up" >&2
    failed=1 current=
    continue
  fi
  HOOK="./peer_$peer.sh remount" PIDS_CMD="./peer_$peer.sh pids" ./fs.sh "$dir" "$peer" "$out/fs_$peer.json" || failed=1
  "./peer_$peer.sh" down > /dev/null
  if [ "${FAULTS:-0}" = 1 ] && [ "$peer" != ext4 ]; then
    ./faults.sh "./peer_$peer.sh" "$peer" "$out/faults_$peer.json" || failed=1
    "./peer_$peer.sh" down > /dev/null
  fi
  current=
done

if [ "${ENGINE:-1}" = 1 ]; then
  printf '== engine (after %d s)\n' $((SECONDS - begin))
  # the benchmarks print their figures on stdout, cargo its own talk on stderr
  (cd "$ROOT" && cargo bench --locked -p qrvsa-core --bench codec --bench tree --bench pool --bench import) > "$out/engine.txt" || failed=1
fi

printf '\n'
./table.py "$out" "$DOC" || failed=1
if [ "${ISCSI:-1}" = 1 ]; then
  printf '\n== iSCSI (after %d s)\n' $((SECONDS - begin))
  (cd "$ROOT" && cargo build --release --locked -p qrvsa-iscsi --example load) || failed=1
  ./iscsi.py "$DOC" || failed=1
fi
if [ "${VHDX:-1}" = 1 ]; then
  printf '\n== VHDX (after %d s)\n' $((SECONDS - begin))
  ./vhdx.py "$DOC" || failed=1
fi
printf '\n%d s; tables written to %s\n' $((SECONDS - begin)) "${DOC#"$ROOT"/}"
exit "$failed"
