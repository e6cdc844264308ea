#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: fuzz.sh [--seconds N] [--seed S] [--inputs N]
#
# Gives the vhost-user session streams that no QEMU would send, under ASan and
# UBSan.  An input that fails is run again by the seed that is printed.

set -euo pipefail
cd "$(dirname "$0")/.."
fuzz=build/10.2-asan/obj/tests/unit/fuzz-vhost-user-session

if [ ! -x $fuzz ]; then
    echo "error: $fuzz is not built: type \"./run fuzz\" first." >&2
    exit 1
fi
# UBSan would only print what it finds.
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
exec $fuzz "$@"
