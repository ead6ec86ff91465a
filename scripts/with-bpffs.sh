#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command where there is a BPF file system on /sys/fs/bpf: the machine's,
# or one that goes away with the command.
set -eu
if [ "$(stat -f -c %T /sys/fs/bpf 2>/dev/null)" = bpf_fs ] || [ "$(id -u)" != 0 ]; then
	exec "$@"
fi
# shellcheck disable=SC2016 # for the inner shell
exec unshare --mount sh -c 'mount -t bpf bpf /sys/fs/bpf && exec "$@"' sh "$@"
