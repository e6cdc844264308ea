#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: step.sh WHAT LOG COMMAND...
#
# Prints WHAT and runs COMMAND with its output in LOG.  On a terminal, shows how
# many of Ninja's steps are done.  If COMMAND fails, prints the end of LOG.

set -u
what=$1 log=$2
shift 2
mkdir -p "$(dirname "$log")"

# Shows the newest "[312/1040]" of the log for as long as this script runs.
show_progress() {
    local steps

    while kill -0 $$ 2>/dev/null; do
        steps=$(tail -c 4000 "$log" | grep -o '^\[[0-9]*/[0-9]*\]' | tail -n 1)
        printf '\r%s %s\033[K' "$line" "$steps"
        sleep 0.5
    done
}

line="$what (log: $log)..."
progress=
: >"$log"
if [ -t 1 ]; then
    show_progress &
    progress=$!
else
    echo "$line"
fi
"$@" >"$log" 2>&1 </dev/null
status=$?
if [ "$progress" ]; then
    kill $progress
    wait $progress 2>/dev/null
    printf '\r%s\033[K\n' "$line"
fi
if [ $status != 0 ]; then
    tail -n 30 "$log" >&2
    echo "error: $what failed: the end of $log is above." >&2
fi
exit $status
