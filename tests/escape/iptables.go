// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// meshRules is what Istio's init container and CNI plugin write in REDIRECT mode with the defaults of its documentation ("Traffic
// capture", "Application Requirements"): all TCP out goes to 15001 but that of user and group 1337, all TCP in goes to 15006 but to the
// ports that the sidecar itself serves, and what the sidecar sends to its own pod comes in again. %[1]s is the address of loopback,
// %[2]s the one that the sidecar connects to the app from.
const meshRules = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:MESH_INBOUND - [0:0]
:MESH_REDIRECT - [0:0]
:MESH_IN_REDIRECT - [0:0]
:MESH_OUTPUT - [0:0]
-A MESH_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A MESH_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j MESH_INBOUND
-A MESH_INBOUND -p tcp --dport 15008 -j RETURN
-A MESH_INBOUND -p tcp --dport 15090 -j RETURN
-A MESH_INBOUND -p tcp --dport 15021 -j RETURN
-A MESH_INBOUND -p tcp --dport 15020 -j RETURN
-A MESH_INBOUND -p tcp -j MESH_IN_REDIRECT
-A OUTPUT -p tcp -j MESH_OUTPUT
-A MESH_OUTPUT -s %[2]s -o lo -j RETURN
-A MESH_OUTPUT -o lo ! -d %[1]s -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j MESH_IN_REDIRECT
-A MESH_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A MESH_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A MESH_OUTPUT -o lo ! -d %[1]s -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j MESH_IN_REDIRECT
-A MESH_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A MESH_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A MESH_OUTPUT -d %[1]s -j RETURN
-A MESH_OUTPUT -j MESH_REDIRECT
COMMIT
`

// writeMeshRules writes them into the network namespace of a process.
func writeMeshRules(ctx context.Context, pid int) error {
	for restore, addrs := range map[string][2]string{
		"iptables-restore":  {"127.0.0.1/32", "127.0.0.6/32"},
		"ip6tables-restore": {"::1/128", "::6/128"},
	} {
		cmd := exec.CommandContext(ctx, "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--", restore, "-w", "5")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(meshRules, addrs[0], addrs[1]))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", restore, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
