#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes build/BASE/src: a git tree of QEMU as released, with the tag "base"
#
# QEMU_SRC names a git tree, an unpacked tree or a tarball.  Without it,
# Debian's source package is downloaded.  A tree that is there is kept.

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

# Sets $dsc to the newest package of the release, downloading it if need be.
download() {
    local version

    mkdir -p $dl/partial
    dsc=$(find $dl -name "qemu_$release.*.dsc" | sort -V | tail -n 1)
    if [ "$dsc" ]; then
        return
    fi
    tooling/apt.sh || die "Debian's package lists could not be had; $give"
    version=$({ apt-cache -c build/apt/apt.conf showsrc --only-source qemu || true; } |
              sed -n "s/^Version: \(1:$release\..*\)/\1/p" | sort -V | tail -n 1)
    if [ -z "$version" ]; then
        die "the source packages in build/apt/sources.list have no QEMU $release; $give"
    fi
    tooling/step.sh "downloading QEMU $version" build/download.log \
        env -C $dl/partial apt-get -c "$PWD/build/apt/apt.conf" \
        source --download-only --only-source "qemu=$version" ||
        die "Debian's source package qemu $version could not be downloaded; $give"
    mv $dl/partial/* $dl/
    dsc=$(find $dl -name "qemu_$release.*.dsc" | sort -V | tail -n 1)
}

# Copies a git tree's HEAD, and those of Meson's subprojects that git ignores.
copy_git_tree() {
    git -C "$1" archive HEAD | tar -x -C $work
    for dir in "$1"/subprojects/*/; do
        cp -a -n "$dir" $work/subprojects/
    done
}

unpack() {
    rm -rf $work
    mkdir -p $work
    if [ -z "${QEMU_SRC:-}" ]; then
        download
        rmdir $work
        tooling/step.sh "unpacking $(basename "$dsc")" build/unpack.log \
            dpkg-source --no-check --no-copy -x "$dsc" $work
    elif [ -e "$QEMU_SRC/.git" ]; then
        copy_git_tree "$QEMU_SRC"
    elif [ -d "$QEMU_SRC" ]; then
        cp -a "$QEMU_SRC/." $work
    elif [ -f "$QEMU_SRC" ]; then
        tar -x -f "$QEMU_SRC" -C $work --strip-components=1 ||
            die "QEMU_SRC=$QEMU_SRC is not a tarball; $give"
    else
        die "QEMU_SRC=$QEMU_SRC does not exist; $give"
    fi
}

check() {
    local version dir

    version=$(cat $work/VERSION 2>/dev/null) ||
        die "${QEMU_SRC:-$dsc} is not QEMU's source (no file VERSION); $give"
    case $version in
    $release.*) ;;
    *) die "${QEMU_SRC:-$dsc} is QEMU $version, and the series is for $release.x; $give" ;;
    esac
    for dir in keycodemapdb berkeley-softfloat-3 berkeley-testfloat-3; do
        [ -e $work/subprojects/$dir/meson.build ] ||
            die "$QEMU_SRC lacks subprojects/$dir: run \"meson subprojects download\" there, or use a release tarball."
    done
}

# The same source gives the same commit, whoever makes it and when.
commit() {
    export GIT_AUTHOR_NAME=QEMU GIT_AUTHOR_EMAIL=qemu-devel@nongnu.org
    export GIT_COMMITTER_NAME=QEMU GIT_COMMITTER_EMAIL=qemu-devel@nongnu.org
    export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z'
    export GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE

    rm -rf $work/.git $work/.pc
    git -C $work init -q -b main
    git -C $work config core.autocrlf false
    git -C $work config gc.auto 0       # no process stays behind
    git -C $work add -A -f
    git -C $work commit -q -m "QEMU $(cat $work/VERSION)"
    git -C $work tag base
}

if [ -d $src ]; then
    if [ "${QEMU_SRC:-}" ] && [ "$QEMU_SRC" != "$(cat $origin 2>/dev/null)" ]; then
        die "$src was not made from QEMU_SRC=$QEMU_SRC: unset it, or remove build/$release and build/$release-stock first."
    fi
    exit 0
fi
unpack
check
commit
echo "${QEMU_SRC:-Debian}" >$origin
mv $work $src
