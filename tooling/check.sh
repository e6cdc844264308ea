#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: check.sh DIR [ARGUMENTS OF "meson test"]
#
# Runs the tests of the Meson build folder DIR; the last line is the count.
# Fails when a test failed, and when none ran.

set -euo pipefail
cd "$(dirname "$0")/.."
dir=$1
shift
log=$dir/meson-logs/testlog.json

rm -f "$log"
# The time limits are for machines with nothing else to do.
status=0
meson test -C "$dir" --print-errorlogs --timeout-multiplier 3 "$@" \
    </dev/null || status=$?
/usr/bin/python3 -B -m tooling.count_results "$log"
exit $status
