#!/bin/bash
# The command line on the demo's daemon: tools/demo/qrvsa.sh pool status demo
. "$(dirname "$0")/common.sh"
exec "$BIN/qrvsa" --socket "$SOCKET" "$@"
