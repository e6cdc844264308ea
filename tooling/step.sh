#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: step.sh WHAT LOG COMMAND...
#
# Says what is being done and runs the command with its output in LOG; when
# it fails, shows the end of that.

set -u
what=$1 log=$2
shift 2
mkdir -p "$(dirname "$log")"
echo "$what (log: $log)..."
"$@" >"$log" 2>&1 </dev/null && exit 0
status=$?
tail -n 30 "$log" >&2
echo "error: $what failed: the end of $log is above." >&2
exit $status
