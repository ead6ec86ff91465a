// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package runtimes

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// An app whose namespace has no route at all. Its connection is refused by the
// sidecar that is not there, not unreachable: it was redirected. The sidecar's
// port is the sidecar's.
const appScript = `
busybox nc 203.0.113.1 80 </dev/null 2>&1 | busybox grep -q refused || exit 10
busybox httpd -p 127.0.0.1:15001 -h / 2>/dev/null && exit 11
exit 7`

// A container that is left alone: nothing is rewritten, everything is allowed.
const otherScript = `
busybox nc 203.0.113.1 80 </dev/null 2>&1 | busybox grep -q unreachable || exit 10
busybox httpd -p 127.0.0.1:15001 -h / 2>/dev/null || exit 11
exit 8`

func init() {
	create, stop := []string{"createRuntime"}, []string{"poststop"}
	hookCases = []hookCase{
		{
			name: "app", createArgs: create, stopArgs: stop,
			annotations: map[string]string{"sidegate/role": "app"},
			script:      appScript, code: 7, check: nothingLeft,
		},
		{
			name: "not annotated", createArgs: create, stopArgs: stop,
			script: otherScript, code: 8, check: nothingLeft,
		},
		{
			name: "wrong role", createArgs: create, stopArgs: stop,
			annotations: map[string]string{"sidegate/role": "boss"},
			script:      "exit 0", code: -1, shown: "sidegate/role", check: nothingLeft,
		},
		{
			name: "no sidecar in time", createArgs: create, stopArgs: stop,
			annotations: map[string]string{"sidegate/role": "app", "sidegate/wait": "200ms"},
			script:      "exit 0", code: -1, shown: "did not listen", check: nothingLeft,
		},
	}
}

// nothingLeft checks that the kernel has forgotten the container and its pod.
func nothingLeft(t *testing.T, _ *bundle) {
	t.Helper()
	for _, dir := range []string{"containers", "pods"} {
		entries, err := os.ReadDir("/sys/fs/bpf/sidegate/v1/" + dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || len(entries) > 0 {
			t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
}
