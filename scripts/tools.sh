#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds the runtimes that tests run from their modules, and prints the directory
# that has them. Quick when it was done before.
#
#   tools.sh [containerd]   containerd, its shim, ctr and runc: tests/tools/go.mod
#   tools.sh docker         dockerd, docker-proxy and docker: tests/tools/docker/go.mod
#   tools.sh compose        docker-compose: tests/tools/compose/go.mod
set -eu

cache=${SIDEGATE_CACHE:-${HOME:?}/.cache/sidegate}/tools
root=$(cd "$(dirname "$0")/.." && pwd)
go=$("$root/scripts/deps.sh" build)
export PATH="$go:$PATH"

# Each builds into the directory $1.
containerd() {
	module=github.com/containerd/containerd/v2
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/" \
		$module/cmd/containerd $module/cmd/containerd-shim-runc-v2 $module/cmd/ctr
	CGO_ENABLED=1 go build -trimpath -tags seccomp -ldflags '-s -w' -o "$1/" github.com/opencontainers/runc
}

docker() {
	version() { go list -m -f '{{.Version}}' "$1" | sed 's/^v//; s/+.*//'; }
	moby=github.com/moby/moby/v2
	cli=github.com/docker/cli
	# The command line has no go.mod, and asks for the Go that it is written in only in some of its files.
	CGO_ENABLED=0 go build -trimpath -o "$1/" -gcflags "$cli/...=-lang=go1.26" \
		-ldflags "-s -w -X $moby/dockerversion.Version=$(version $moby) -X $cli/cli/version.Version=$(version $cli)" \
		$moby/cmd/dockerd $moby/cmd/docker-proxy $cli/cmd/docker
}

compose() {
	module=github.com/docker/compose/v5
	CGO_ENABLED=0 go build -trimpath -o "$1/docker-compose" \
		-ldflags "-s -w -X $module/internal.Version=$(go list -m -f '{{.Version}}' $module)" $module/cmd
}

what=${1:-containerd}
case $what in
containerd) cd "$root/tests/tools" ;;
docker | compose) cd "$root/tests/tools/$what" ;;
*)
	echo "usage: tools.sh [containerd|docker|compose]" >&2
	exit 1
	;;
esac
# What one is built from, so that a change to one rebuilds no other.
key=$( (cat go.mod go.sum && sed -n "/^$what()/,/^}/p" "$root/scripts/tools.sh" && go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/$key
if [ ! -d "$dir" ]; then
	echo "tools: building $what; this takes some minutes, once" >&2
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 1' HUP INT TERM
	"$what" "$tmp" >&2
	chmod 755 "$tmp"
	mv -T "$tmp" "$dir" 2>/dev/null || [ -d "$dir" ] # another one may have been first
fi
echo "$dir"
