// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"fmt"
	"strings"
	"testing"

	"sidegate/policy"
)

// TestLimitsOfAPolicy: as many networks, and as many rules, as may be, applied to
// a running pod, with what is allowed at their very end.
func TestLimitsOfAPolicy(t *testing.T) {
	m := newMeshPod(t, parse(t, "  nonTCP: deny\n"))
	var networks, rules strings.Builder
	for i := range policy.MaxPrefixes - 1 {
		fmt.Fprintf(&networks, "      - cidr: 10.%d.%d.0/24\n", i/256, i%256)
	}
	networks.WriteString("      - cidr: 192.0.2.1/32\n")
	for i := range policy.MaxRules - 1 {
		fmt.Fprintf(&rules, "    - {to: [{cidr: 10.%d.%d.0/24}], ports: [%d]}\n", i/256, i%256, 1000+i)
	}
	rules.WriteString("    - {to: [{cidr: 192.0.2.1/32}], ports: [80]}\n")
	for name, spec := range map[string]string{
		"networks": "  rules:\n  - role: sidecar\n    egress:\n    - to:\n" + networks.String() + "      ports: [80]\n",
		"rules":    "  rules:\n  - role: sidecar\n    egress:\n" + rules.String(),
	} {
		t.Run(name, func(t *testing.T) {
			m.apply(spec)
			wantBanner(t, "sidecar to the last", dial(t, m.sidecar, "tcp", outside4+":80"), "outside")
			wantErr(t, "sidecar to another port", dial(t, m.sidecar, "tcp", outside4+":81"), "EPERM")
			wantErr(t, "sidecar to another address", dial(t, m.sidecar, "tcp", "["+outside6+"]:80"), "EPERM")
		})
	}
}
