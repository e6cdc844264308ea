#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: qemu.sh DIR WHAT [--FLAG...] [TARGET...]
#
# Configures (when needed) and builds DIR/obj from DIR/src.  WHAT is the
# build's name in messages; FLAGs are more flags for configure; the TARGETs
# are all that is built, if there are any.

set -euo pipefail
dir=$1 what=$2
shift 2
obj=$dir/obj
# All builds share objects in the cache.  Ninja has the compiler list each
# object's headers anyway: with that list (CCACHE_DEPEND), ccache need not run
# the preprocessor first, which makes a build with an empty cache a third shorter.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1

flags=(
    --target-list=x86_64-softmmu
    --disable-debug-info --extra-cflags=-g1     # enough for a backtrace
    --cc='ccache gcc' --python=/usr/bin/python3
    --disable-docs --disable-install-blobs --disable-download
    --firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu
    --without-default-features
    --enable-kvm --enable-tcg --enable-tools
    --enable-vhost-user --enable-vhost-net --enable-vhost-kernel
    --enable-vhost-user-blk-server
    --enable-slirp --enable-pixman --enable-gnutls --enable-fdt=system
)
while [[ ${1:-} == -* ]]; do
    flags+=("$1")
    shift
done

# A QEMU that runs from its build folder looks for firmware under qemu-bundle.
link_firmware() {
    local bundle=$obj/qemu-bundle

    mkdir -p "$bundle/usr/share" "$bundle/usr/lib/ipxe"
    ln -sfn /usr/share/qemu "$bundle/usr/share/qemu"
    ln -sfn /usr/share/seabios "$bundle/usr/share/seabios"
    ln -sfn /usr/lib/ipxe/qemu "$bundle/usr/lib/ipxe/qemu"
}

if [ ! -e "$obj/build.ninja" ] ||
   [ "${flags[*]}" != "$(cat "$obj/flags" 2>/dev/null)" ]; then
    mkdir -p "$obj"
    rm -f "$obj/flags"
    tooling/step.sh "configuring $what" "$dir/configure.log" \
        env -C "$obj" ../src/configure "${flags[@]}"
    echo "${flags[*]}" >"$obj/flags"
fi
tooling/step.sh "building $what" "$dir/build.log" ninja -C "$obj" "$@"
link_firmware
