#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Builds QEMU with the series in other ways than ours
#
# Together they compile every C file of the series.  The last line is the
# count.

set -euo pipefail
cd "$(dirname "$0")/.."
base=$(<patches/base)
passed=0 failed=0

count() {
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
}

# Makes and prints the folder of a build.
folder() {
    mkdir -p "build/$base-$1"
    ln -sfn "../$base/src" "build/$base-$1/src"
    echo "build/$base-$1"
}

# qemu NAME WHAT FLAG...
qemu() {
    count tooling/qemu.sh "$(folder "$1")" "$2" --enable-werror "${@:3}"
}

# An object has the name of its source, for tests without the folder.
all_are_compiled() {
    local file object status=0

    for file in $(git -C "build/$base/src" diff --name-only --diff-filter=AM \
                  base HEAD -- '*.c'); do
        object=_${file//\//_}
        if [[ $file == tests/* ]]; then
            object=${file##*/}
        fi
        if [ -z "$(find "build/$base"-{clang,targets,windows}/obj \
                   -name "${object#_}.o*" -o -name "*$object.o*")" ]; then
            echo "error: no build compiles $file" >&2
            status=1
        fi
    done
    return $status
}

tooling/packages.sh tooling/packages-variants.txt
qemu clang 'QEMU by clang' --cc='ccache clang' --host-cc=clang
qemu no-vhost-user 'QEMU without vhost-user' \
    --disable-vhost-user --disable-vhost-user-blk-server
qemu targets 'QEMU for other machines' \
    --target-list=aarch64-softmmu,riscv64-softmmu,s390x-softmmu,xtensa-softmmu \
    --enable-colo-proxy --enable-gio --enable-dbus-display
count tooling/windows.sh "$(folder windows)"
count all_are_compiled
echo "$passed passed, $failed failed"
[ $failed = 0 ]
