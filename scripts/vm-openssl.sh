#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches Debian 13's OpenSSL, with the libraries that it needs, for the tests in
# tests/vm: unlike Debian 12's it hands over both keys in TLS 1.3. Nothing is
# installed: the packages are unpacked below the cache. Quick when that was done
# before.
#
# Prints the directory that has them.
#
#   SIDEGATE_CACHE  where to keep things (default ~/.cache/sidegate)
set -eu

packages="openssl libssl3t64 libzstd1 zlib1g libc6"
cache=${SIDEGATE_CACHE:-${HOME:?}/.cache/sidegate}
dir=$cache/openssl-debian13

tmp=
cleanup() { [ -z "$tmp" ] || rm -rf "$tmp"; }
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# A list of its own: what is installed on this machine stays Debian 12's.
apt() {
	apt-get -qq -o Dir::Etc::sourcelist="$tmp/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State::lists="$tmp/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "$@" >&2
}

if [ ! -d "$dir" ]; then
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	mkdir -p "$tmp/lists/partial" "$tmp/packages"
	echo "deb http://deb.debian.org/debian trixie main" >"$tmp/sources.list"
	echo "vm-openssl: fetching $packages" >&2
	apt update
	cd "$tmp/packages"
	# shellcheck disable=SC2086 # a list
	apt download $packages
	for package in *.deb; do
		dpkg -x "$package" "$tmp/root"
	done
	# Another run may have been faster; its directory is as good.
	mv -T "$tmp/root" "$dir" 2>/dev/null || [ -d "$dir" ]
fi
echo "$dir"
