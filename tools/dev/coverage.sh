#!/bin/bash
# coverage.sh: lines of qrvsa-core that its own tests, the simulator's and the fuzzers' quick share run. The last line is
# the figure. LLVM's tools have to be those of the compiler's version: rustup's component llvm-tools, or Debian's llvm-N.
set -eu
cd "$(dirname "$0")/../.."
major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
if ! compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-cov" > /dev/null; then
  export LLVM_COV=${LLVM_COV:-llvm-cov-$major} LLVM_PROFDATA=${LLVM_PROFDATA:-llvm-profdata-$major}
fi
command -v cargo-llvm-cov > /dev/null || cargo install --locked cargo-llvm-cov
table=$(mktemp)
trap 'rm -f "$table"' EXIT
# the tests of a module that stand in a file of their own are not counted, nor is what is only there for tests
cargo llvm-cov --locked -p qrvsa-core -p qrvsa-sim -p qrvsa-fuzz --lib --tests \
  --ignore-filename-regex '(/tests/|/tests\.rs|/testing\.rs|/tools/|/qrvsa-iscsi/)' --summary-only > "$table"
sed -n '/^Filename/,$p' "$table"
awk '$1 == "TOTAL" { n = $8; m = $9; sub(/%/, "", $10); printf "coverage of qrvsa-core: %s %% of %d lines\n", $10, n }' "$table"
