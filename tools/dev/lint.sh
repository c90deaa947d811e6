#!/bin/bash
# lint.sh: formatting and lints of everything in the repository that has them.
set -u
cd "$(dirname "$0")/../.." || exit 1
failed=0
step() {
  printf '== %s\n' "$*"
  "$@" || failed=1
}
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
mapfile -t pythons < <(git ls-files --cached --others --exclude-standard '*.py')
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
for s in "${scripts[@]}"; do bash -n "$s" || failed=1; done
step shellcheck -x -S warning -e SC1090,SC1091,SC2154 "${scripts[@]}"
if python3 -c 'import pyflakes' 2> /dev/null; then step python3 -m pyflakes "${pythons[@]}"; else step pyflakes3 "${pythons[@]}"; fi
exit "$failed"
