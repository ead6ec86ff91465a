// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"sidegate/policy"
)

// networks lists n networks, none in another: n-1 of /24, as far from each other in 192.0.0.0/8 as can be, and the outside's
// address alone as the last.
func networks(n int) []string {
	const all = 1 << 16 // of /24 in a /8
	own := netip.MustParseAddr(outsideIP).As4()
	list := make([]string, 0, n)
	for i := range n - 1 {
		k := i * (all / n)
		if k == int(own[1])<<8|int(own[2]) {
			k++
		}
		list = append(list, fmt.Sprintf("192.%d.%d.0/24", k>>8, k&0xff))
	}
	return append(list, outsideIP+"/32")
}

// nested deals n networks to rules. Three have the outside's address: that of the first rule, which has no other, one in the middle,
// and the last, which is the longest.
func nested(n, rules int) [][]string {
	list := networks(n - 2)
	list = slices.Insert(list, n/2, "192.0.2.0/24")
	return append([][]string{{"192.0.0.0/8"}}, split(list, rules-1)...)
}

// split deals a list into n parts, of which the first ones have one more if it does not come out even.
func split[T any](list []T, n int) [][]T {
	var parts [][]T
	for i := range n {
		k := (len(list) + n - i - 1) / (n - i)
		parts, list = append(parts, list[:k]), list[k:]
	}
	return parts
}

// peers writes the networks of a rule.
func peers(list []string) string {
	return "[{cidr: " + strings.Join(list, "}, {cidr: ") + "}]"
}

// rulesOf writes one rule a part; what is sent is in the last one. key is to or from.
func rulesOf(b *strings.Builder, key string, parts [][]string, otherPort int) {
	for i, part := range parts {
		traffic := fmt.Sprintf("ports: [80, %d, %d]", otherPort, 8000+i)
		if i == len(parts)-1 {
			traffic = fmt.Sprintf("protocol: any, ports: [%d, %d, %d]", echoPort, sinkPort, callPort)
		}
		fmt.Fprintf(b, "    - {%s: %s, %s}\n", key, peers(part), traffic)
	}
}

// policyHead is a policy without rules. It is what a pod with HAProxy has.
func policyHead(name string) string {
	return fmt.Sprintf(`apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: %s
spec:
  redirect: {getsockname: original}
  sidecarPorts: [%d]
`, name, directTo)
}

// egressPolicy is a policy of this many rules for what the sidecar sends, about this many networks, and one for what it receives. Two
// with different ports differ in all rules.
func egressPolicy(name string, nets, rules, otherPort int) string {
	var b strings.Builder
	b.WriteString(policyHead(name) + "  rules:\n  - role: sidecar\n    ingress:\n    - {from: [{role: app}]}\n    egress:\n")
	if rules == 1 {
		fmt.Fprintf(&b, "    - {to: %s, protocol: any, ports: [%d, %d, %d, %d]}\n", peers(networks(nets)), echoPort, sinkPort, callPort, otherPort)
		return b.String()
	}
	rulesOf(&b, "to", split(networks(nets), rules), otherPort)
	return b.String()
}

// bothWaysPolicy is a policy about this many networks, for what the sidecar sends and receives, and for the app to call the sidecar.
// It has as many rules as networks, or as can be. The last rule of each list is the one that lets through what is measured.
func bothWaysPolicy(name string, nets int) string {
	if nets == 0 {
		return policyHead(name)
	}
	parts := nested(nets, min(nets/2, policy.MaxRules/2-1))
	var b strings.Builder
	b.WriteString(policyHead(name) + "  rules:\n  - role: sidecar\n    egress:\n")
	rulesOf(&b, "to", parts, 443)
	b.WriteString("    ingress:\n")
	rulesOf(&b, "from", parts, 443)
	fmt.Fprintf(&b, "    - {from: [{role: app}], ports: [%d]}\n", directTo)
	fmt.Fprintf(&b, "  - role: app\n    egress:\n    - {to: [{role: sidecar}], ports: [%d]}\n", directTo)
	return b.String()
}

// compile reads a policy.
func compile(text string) (*policy.Compiled, error) {
	list, err := policy.Parse("bench.yaml", []byte(text))
	if err != nil {
		return nil, err
	}
	return list[0].Compile()
}

// trieSteps counts the nodes of a longest-prefix trie that a lookup of addr meets, if the longest prefix there is addr alone: all that
// cover it, and one for each bit where others branch off.
func trieSteps(prefixes []netip.Prefix, addr netip.Addr) int {
	met := map[int]bool{}
	for _, p := range prefixes {
		met[min(p.Bits(), commonBits(p.Addr(), addr))] = true
	}
	return len(met)
}

// commonBits counts the leading bits that two IPv4 addresses share.
func commonBits(a, b netip.Addr) int {
	x, y := a.As4(), b.As4()
	return bits.LeadingZeros32(binary.BigEndian.Uint32(x[:]) ^ binary.BigEndian.Uint32(y[:]))
}

// stepsOf counts them for the outside's address.
func stepsOf(c *policy.Compiled) int {
	var list []netip.Prefix
	for _, p := range c.Prefixes {
		list = append(list, p.Prefix)
	}
	return trieSteps(list, netip.MustParseAddr(outsideIP))
}
