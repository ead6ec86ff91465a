#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches Debian's stock kernels for the tests in tests/vm: the newest 6.1 of
# Debian 12 and the newest 6.12 of its backports. Nothing is installed: the
# packages are unpacked below the cache, one directory per release, holding
# vmlinuz and lib/modules/<release> with its modules.dep.
#
# Prints a line per kernel: its release and its directory.
#
#   SIDEGATE_CACHE        where to keep things (default ~/.cache/sidegate)
#   SIDEGATE_KERNEL_6_1   package for 6.1, e.g. linux-image-6.1.0-50-amd64
#   SIDEGATE_KERNEL_6_12  package for 6.12
#   SIDEGATE_KERNELS      packages to fetch instead of both, separated by spaces
set -eu

# depmod lives in sbin, which not every user has in the path.
PATH=$PATH:/usr/sbin:/sbin

kernels=${SIDEGATE_CACHE:-${HOME:?}/.cache/sidegate}/kernels

die() {
	echo "vm-kernels: $*" >&2
	exit 1
}

# newest PATTERN: the newest signed kernel package whose whole name matches.
newest() {
	name=$(apt-cache pkgnames linux-image-6. | grep -Ex "$1" | sort -V | tail -n 1)
	[ -n "$name" ] || die "apt knows no package $1: run 'apt-get update', with Debian 12's backports enabled"
	echo "$name"
}

# fetch PACKAGE: unpacks it unless it is there. The rename is the last step, so
# that a directory with a release's name is always whole.
fetch() {
	release=${1#linux-image-}
	dir=$kernels/$release
	if [ ! -d "$dir" ]; then
		tmp=$(mktemp -d "$kernels/.tmp.XXXXXX")
		echo "vm-kernels: fetching $1" >&2
		(
			cd "$tmp" &&
				apt-get -qq -o APT::Sandbox::User=root download "$1" >&2 &&
				dpkg -x ./*.deb unpacked
		) || die "fetch $1: see above"
		mkdir "$tmp/kernel"
		mv "$tmp/unpacked/boot/vmlinuz-$release" "$tmp/kernel/vmlinuz"
		mv "$tmp/unpacked/boot/config-$release" "$tmp/kernel/config"
		mv "$tmp/unpacked/lib" "$tmp/kernel/lib"
		depmod -b "$tmp/kernel" "$release"
		# Another run may have been faster; its directory is as good.
		mv -T "$tmp/kernel" "$dir" 2>/dev/null || [ -d "$dir" ] || die "move $dir into place"
		rm -rf "$tmp"
		tmp=
	fi
	echo "$release $dir"
}

for tool in apt-cache apt-get dpkg depmod; do
	command -v "$tool" >/dev/null || die "$tool is missing (Debian packages: apt, dpkg, kmod)"
done

tmp=
trap 'if [ -n "$tmp" ]; then rm -rf "$tmp"; fi' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$kernels"

packages=${SIDEGATE_KERNELS:-}
if [ -z "$packages" ]; then
	packages=${SIDEGATE_KERNEL_6_1:-$(newest 'linux-image-6\.1\.0-[0-9]+-amd64')}
	packages="$packages ${SIDEGATE_KERNEL_6_12:-$(newest 'linux-image-6\.12\.[0-9]+\+deb12-amd64')}"
fi
for package in $packages; do
	fetch "$package"
done
