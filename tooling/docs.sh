#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Builds QEMU's manual with the series, as HTML and as man pages, in
# build/BASE/docs
#
# Warnings are errors.  Sphinx needs only the source: neither a build of QEMU
# nor a network.

set -euo pipefail
cd "$(dirname "$0")/.."
base=$(<patches/base)
src=build/$base/src/docs
docs=build/$base/docs

# format NAME: writes the manual as html or man.
format() {
    /usr/bin/sphinx-build -q -W --keep-going -D kerneldoc_werror=1 -j auto \
        -b "$1" -d "$docs/doctrees" "$src" "$docs/$1"
}

mkdir -p "$docs"
exec 9<"$docs"
flock 9         # "meson test --repeat" runs several of us
# What Sphinx has read before, it does not warn of again.
rm -rf "${docs:?}"/*
export PYTHONDONTWRITEBYTECODE=1        # it loads modules from the source

echo 'building the manual...'
format html
format man
rm -rf "$docs/doctrees"
echo "the manual is $docs/html/index.html, the man pages are in $docs/man"
