#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes the guest's kernel and initial file systems in build/guest/
#
#   vmlinuz    Debian's kernel for virtual machines, downloaded, not installed
#   initrd     busybox, the virtio drivers, our init and blkverify
#   initrd-fio the same and fio with its libraries (Debian has no static one,
#              and they are large, so that only those who want it load it)
#
# Run "meson compile -C build/meson" first: it builds blkverify.  Nothing is
# done when nothing has changed; the network is used only for a kernel that
# is not there yet.  GUEST_KERNEL_DEB=FILE gives another kernel package.

set -euo pipefail

cd "$(dirname "$0")/.."
out=build/guest
apt=$PWD/build/apt/apt.conf
init=guest/init
blkverify=build/meson/guest/blkverify
drivers=(virtio_pci virtio_blk virtio_console)

die() {
    echo "error: $*." >&2
    exit 1
}

need() {
    [ -e "$1" ] || die "$1 is missing: $2"
}

# linux-image-cloud-amd64 is empty; it depends on the package with the kernel.
kernel_package() {
    apt-cache -c "$apt" depends linux-image-cloud-amd64 |
        awk '$1 == "Depends:" { print $2; exit }'
}

# download_kernel: gets the kernel package of this release, sets $deb.
download_kernel() {
    local package

    scripts/apt.sh
    package=$(kernel_package)
    [ "$package" ] || die 'apt has no linux-image-cloud-amd64: give another' \
                          'kernel package by GUEST_KERNEL_DEB=FILE'
    mkdir -p "$out/download"
    echo "downloading the guest's kernel ($package)"
    (cd "$out/download" && apt-get -c "$apt" download "$package") \
        >"$out/download.log" 2>&1 ||
        die "cannot download $package (log: $out/download.log): give a kernel" \
            'package by GUEST_KERNEL_DEB=FILE'
    deb=$out/$(basename "$out/download/$package"_*.deb)
    mv "$out/download/$package"_*.deb "$deb"
}

unpack_kernel() {
    rm -rf "$out/kernel"
    dpkg -x "$deb" "$out/kernel"
    version=$(ls "$out/kernel/lib/modules")
    busybox depmod -b "$PWD/$out/kernel" "$version"
}

# install_drivers ROOT: copies the drivers and what they depend on.
install_drivers() {
    local modules=lib/modules/$version driver file

    for driver in "${drivers[@]}"; do
        # None where the kernel has the driver built in.
        grep "/$driver\.ko" "$out/kernel/$modules/modules.dep" | tr -d : || true
    done | tr ' ' '\n' | sort -u | while read -r file; do
        install -D -m 644 "$out/kernel/$modules/$file" "$1/$modules/$file"
    done
    install -m 644 "$out/kernel/$modules/modules.builtin" "$1/$modules/"
    busybox depmod -b "$1" "$version"
}

# install_fio ROOT: copies fio and its libraries, at the paths they have here.
install_fio() {
    local file

    ldd "$fio" | grep -o '/[^ ]*' | while read -r file; do
        install -D "$file" "$1$file"
    done
    install -D "$fio" "$1/bin/fio"
}

archive() {
    (cd "$1" && find . | sort | cpio --quiet -o -H newc -R 0:0)
}

mkdir -p "$out"
need "$blkverify" 'run ./run check, or meson compile -C build/meson'
busybox=$(command -v busybox) || die 'install the package busybox-static'
fio=$(command -v fio) || die 'install the package fio'
command -v cpio >/dev/null || die 'install the package cpio'
ldd "$busybox" >/dev/null 2>&1 && die 'install busybox-static in place of busybox'

deb=${GUEST_KERNEL_DEB:-$(find "$out" -maxdepth 1 -name '*.deb' | head -n 1)}
if [ -z "$deb" ]; then
    download_kernel
fi
need "$deb" 'GUEST_KERNEL_DEB must name a kernel package'

inputs=$(sha256sum guest/build-image.sh "$init" "$blkverify" "$busybox" "$fio" "$deb")
if [ "$inputs" = "$(cat "$out/inputs" 2>/dev/null)" ]; then
    exit 0
fi
rm -f "$out/inputs"

echo 'making the guest image'
unpack_kernel
root=$out/root
rm -rf "$root" "$out/root-fio"
install -D "$busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install "$init" "$root/init"
install -s "$blkverify" "$root/bin/blkverify"
install_drivers "$root"
install_fio "$out/root-fio"
archive "$root" >"$out/initrd"
# The kernel unpacks archives that follow one another into one tree.
{ cat "$out/initrd"; archive "$out/root-fio"; } >"$out/initrd-fio"
cp "$out"/kernel/boot/vmlinuz-* "$out/vmlinuz"
rm -rf "$root" "$out/root-fio" "$out/kernel"
echo "$inputs" >"$out/inputs"
