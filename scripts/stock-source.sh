#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes build/10.2-stock/src: QEMU as released, from the tag "base"

set -euo pipefail
cd "$(dirname "$0")/.."
src=build/10.2-stock/src

if [ ! -d $src ]; then
    rm -rf $src.new
    mkdir -p $src.new
    git -C build/10.2/src archive base | tar -x -C $src.new
    mv $src.new $src
fi
