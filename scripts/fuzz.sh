#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target for a number of inputs, or a time: fuzz.sh 3000x
set -eu
time=${1:?how much, such as 3000x or 1m}
git grep -n '^func Fuzz' -- '*_test.go' | sed 's/^\([^:]*\):[0-9]*:func \([A-Za-z0-9_]*\).*/\1 \2/' |
	while read -r file target; do
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "./$(dirname "$file")" </dev/null || exit 1
	done
