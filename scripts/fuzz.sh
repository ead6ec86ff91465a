#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target for a number of inputs, or a time: fuzz.sh 3000x. Two at a time, each with one worker: most of
# their time is building, and that of one package is single for all of its targets.
set -eu
time=${1:?how much, such as 3000x or 1m}
corpus=$(go env GOCACHE)/fuzz
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
# shellcheck disable=SC2016 # for the inner shell
git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u |
	xargs -P 2 -I @ sh -euc '
		pkg=@
		exe=$2/$(echo "$pkg" | tr / -).test
		go test -c -vet=off -fuzz . -o "$exe" "./$pkg"
		cd "$pkg"
		sed -n "s/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p" ./*_test.go | while read -r target; do
			echo "fuzz: $pkg $target"
			"$exe" -test.run "^\$" -test.fuzz "^$target\$" -test.fuzztime "$1" -test.fuzzminimizetime 10x \
				-test.parallel 1 -test.fuzzcachedir "$3/sidegate/$pkg" </dev/null || exit 255
		done
	' sh "$time" "$bin" "$corpus"
