// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"sidegate/cgroups"
	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

// The page has all stages, and what moves its files.
func TestMan(t *testing.T) {
	const page = "../contrib/man/sidegate-oci-hook.8"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{
		"createRuntime", "prestart", "poststop", "precreate", cgroups.StateEnv, policy.DirEnv, ktls.HostDirEnv, cgroups.TLSSocketEnv, runtimeEnv, runtimeFile,
		cgroups.DefaultState, policy.DefaultDir,
	} {
		if !strings.Contains(string(text), word) {
			t.Errorf("%s does not have %s", page, word)
		}
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		return
	}
	if out, err := exec.Command(groff, "-ww", "-man", "-z", page).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}
