#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs from Debian what is missing, and nothing if nothing is. usage: scripts/install-deps.sh build|test
# Needs root or sudo only when something is missing.
set -euo pipefail

build="meson ninja-build pkg-config gcc libc6-dev libfuse3-dev fuse3 libcurl4-openssl-dev libsqlite3-dev libssl-dev libjansson-dev libmicrohttpd-dev libzstd-dev libxxhash-dev
       libutf8proc-dev libsodium-dev curl ca-certificates"
tests="libcmocka-dev python3 python3-pytest python3-hypothesis python3-yaml python3-requests python3-jsonschema protobuf-compiler openssl sqlite3 git rsync vim-tiny attr acl plocate tar zstd procps
       clang libclang-rt-14-dev e2fsprogs xfsprogs"

case "${1:-}" in
build) want=$build ;;
test) want="$build $tests" ;;
*) echo "usage: $0 build|test" >&2; exit 2 ;;
esac

# dpkg-query fails if it has never heard of one of them; what it knows is printed all the same
have=" $({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' $want 2>/dev/null || true; } | sed -n 's/^installed //p' | tr '\n' ' ') "
missing=
for package in $want; do
        [[ $have == *" $package "* ]] || missing+=" $package"
done
[ -n "$missing" ] || exit 0

root=
if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "these packages are missing and there is no sudo: run as root, or: apt-get install$missing" >&2; exit 1; }
        root=sudo
fi
echo "installing from Debian:$missing"
export DEBIAN_FRONTEND=noninteractive
apt_get() {
        $root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@"
}
# The package lists may be absent (fresh container) or old: refresh them if the first try does not find everything.
if ! apt_get install -y --no-install-recommends $missing >/dev/null 2>&1; then
        apt_get update >/dev/null
        apt_get install -y --no-install-recommends $missing >/dev/null
fi
