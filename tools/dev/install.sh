#!/bin/bash
# install.sh: puts the built programs, the mount helper, units, manuals and completions under $DESTDIR and $PREFIX.
set -eu
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
BIN=${QRVSA_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/release}
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
UNITS=${UNITS:-/etc/systemd/system}
[ "$PREFIX" != /usr ] || UNITS=/lib/systemd/system

for program in qrvsa qrvsad tgtadm; do install -D -m 755 "$BIN/$program" "$DESTDIR$PREFIX/bin/$program"; done
# mount(8) looks for its helpers in /sbin only
mkdir -p "$DESTDIR/sbin"
ln -sfn "$PREFIX/bin/qrvsa" "$DESTDIR/sbin/mount.fuse.qrvsa"

mkdir -p "$DESTDIR$UNITS"
for unit in "$ROOT"/systemd/*.service "$ROOT"/systemd/*.timer; do
  [ -e "$unit" ] || continue
  sed -E "s#/usr(/local)?/s?bin/(qrvsad?)\b#$PREFIX/bin/\2#g" "$unit" > "$DESTDIR$UNITS/${unit##*/}"
  chmod 644 "$DESTDIR$UNITS/${unit##*/}"
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"$BIN/qrvsa" generate man "$tmp"
for page in "$tmp"/*.[1-8]; do install -D -m 644 "$page" "$DESTDIR$PREFIX/share/man/man${page##*.}/${page##*/}"; done
completion() {
  "$BIN/qrvsa" generate completions "$1" > "$tmp/completion"
  install -D -m 644 "$tmp/completion" "$DESTDIR$PREFIX/share/$2"
}
completion bash bash-completion/completions/qrvsa
completion zsh zsh/site-functions/_qrvsa
completion fish fish/vendor_completions.d/qrvsa.fish

[ -n "$DESTDIR" ] || ! [ -d /run/systemd/system ] || systemctl daemon-reload
echo "installed under $DESTDIR$PREFIX; start it with: systemctl enable --now qrvsad"
