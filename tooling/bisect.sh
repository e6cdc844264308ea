#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: bisect.sh [FROM]
#
# Builds every commit of the series in order, from patch number FROM on, and
# runs the unit tests and the series' qtests that exist at it.  Stops at the
# first that fails.  A commit whose files were tested before is skipped.

set -euo pipefail
cd "$(dirname "$0")/.."
from=${1:-1}
base=$(<patches/base)
series=build/$base/src
dir=build/$base-bisect
tested=$dir/tested      # the ids of trees that are good

if ! [[ $from =~ ^[0-9]+$ ]]; then
    echo "error: \"$from\" is not the number of a patch, such as 17." >&2
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

# The qtests that the series has brought so far.
qtests() {
    git -C "$dir/src" diff --name-only --diff-filter=A base HEAD -- tests/qtest |
        sed -n 's|.*/\(.*-test\)\.c$|qtest-x86_64/\1|p'
}

# Tests what is checked out; $1 is its name in messages.
is_good() {
    local names

    mapfile -t names < <(qtests)
    tooling/qemu.sh "$dir" "$1" --enable-werror &&
        tooling/step.sh "listing tests of $1" "$dir/meson.log" \
            tooling/meson.sh build/meson-bisect "$base-bisect" &&
        tooling/step.sh "unit tests of $1" "$dir/unit.log" \
            tooling/check.sh build/meson-bisect --suite unit &&
        { [ ${#names[@]} = 0 ] ||
          tooling/step.sh "qtests of $1" "$dir/qtest.log" \
              tooling/check.sh build/meson-bisect "${names[@]}"; }
}

number=0 new=0
for commit in $(git -C "$series" rev-list --reverse base..HEAD); do
    number=$((number + 1))
    tree=$(git -C "$series" rev-parse "$commit^{tree}")
    if [ "$number" -lt "$from" ] || grep -qx "$tree" "$tested"; then
        continue
    fi
    git -C "$dir/src" checkout -q --detach "$commit"
    subject=$(git -C "$dir/src" log -1 --format=%s)
    if ! is_good "patch $number" 8>&-; then
        echo "error: patch $number is bad: $commit $subject" >&2
        exit 1
    fi
    echo "patch $number is good: $subject"
    echo "$tree" >>"$tested"
    new=$((new + 1))
done
echo "patches $from to $number are good ($new tested now)"
