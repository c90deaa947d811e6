#!/bin/bash
# coverage.sh: lines of qrvsa-core that its own tests, the simulator's and the fuzzers' quick share run. The last line is
# the figure. LLVM's tools have to be those of the compiler's version: rustup's component llvm-tools, or Debian's llvm-N.
# Built in a folder of its own, optimised a little, with the checks of a debug build.
set -eu
cd "$(dirname "$0")/../.."
major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
if ! compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-cov" > /dev/null; then
  export LLVM_COV=${LLVM_COV:-llvm-cov-$major} LLVM_PROFDATA=${LLVM_PROFDATA:-llvm-profdata-$major}
fi
command -v cargo-llvm-cov > /dev/null || cargo install --locked cargo-llvm-cov
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/coverage CARGO_PROFILE_SIM_OPT_LEVEL=1
env=$(cargo llvm-cov show-env --sh)
eval "$env"
cargo llvm-cov clean --workspace --profraw-only
packages=(-p qrvsa-core -p qrvsa-sim -p qrvsa-fuzz)
# a process for each test where there is nextest: the tests of one process together take gigabytes
if command -v cargo-nextest > /dev/null; then
  cargo nextest run --cargo-profile sim --locked "${packages[@]}" --no-fail-fast --status-level fail --hide-progress-bar
else
  cargo test --profile sim --locked "${packages[@]}" --lib --tests --quiet -- --test-threads 2
fi
cargo build --profile sim --locked --quiet -p qrvsa-sim -p qrvsa-fuzz
"$CARGO_TARGET_DIR/sim/qrvsa-sim" crash-states --states 4000
"$CARGO_TARGET_DIR/sim/qrvsa-sim" seeds --count 150
table=$(mktemp)
trap 'rm -f "$table"' EXIT
cargo llvm-cov report --profile sim --lcov --output-path "$table"
python3 tools/dev/coverage.py "$table"
