// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestParseConfig(t *testing.T) {
	c, err := parseConfig("x.yaml", []byte("hook: /opt/sidegate-oci-hook\nadopt: false\nignoreNamespaces: [kube-system]\nhookTimeoutSeconds: 30\n"))
	if err != nil || c.Hook != "/opt/sidegate-oci-hook" || c.Adopt || c.IgnoreNamespaces[0] != "kube-system" || c.HookTimeout != 30 || c.PolicyDir == "" {
		t.Errorf("got %+v, %v", c, err)
	}
	if c, err := parseConfig("x.yaml", []byte("# nothing\n")); err != nil || !c.Adopt || c.Hook != defaultHook {
		t.Errorf("empty: got %+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"hoook: /x\n":                           `x.yaml: [1:1] unknown field "hoook"`,
		"hook: /x\nadopt: perhaps\n":            "x.yaml: [2:8]",
		"hook: x\n":                             `x.yaml: hook: "x" is no absolute path`,
		"hookTimeoutSeconds: -1\n":              "hookTimeoutSeconds: -1 is negative",
		"logLevel: loud\n":                      `logLevel: "loud" is no level: write trace, debug`,
		"logFormat: xml\n":                      `logFormat: "xml" is no format: write text or json`,
		"policyDir: \"\"\nstateDir: relative\n": `policyDir: "" is no absolute path`,
		"ktlsDir: share\n":                      `ktlsDir: "share" is no absolute path`,
		"hook: [\n":                             "x.yaml: [1:",
	} {
		if _, err := parseConfig("x.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v, want %q", text, err, want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("hook: /x\nignoreNamespaces: [a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConfig("x.yaml", []byte(text))
		if err == nil && (c.Hook == "" || c.Hook[0] != '/') {
			t.Errorf("took %q for a hook", c.Hook)
		}
	})
}
