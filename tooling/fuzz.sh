#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: fuzz.sh [TARGET] [--seconds N] [--seed S] [--inputs N]
#
# Gives what QEMU takes over from others what no QEMU would send, under ASan
# and UBSan: to one target, or to all of them one after the other.  Begins with
# real streams, if lab/fuzz/record_corpus.py has recorded some.  An input that
# fails is run again by the seed that is printed.

set -euo pipefail
cd "$(dirname "$0")/.."
programs=build/$(<patches/base)-asan-tests/tests/unit
corpus=build/fuzz/corpus
targets=(char-transfer vhost-user-messages vhost-user-session)

if [ "${1:-}" ] && [[ $1 != -* ]]; then
    if [[ " ${targets[*]} " != *" $1 "* ]]; then
        echo "error: there is no target \"$1\", but: ${targets[*]}" >&2
        exit 2
    fi
    targets=("$1")
    shift
fi

export UBSAN_OPTIONS=print_stacktrace=1
for target in "${targets[@]}"; do
    program=$programs/fuzz-$target
    if [ ! -x "$program" ]; then
        echo "error: $program is not built: type \"./run fuzz\" first." >&2
        exit 1
    fi
    begin=()
    if [ -d "$corpus/$target" ]; then
        begin=(--corpus "$corpus/$target")
    fi
    "$program" "${begin[@]}" "$@"
done
