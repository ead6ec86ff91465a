#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target for a short time: fuzz.sh 5s
set -eu
time=${1:?how long, such as 5s}
git grep -n '^func Fuzz' -- '*_test.go' | sed 's/^\([^:]*\):[0-9]*:func \([A-Za-z0-9_]*\).*/\1 \2/' |
	while read -r file target; do
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "./$(dirname "$file")" </dev/null || exit 1
	done
