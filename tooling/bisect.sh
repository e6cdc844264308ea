#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: bisect.sh [FROM]
#
# Builds every commit of the series in order, from FROM on, which is a theme
# or a patch such as fixes/0003, and runs those unit tests and qtests that the
# series brings or changes, as far as they exist at the commit.  Stops at the
# first that fails.  A commit whose files were tested before is skipped.

set -euo pipefail
cd "$(dirname "$0")/.."
base=$(<patches/base)
series=build/$base/src
dir=build/$base-bisect
tested=$dir/tested      # the ids of trees that are good

commits=$(/usr/bin/python3 -B -m tooling.series "$series" "patches/$base")
from=${1:-$(head -n 1 <<<"$commits" | cut -d ' ' -f 2)}
if ! grep -qE " $from(/|\$)" <<<"$commits"; then
    echo "error: the series has no \"$from\": name a theme or a patch, such as" \
        "$(head -n 1 <<<"$commits" | cut -d ' ' -f 2)." >&2
    exit 2
fi
mkdir -p "$dir"
touch "$tested"
exec 8>"$dir/lock"
flock -n 8 || { echo "error: another ./run bisect is running." >&2; exit 1; }
if [ ! -e "$dir/src" ]; then
    git -C "$series" worktree prune
    git -C "$series" worktree add -q --detach "$PWD/$dir/src" base
fi

# Most of the time is spent on compiling, so nothing is optimized.
build() {
    tooling/qemu.sh "$dir" "$1" --enable-werror --extra-cflags=-g0 \
        -Doptimization=0 "${@:2}"
}

# The names of the tests, as far as QEMU has them at this commit.
list_tests() {
    git -C "$series" diff --name-only --diff-filter=AM base HEAD -- \
        tests/unit tests/qtest | sed -n 's|^tests/unit/\(.*\)\.c$|\1|p
            s|^tests/qtest/\(.*\)\.c$|qtest-x86_64/\1|p' |
        grep -Fx -f <(/usr/bin/python3 -B -m tooling.qemu_tests "$dir/obj" |
            cut -d '|' -f 1) || true
}

# Runs the tests NAME...; it is called by step.sh.
run_tests() {
    local name

    for name in "$@"; do
        timeout 600 /usr/bin/python3 -B -m tooling.qemu_test "$dir/obj" \
            "$name" || { echo "$name failed"; return 1; }
    done
}
export -f run_tests
export dir

# Tests what is checked out; $1 is its name in messages.
is_good() {
    local names targets

    build "$1" qemu-system-x86_64 storage-daemon/qemu-storage-daemon \
        contrib/vhost-user-blk/vhost-user-blk || return
    mapfile -t names < <(list_tests)
    [ ${#names[@]} = 0 ] && return
    targets=("${names[@]/#qtest-x86_64\//tests/qtest/}")
    targets=("${targets[@]/#test-/tests/unit/test-}")
    targets=("${targets[@]/#fuzz-/tests/unit/fuzz-}")
    build "tests of $1" "${targets[@]}" &&
        tooling/step.sh "running ${#names[@]} tests of $1" "$dir/test.log" \
            bash -c 'run_tests "$@"' run_tests "${names[@]}"
}

skip=1 new=0
while read -r commit name; do
    if [[ $name = "$from" || $name = "$from"/* ]]; then
        skip=
    fi
    tree=$(git -C "$series" rev-parse "$commit^{tree}")
    if [ "$skip" ] || grep -qx "$tree" "$tested"; then
        continue
    fi
    git -C "$dir/src" checkout -q --detach "$commit"
    subject=$(git -C "$dir/src" log -1 --format=%s)
    if ! is_good "$name" 8>&-; then
        echo "error: $name is bad: $commit $subject" >&2
        exit 1
    fi
    echo "$name is good: $subject"
    echo "$tree" >>"$tested"
    new=$((new + 1))
done <<<"$commits"
echo "all patches from $from on are good ($new tested now)"
