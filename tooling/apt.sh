#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes build/apt: package lists of our own, for use with apt-get -c
#
# It has the mirror of the machine's configuration, and in addition the
# backports (Debian 12's Meson is too old for QEMU) and the sources of sid,
# which have the QEMU we want.  The machine's own lists are not touched and
# may be empty; root is not needed.  Lists younger than an hour are kept.

set -euo pipefail
cd "$(dirname "$0")/.."
. /etc/os-release
apt=$PWD/build/apt
conf=$apt/apt.conf
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"

# What apt would fetch first, as 'MIRROR/dists/SUITE/InRelease'.
suites=$(apt-get update --print-uris |
         sed -n "s|^'\(.*\)/dists/\([^/]*\)/InRelease'.*|\1 \2|p" | sort -u)
mirror=$(echo "$suites" |
         sed -n "s/ \($VERSION_CODENAME\|stable\|oldstable\)$//p" | head -n 1)
if [ -z "$mirror" ]; then
    echo "error: apt is not configured for $ID ${VERSION_CODENAME:-}: add the" \
         "release to /etc/apt/sources.list." >&2
    exit 1
fi

{
    echo "$suites" | sed "/ $VERSION_CODENAME/!d; s/^/deb /; s/$/ main/"
    echo "deb $mirror $VERSION_CODENAME main"
    if [ "$VERSION_CODENAME" = bookworm ]; then
        echo "deb $mirror bookworm-backports main"
    fi
    echo "deb-src $mirror sid main"
} | sort -u >"$apt/sources.list.new"
cat >"$conf" <<END
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
END

if cmp -s "$apt/sources.list.new" "$apt/sources.list" &&
   [ "$(find "$apt/updated" -mmin -60 2>/dev/null)" ]; then
    exit 0
fi
mv "$apt/sources.list.new" "$apt/sources.list"
tooling/step.sh 'reading package lists' build/apt/update.log \
    apt-get -c "$conf" -o APT::Update::Error-Mode=any update
touch "$apt/updated"
