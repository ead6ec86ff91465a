#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# both.sh FIRST SECOND   runs two commands at a time. It fails if either does, when both have ended.
set -eu

sh -c "$1" &
first=$!
status=0
sh -c "$2" || status=$?
wait "$first" || status=$?
exit "$status"
