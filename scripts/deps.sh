#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what building and testing need on Debian 12. Quick when nothing is
# missing, and safe to run again.
#
#   deps.sh build      Go, if there is none that is new enough
#   deps.sh generate   clang and headers, for changing the BPF programs
#   deps.sh test       runtimes, proxies, kernels, and all of the above
#
# Prints the directory of the go command as its last line.
set -eu

cache=${SIDEGATE_CACHE:-${HOME:?}/.cache/sidegate}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$cache"

say() { echo "deps: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# Debian's packages start their services; these are for tests only.
policy=/usr/sbin/policy-rc.d
made_policy=
cleanup() { [ -z "$made_policy" ] || rm -f "$policy"; }
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# packages NAME...: installs those that are missing.
packages() {
	missing=
	for p in "$@"; do
		dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
	done
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || die "missing packages, run as root: apt-get install$missing"
	say "installing$missing"
	if [ ! -e "$policy" ]; then
		made_policy=1
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update >&2
	# shellcheck disable=SC2086 # a list
	apt-get -qq install -y --no-install-recommends $missing >"$cache/apt.log" 2>&1 || {
		tail -n 20 "$cache/apt.log" >&2
		die "cannot install$missing: see above"
	}
}

# The Go that go.mod asks for. From 1.21 on the go command fetches it by itself;
# Debian's is older, but can fetch the same module.
toolchain() {
	for go in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go"; do
		[ -x "$go" ] || continue
		case $("$go" env GOVERSION 2>/dev/null) in
		go1.2[1-9]* | go1.[3-9][0-9]*)
			dirname "$go"
			return
			;;
		esac
	done
	packages golang-1.19-go ca-certificates
	module=golang.org/toolchain@v0.0.1-$(sed -n 's/^toolchain //p' "$root/go.mod").linux-$(dpkg --print-architecture)
	say "fetching $module"
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	(cd "$tmp" && GOFLAGS=-modcacherw GOPATH=$tmp /usr/lib/go-1.19/bin/go mod download "$module") ||
		die "cannot fetch $module: is the Go module proxy reachable?"
	chmod -R +x "$tmp/pkg/mod/$module/bin" "$tmp/pkg/mod/$module/pkg/tool"
	mv -T "$tmp/pkg/mod/$module" "$cache/go" 2>/dev/null || [ -x "$cache/go/bin/go" ] || die "cannot move Go into place"
	rm -rf "$tmp"
	echo "$cache/go/bin"
}

generate() { packages clang-19 llvm-19 libbpf-dev linux-libc-dev clang-format; }

runtimes() {
	packages podman runc crun conmon netavark aardvark-dns catatonit \
		haproxy nginx-light libnginx-mod-stream wrk iperf3 tcpdump openssl python3-minimal libpython3-stdlib gnutls-bin curl wget busybox-static iproute2 iptables nftables \
		containernetworking-plugins libseccomp-dev pkg-config docker.io containerd \
		qemu-system-x86 kmod xz-utils gcc libc6-dev procps systemd
}

case ${1:-} in
build) ;;
generate) generate ;;
test)
	generate
	runtimes
	packages shellcheck groff-base
	"$root/scripts/vm-kernels.sh" >&2
	"$root/scripts/vm-openssl.sh" >/dev/null
	"$root/scripts/tools.sh" containerd >/dev/null
	"$root/scripts/tools.sh" docker >/dev/null
	"$root/scripts/tools.sh" compose >/dev/null
	;;
*) die "usage: deps.sh build|generate|test" ;;
esac
toolchain
