#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: download.sh DIR
#
# Downloads QEMU's source into DIR: Debian's source package (a .dsc file and two
# tarballs), or QEMU's own release tarball.
#
# Three places are tried in this order:
# - the package index of the machine's Debian mirror;
# - the pool of that mirror, which keeps a package for some time after the index
#   has a newer one;
# - the releases of the QEMU project, below QEMU_RELEASES.
# Files are kept only if they have the SHA-256 checksums of patches/base.sha256.

# shellcheck disable=SC2317       # try() calls the functions from_*

set -euo pipefail
cd "$(dirname "$0")/.."
dir=$1
partial=$dir/partial
log=build/download.log          # of the place tried last
sums=patches/base.sha256
releases=${QEMU_RELEASES:-https://download.qemu.org}
apt=$PWD/build/apt/apt.conf
package=$(sed -n 's/^[^ ]* *\(qemu_.*\)\.dsc$/\1/p' "$sums")      # qemu_VERSION
version=1:${package#qemu_}
tarball=$(sed -n 's/^[^ ]* *\(qemu-.*\)$/\1/p' "$sums")

# verified DIR NAME...: are these files there, with the right contents?
verified() {
    local name

    for name in "${@:2}"; do
        (cd "$1" && sha256sum --check --strict --status) \
            < <(grep -F "  $name" "$sums") 2>/dev/null || return 1
    done
}

# fetch URL NAME...: downloads these files below the URL; fails if one is not
# there, or is another one.
fetch() {
    local name sum

    for name in "${@:2}"; do
        sum=$(grep -F "  $name" "$sums")
        /usr/lib/apt/apt-helper -c "$apt" download-file "$1/$name" \
            "$partial/$name" "SHA256:${sum%% *}" || return 1
    done
}

from_index() {
    # Reading the lists again may fail, and the older lists be good enough.
    tooling/apt.sh || true
    apt-cache -c "$apt" showsrc --only-source qemu
    env -C "$partial" apt-get -c "$apt" source --download-only \
        --only-source "qemu=$version"
}

from_pool() {
    local mirror

    mirror=$(sed -n 's/^deb-src \([^ ]*\) .*/\1/p' build/apt/sources.list)
    fetch "$mirror/pool/main/q/qemu" "${files[@]}"
}

from_releases() {
    fetch "$releases" "$tarball"
}

mapfile -t files < <(sed -n 's/^[^ ]* *\(qemu_\)/\1/p' "$sums")
if verified "$dir" "${files[@]}" || verified "$dir" "$tarball"; then
    exit 0
fi

# try PLACE NAME FUNCTION FILE...
try() {
    echo "downloading $2 from $1 (log: $log)..."
    rm -rf "$partial"
    mkdir -p "$partial"
    if ! "$3" >$log 2>&1 </dev/null; then
        tried+=("$1: $(grep -m 1 '^E: ' $log || tail -n 1 $log)")
    elif ! verified "$partial" "${@:4}"; then
        tried+=("$1: the files do not have the checksums in $sums")
    else
        mv "$partial"/* "$dir/"
        exit 0
    fi
}

tried=()
try "the package index" "$package" from_index "${files[@]}"
try "the mirror's pool" "$package" from_pool "${files[@]}"
try "$releases" "$tarball" from_releases "$tarball"
echo "error: QEMU's source could not be downloaded:" >&2
printf '  %s\n' "${tried[@]}" >&2
exit 1
