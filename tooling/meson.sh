#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: meson.sh [DIR [QEMU]]
#
# Sets up DIR (default: build/meson), a build folder of our own Meson project,
# for the QEMU in build/QEMU (default: the release of patches/base), and builds it

set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-build/meson} qemu=${2:-$(<patches/base)}

if [ ! -e "$dir/build.ninja" ]; then
    meson setup "$dir" -Dqemu="$qemu"
fi
meson compile -C "$dir"
