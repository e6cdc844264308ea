#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sets up build/meson, the build folder of our own Meson project, and builds it

set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -e build/meson/build.ninja ]; then
    meson setup build/meson
fi
meson compile -C build/meson
