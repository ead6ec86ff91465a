#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Style and static checks. Prints what is wrong and fails.
set -eu
bad=0
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
if [ -n "$unformatted" ]; then
	echo "gofmt would change:" "$unformatted"
	bad=1
fi
go vet ./... || bad=1
go vet -tags transparency ./tests/vm || bad=1
go tool staticcheck ./... || bad=1
scripts/arrows.sh || bad=1
if command -v clang-format >/dev/null; then
	git ls-files -z 'bpf/*.c' 'bpf/*.h' | xargs -0 clang-format --dry-run -Werror || bad=1
fi
if command -v shellcheck >/dev/null; then
	shellcheck scripts/*.sh .ci/run || bad=1
fi
exit $bad
