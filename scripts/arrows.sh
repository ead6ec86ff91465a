#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Checks who imports whom: front-ends -> cgroups -> bpf, policy; never back,
# and no front-end another.
set -eu
bad=0
# forbid PACKAGE PATTERN...: no package below PACKAGE imports one that matches.
forbid() {
	from=$1
	shift
	for pattern in "$@"; do
		# shellcheck disable=SC2016 # a Go template
		found=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} -> {{.}}
{{end}}' "./$from/..." | grep -E -- "-> sidegate/$pattern(/|\$)" | grep -v -- "-> sidegate/$from/" || true)
		if [ -n "$found" ]; then
			echo "arrows: not allowed: $found"
			bad=1
		fi
	done
}
forbid bpf policy cgroups observe oci-hook nri dockerplugin cmd
forbid policy bpf cgroups observe oci-hook nri dockerplugin cmd
forbid cgroups observe oci-hook nri dockerplugin cmd
forbid observe oci-hook nri dockerplugin cmd
forbid oci-hook observe nri dockerplugin cmd bpf
forbid nri oci-hook dockerplugin cmd bpf
forbid dockerplugin oci-hook nri cmd bpf
forbid cmd oci-hook nri dockerplugin
exit $bad
