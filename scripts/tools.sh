#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds the runtimes that tests run from their modules (tests/tools/go.mod), and
# prints the directory that has them. Quick when it was done before.
set -eu

cache=${SIDEGATE_CACHE:-${HOME:?}/.cache/sidegate}/tools
root=$(cd "$(dirname "$0")/.." && pwd)
go=$("$root/scripts/deps.sh" build)
export PATH="$go:$PATH"
cd "$root/tests/tools"
key=$( (cat go.mod go.sum "$root/scripts/tools.sh" && go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/$key
if [ ! -d "$dir" ]; then
	echo "tools: building containerd and runc; this takes some minutes, once" >&2
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 1' HUP INT TERM
	containerd=github.com/containerd/containerd/v2
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$tmp/" \
		$containerd/cmd/containerd $containerd/cmd/containerd-shim-runc-v2 $containerd/cmd/ctr >&2
	CGO_ENABLED=1 go build -trimpath -tags seccomp -ldflags '-s -w' -o "$tmp/" github.com/opencontainers/runc >&2
	chmod 755 "$tmp"
	mv -T "$tmp" "$dir" 2>/dev/null || [ -d "$dir" ] # another one may have been first
fi
echo "$dir"
