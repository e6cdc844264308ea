#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: windows.sh DIR
#
# Compiles for Windows what the series changes, and all of chardev/, from
# DIR/src into DIR/obj.
#
# Debian has no GLib for Windows, and so nothing is linked.  The headers are
# those of Linux, with a configuration as on 64-bit Windows.

set -euo pipefail
dir=$1
obj=$dir/obj
glib=$PWD/$dir/glib

# What differs: long has 32 bits, and the system is another one.
glib_configuration() {
    sed -e '/^typedef /s/ long / long long /' \
        -e 's/##L)/##LL)/; s/##UL)/##ULL)/' \
        -e '/_\(MODIFIER\|FORMAT\)/s/"l/"ll/' \
        -e '/SIZEOF_LONG/s/8/4/' \
        -e '/^#define G_M.*SIZE/{s/MAXULONG/MAXUINT64/;s/LONG/INT64/}' \
        -e '/POINTER/{s/(glong)/(gint64)/;s/(gulong)/(guint64)/}' \
        -e '/^#define GU*LONG_TO/s/64/32/' \
        -e 's/define G_OS_UNIX/define G_OS_WIN32\n#define G_PLATFORM_WIN32/' \
        -e 's/IMPL_POSIX/IMPL_WIN32/; /GNUC_VISIBILITY 1/d' \
        -e 's/typedef int GPid/typedef void *GPid/' \
        -e '/AF_INET6/s/10/23/; s/"so"/"dll"/' \
        -e "s/DIR_SEPARATOR '.*/DIR_SEPARATOR '\\\\\\\\'/" \
        -e "s/SEARCHPATH_SEPARATOR '.*/SEARCHPATH_SEPARATOR ';'/" \
        "$(pkg-config --variable=libdir glib-2.0)/glib-2.0/include/glibconfig.h"
}

# glib_package NAME
glib_package() {
    cat <<END
includedir=$glib
bindir=$glib
Name: $1
Description: headers only
Version: $(pkg-config --modversion glib-2.0)
Cflags: -I$glib -I$(pkg-config --variable=includedir glib-2.0)/glib-2.0
END
}

configure() {
    mkdir -p "$glib" "$obj"
    glib_configuration >"$glib/glibconfig.h"
    for name in glib-2.0 gmodule-export-2.0 gmodule-no-export-2.0; do
        glib_package $name >"$glib/$name.pc"
    done
    PKG_CONFIG=pkg-config PKG_CONFIG_LIBDIR=$glib \
        tooling/step.sh 'configuring QEMU for Windows' "$dir/configure.log" \
        env -C "$obj" ../src/configure --cross-prefix=x86_64-w64-mingw32- \
        --cc='ccache x86_64-w64-mingw32-gcc' \
        --python=/usr/bin/python3 --target-list=x86_64-softmmu \
        --disable-docs --disable-install-blobs --disable-download \
        --without-default-features --enable-tcg --enable-tools \
        --enable-colo-proxy --disable-fdt --enable-werror
}

# The objects of chardev/ and of what the series changes, as far as they are
# part of this QEMU.
objects() {
    {
        echo '/chardev_'
        git -C "$dir/src" diff --name-only base HEAD -- '*.c' |
            sed 's|/|_|g; s|.*|/&.obj$|'
    } >"$dir/patterns"
    ninja -C "$obj" -t inputs qemu-system-x86_64.exe | grep -f "$dir/patterns"
}

[ -e "$obj/build.ninja" ] || configure
mapfile -t objects < <(objects)
tooling/step.sh 'compiling for Windows' "$dir/build.log" \
    ninja -C "$obj" "${objects[@]}"
