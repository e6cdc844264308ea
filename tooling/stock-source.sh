#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes build/BASE-stock/src: QEMU as released, from the tag "base" of build/BASE/src

set -euo pipefail
cd "$(dirname "$0")/.."
base=$(<patches/base)
src=build/$base-stock/src

if [ ! -d "$src" ]; then
    rm -rf "$src.new"
    mkdir -p "$src.new"
    git -C "build/$base/src" archive base | tar -x -C "$src.new"
    mv "$src.new" "$src"
fi
