#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes build/BASE/src: a git tree of QEMU as released, with the tag "base"
#
# QEMU_SRC names a git tree, an unpacked tree or a tarball.  Without it, QEMU is
# downloaded.  A tree that is there is kept.

set -euo pipefail
cd "$(dirname "$0")/.."
release=$(<patches/base)
src=build/$release/src
origin=build/$release/origin
work=build/$release/unpack
dl=build/dl
give="give a QEMU $release git tree, unpacked tree or tarball: QEMU_SRC=PATH ./run build"

die() {
    echo "error: $*" >&2
    exit 1
}

# Copies a git tree's HEAD, and those of Meson's subprojects that git ignores.
copy_git_tree() {
    git -C "$1" archive HEAD | tar -x -C "$work"
    for dir in "$1"/subprojects/*/; do
        cp -a -n "$dir" "$work/subprojects/"
    done
}

unpack_download() {
    local found

    mkdir -p $dl
    tooling/download.sh $dl || die "there is no source to build; $give"
    # Debian's package, or else the release tarball.
    found=$(find $dl -maxdepth 1 -name "qemu_$release.*.dsc" -o \
                 -maxdepth 1 -name "qemu-$release.*.tar.*" | sort -V | tail -n 1)
    if [ "${found%.dsc}" = "$found" ]; then
        tar -x -f "$found" -C "$work" --strip-components=1
        return
    fi
    rmdir "$work"
    tooling/step.sh "unpacking $(basename "$found")" build/unpack.log \
        dpkg-source --no-check --no-copy -x "$found" "$work"
}

unpack() {
    rm -rf "$work"
    mkdir -p "$work"
    if [ -z "${QEMU_SRC:-}" ]; then
        unpack_download
    elif [ -e "$QEMU_SRC/.git" ]; then
        copy_git_tree "$QEMU_SRC"
    elif [ -d "$QEMU_SRC" ]; then
        cp -a "$QEMU_SRC/." "$work"
    elif [ -f "$QEMU_SRC" ]; then
        tar -x -f "$QEMU_SRC" -C "$work" --strip-components=1 ||
            die "QEMU_SRC=$QEMU_SRC is not a tarball; $give"
    else
        die "QEMU_SRC=$QEMU_SRC does not exist; $give"
    fi
}

check() {
    local version dir what=${QEMU_SRC:-the download}

    version=$(cat "$work/VERSION" 2>/dev/null) ||
        die "$what is not QEMU's source (no file VERSION); $give"
    case $version in
    $release.*) ;;
    *) die "$what is QEMU $version, and the series is for $release.x; $give" ;;
    esac
    for dir in keycodemapdb berkeley-softfloat-3 berkeley-testfloat-3; do
        [ -e "$work/subprojects/$dir/meson.build" ] ||
            die "$what lacks subprojects/$dir: run \"meson subprojects download\" there, or use a release tarball."
    done
}

# The same source gives the same commit, whoever makes it and when.
commit() {
    export GIT_AUTHOR_NAME=QEMU GIT_AUTHOR_EMAIL=qemu-devel@nongnu.org
    export GIT_COMMITTER_NAME=QEMU GIT_COMMITTER_EMAIL=qemu-devel@nongnu.org
    export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z'
    export GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE

    rm -rf "$work/.git" "$work/.pc"
    git -C "$work" init -q -b main
    git -C "$work" config core.autocrlf false
    git -C "$work" config gc.auto 0       # no process stays behind
    git -C "$work" add -A -f
    git -C "$work" commit -q -m "QEMU $(cat "$work/VERSION")"
    git -C "$work" tag base
}

if [ -d "$src" ]; then
    if [ "${QEMU_SRC:-}" ] && [ "$QEMU_SRC" != "$(cat "$origin" 2>/dev/null)" ]; then
        die "$src was not made from QEMU_SRC=$QEMU_SRC: unset it, or remove build/$release and build/$release-stock first."
    fi
    exit 0
fi
unpack
check
commit
echo "${QEMU_SRC:-download}" >"$origin"
mv "$work" "$src"
