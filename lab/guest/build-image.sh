#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes the guest's kernel and file systems in build/guest/
#
#   vmlinuz    Debian's kernel for virtual machines, downloaded, not installed
#   initrd     busybox, the virtio drivers, our init, blkverify and storebuffer
#   initrd-fio the files of initrd, and fio with its libraries; it is an image
#              of its own since these are large, and slow to boot
#   root.img   a disk with an ext4 file system that has the same files; copy it
#              before use
#
# Run "meson compile -C build/meson" first: it builds our programs.  The script
# does nothing if its inputs have not changed.  It uses the network only to
# download the kernel once.  GUEST_KERNEL_DEB=FILE gives another kernel package.

set -euo pipefail

cd "$(dirname "$0")/../.."
out=build/guest
apt=$PWD/build/apt/apt.conf
init=lab/guest/init
programs=(build/meson/lab/guest/{blkverify,storebuffer})
drivers=(virtio_pci virtio_blk virtio_console ext4 crc32c_generic)
disk_size=192M

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

    tooling/apt.sh
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
        # grep finds nothing if the driver is built into the kernel.
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

# install_base ROOT: makes the folders, and copies what is in each file system.
install_base() {
    local applet

    mkdir -p "$1"/{bin,dev,mnt,proc,sbin,sys,tmp,var}
    for applet in $("$busybox" --list); do
        ln -s busybox "$1/bin/$applet"
    done
    # This replaces a link of that name.
    install "$busybox" "$1/bin/busybox"
    install -s "${programs[@]}" "$1/bin"
}

archive() {
    (cd "$1" && find . | sort | cpio --quiet -o -H newc -R 0:0)
}

# make_disk ROOT FILE: makes a disk with the files below ROOT, without mounting.
# With lazy initialization the guest's kernel would write in the background.
make_disk() {
    truncate -s "$disk_size" "$2"
    "$mke2fs" -q -t ext4 -b 4096 -d "$1" -L root \
        -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 \
        "$2"
}

mkdir -p "$out"
for program in "${programs[@]}"; do
    need "$program" 'run ./run check, or meson compile -C build/meson'
done
busybox=$(command -v busybox) || die 'install the package busybox-static'
fio=$(command -v fio) || die 'install the package fio'
mke2fs=$(PATH=$PATH:/sbin command -v mke2fs) || die 'install the package e2fsprogs'
command -v cpio >/dev/null || die 'install the package cpio'
ldd "$busybox" >/dev/null 2>&1 && die 'install busybox-static in place of busybox'

deb=${GUEST_KERNEL_DEB:-$(find "$out" -maxdepth 1 -name '*.deb' | head -n 1)}
if [ -z "$deb" ]; then
    download_kernel
fi
need "$deb" 'GUEST_KERNEL_DEB must name a kernel package'

inputs=$(sha256sum lab/guest/build-image.sh "$init" "${programs[@]}" "$busybox" "$fio" "$deb")
if [ "$inputs" = "$(cat "$out/inputs" 2>/dev/null)" ]; then
    exit 0
fi
rm -f "$out/inputs"

echo 'making the guest image'
unpack_kernel
new=$out/new root=$out/root fio_root=$out/root-fio disk=$out/disk
rm -rf "$new" "$root" "$fio_root" "$disk"
mkdir "$new"
install_base "$root"
install "$init" "$root/init"
install_drivers "$root"
install_fio "$fio_root"
install_base "$disk"
install "$init" "$disk/sbin/init"
cp -a "$fio_root/." "$disk"
archive "$root" >"$new/initrd"
# The kernel unpacks archives that follow one another into one tree.
{ cat "$new/initrd"; archive "$fio_root"; } >"$new/initrd-fio"
make_disk "$disk" "$new/root.img"
cp "$out"/kernel/boot/vmlinuz-* "$new/vmlinuz"
# Renaming keeps the old files for QEMUs that have them open.
mv "$new"/* "$out"
rm -rf "$new" "$root" "$fio_root" "$disk" "$out/kernel"
echo "$inputs" >"$out/inputs"
