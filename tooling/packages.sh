#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# usage: packages.sh LIST...
#
# Installs the packages in the LISTs that are missing
#
# Without root it prints the one command that does.  With nothing missing it
# does nothing, and needs no network.

set -euo pipefail
cd "$(dirname "$0")/.."
. /etc/os-release
apt=$PWD/build/apt/apt.conf
log=build/packages.log

# new_enough VERSION MINIMUM
new_enough() {
    dpkg --compare-versions "${1:-0}" ge "${2:-0}"
}

installed_version() {
    { dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null || true; } |
        sed -n 's/^installed //p' | head -n 1
}

release_version() {
    apt-cache -c "$apt" policy "$1" | sed -n 's/^ *Candidate: *//p'
}

missing=()
while read -r name _; do
    minimum=${name#*>=}
    if [ "$minimum" = "$name" ]; then
        minimum=0
    fi
    version=$(installed_version "${name%>=*}")
    if [ -z "$version" ] || ! new_enough "$version" "$minimum"; then
        missing+=("$name")
    fi
done < <(grep -hv '^#' "$@")
if [ ${#missing[@]} = 0 ]; then
    exit 0
fi

tooling/apt.sh
wanted=()
for name in "${missing[@]}"; do
    package=${name%>=*}
    if [ "$package" != "$name" ] &&
       ! new_enough "$(release_version "$package")" "${name#*>=}"; then
        package=$package/$VERSION_CODENAME-backports
    fi
    wanted+=("$package")
done
install=(apt-get -c "$apt" install -y --no-install-recommends "${wanted[@]}")
if [ "$(id -u)" != 0 ]; then
    echo 'error: packages are missing; this installs them:' >&2
    echo "sudo ${install[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
tooling/step.sh 'installing packages' "$log" \
    "${install[@]}" -o DPkg::Lock::Timeout=300
