#!/bin/bash
# lint.sh: formatting and lints of everything in the repository that has them.
set -u
cd "$(dirname "$0")/../.." || exit 1
failed=0
step() {
  printf '== %s\n' "$*"
  "$@" || failed=1
}
# files PATTERN...: those of the repository. Whose checkout it is does not matter: nothing but its list of files is used.
files() { git -c safe.directory='*' ls-files --cached --others --exclude-standard -- "$@"; }
mapfile -t scripts < <(files '*.sh' .ci/run)
mapfile -t pythons < <(files '*.py')
if [ ${#scripts[@]} = 0 ] || [ ${#pythons[@]} = 0 ]; then
  echo "lint.sh: git does not tell which files there are, so nothing was looked at: it needs git and a clone of the repository" >&2
  exit 1
fi
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
for s in "${scripts[@]}"; do bash -n "$s" || failed=1; done
step shellcheck -x -S warning -e SC1090,SC1091,SC2154 "${scripts[@]}"
if python3 -c 'import pyflakes' 2> /dev/null; then step python3 -m pyflakes "${pythons[@]}"; else step pyflakes3 "${pythons[@]}"; fi
exit "$failed"
