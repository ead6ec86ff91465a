// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

const header = "apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: big}\nspec:\n"

// lines writes n of them.
func lines(n int, line func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(line(i) + "\n")
	}
	return b.String()
}

// The functions below write policies that have n of something.

func manyCIDRs(n int) string {
	return header + "  rules:\n  - role: app\n    egress:\n    - to:\n" + lines(n, func(i int) string {
		return fmt.Sprintf("      - cidr: 10.%d.%d.0/24", i/250, i%250)
	})
}

func manyRules(n int) string {
	return header + "  rules:\n  - role: app\n    egress:\n" + lines(n, func(i int) string {
		return fmt.Sprintf("    - {to: [{cidr: 11.0.0.0/8}, {cidr: 10.%d.%d.0/24}], ports: [%d]}", i/250, i%250, i+1)
	})
}

func manyNames(n int) string {
	return header + "  rules:\n" + lines(n, func(i int) string {
		return fmt.Sprintf("  - {container: c%d, egress: []}", i)
	})
}

func inline(words string, n int, item func(i int) string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = item(i)
	}
	return header + "  rules:\n  - role: app\n    " + strings.ReplaceAll(words, "$", strings.Join(items, ", ")) + "\n"
}

func manyPorts(n int) string {
	return inline("egress: [{ports: [$]}]", n, func(i int) string { return strconv.Itoa(1000 + 2*i) })
}

func manyUnix(n int) string {
	return inline("unix: {allow: [$]}", n, func(i int) string { return fmt.Sprintf("{path: /run/%d}", i) })
}

func manyUnixPeers(n int) string {
	return inline("unix: {allow: [{path: /x, to: [$]}]}", n, func(i int) string { return fmt.Sprintf("{container: c%d}", i) })
}

func manyProcesses(n int) string {
	return inline("processes: [$]", n, func(i int) string { return fmt.Sprintf("/bin/%d", i) })
}

// manyEntries are n of them, or one less: 250 of each of 1,000 rules, and one more of the last.
func manyEntries(n int) string {
	ports := lines(62, func(i int) string { return fmt.Sprintf("%d-%d,", 8*i+1, 8*i+6) }) // of 4 entries
	ports = strings.ReplaceAll(ports, "\n", " ") + "1000, "
	return header + "  rules:\n  - role: app\n    egress:\n" + lines(MaxRules, func(i int) string {
		last := "2000"
		if n > MaxEntries && i == MaxRules-1 {
			last = "2000-2002"
		}
		return fmt.Sprintf("    - {to: [{cidr: 10.%d.%d.0/24}], ports: [%s%s]}", i/250, i%250, ports, last)
	})
}

func pattern(n int) string {
	return inline("unix: {allow: [$]}", 1, func(int) string { return "{path: /" + strings.Repeat("x", n-1) + "}" })
}

func executable(n int) string {
	return inline("processes: [$]", 1, func(int) string { return "/" + strings.Repeat("x", n-1) })
}

// tls writes rules of http, $ being n items.
func tls(words string, n int, item func(i int) string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = item(i)
	}
	return header + "  tls:\n    mode: inspect\n    http:\n      default: deny\n      rules:\n" + strings.ReplaceAll(words, "$", strings.Join(items, ", ")) + "\n"
}

func tlsRule(field string, item func(i int) string) func(n int) string {
	return func(n int) string {
		return tls("      - {name: a, action: allow, "+field+": [$]}", n, item)
	}
}

func manyTLSRules(n int) string {
	return header + "  tls:\n    mode: inspect\n    sni:\n      default: deny\n      rules:\n      - {name: a, action: allow, hosts: [a]}\n" +
		"    http:\n      default: deny\n      rules:\n" + lines(n-1, func(i int) string {
		return fmt.Sprintf("      - {name: r%d, action: allow, path: {regex: \"/a%d/([a-z]{30}/){16}([^/]*/)+.*(x|y|z){90}\"}}", i, i)
	})
}

func manySNIRules(n int) string {
	return header + "  tls:\n    mode: inspect\n    http: {default: deny}\n    sni:\n      default: deny\n      rules:\n" + lines(n, func(i int) string {
		return fmt.Sprintf("      - {name: r%d, action: allow, hosts: [a%d]}", i, i)
	})
}

func manySNI(n int) string {
	return header + "  tls: {mode: inspect, sni: {default: deny, rules: [{name: a, action: allow, hosts: [" +
		strings.TrimSuffix(lines(n, func(i int) string { return fmt.Sprintf("a%d,", i) }), ",\n") + "]}]}}\n"
}

func manyHeaders(n int) string {
	return header + "  tls: {mode: inspect, headers: [" + strings.TrimSuffix(lines(n, func(i int) string { return fmt.Sprintf("a%d,", i) }), ",\n") + "]}\n"
}

// tlsSize takes n bytes in the kernel.
func tlsSize(n int) string {
	text := func(last int) string {
		return header + "  tls:\n    mode: inspect\n    http:\n      default: deny\n      rules:\n" + lines(64, func(i int) string {
			size := 900
			if i == 63 {
				size = last
			}
			return fmt.Sprintf("      - {name: r%d, action: allow, path: {prefix: /%s}}", i, strings.Repeat("x", size))
		})
	}
	ps, err := Parse("size", []byte(text(1)))
	if err != nil {
		panic(err)
	}
	c, err := ps[0].Compile()
	if err != nil {
		panic(err)
	}
	return text(1 + n - len(c.TLSRules))
}

func TestLimits(t *testing.T) {
	numbered := func(format string) func(i int) string {
		return func(i int) string { return fmt.Sprintf(format, i) }
	}
	for _, tc := range []struct {
		name string
		text func(n int) string
		most int
		want string // of one more
	}{
		{"cidrs", manyCIDRs, MaxPrefixes, "big:10009:15: spec.rules[0].egress[0].to[10000].cidr: the policy has more than 10000 distinct CIDRs and exceptions from here on: write larger ones"},
		{"rules", manyRules, MaxRules, "big:1008:7: spec.rules[0].egress[1000]: the policy has 1001 rules and exclusions: write at most 1000, each with several peers and ports"},
		{"names", manyNames, MaxNames, "big:22:17: spec.rules[16].container: \"c16\" is one container name too many: rules can have 16, so use roles"},
		{"ports", manyPorts, MaxPorts, "big:7:22: spec.rules[0].egress[0].ports: 65 entries: write at most 64, ranges such as 8000-8100 count once"},
		{"unix", manyUnix, MaxUnix, "big:7:19: spec.rules[0].unix.allow: 17 items: write at most 16, such as /run/db/*.sock for several sockets"},
		{"unix peers", manyUnixPeers, maxUnixPeers, "big:7:35: spec.rules[0].unix.allow[0].to: 9 peers: write at most 8"},
		{"processes", manyProcesses, MaxProcesses, "big:7:16: spec.rules[0].processes: 65 executables: write at most 64"},
		{"entries", manyEntries, MaxEntries, "big:1007:7: spec.rules[0].egress[999]: the policy has more than 250000 entries from here on: merge ports into ranges, or networks into larger ones"},
		{"pattern", pattern, maxUnixPath, "big:7:27: spec.rules[0].unix.allow[0].path: the pattern has 108 bytes: write at most 107, which is also the longest name of a socket"},
		{"executable", executable, maxExecutable, "big:7:17: spec.rules[0].processes[0]: the path has 4096 bytes: a path has at most 4095"},
		{"tls rules", manyTLSRules, MaxTLSRules, "big:269:9: spec.tls.http.rules[255]: spec.tls has 257 rules: write at most 256, each with several hosts"},
		{"sni rules", manySNIRules, MaxTLSRules, "big:267:9: spec.tls.sni.rules[256]: spec.tls has 257 rules: write at most 256, each with several hosts"},
		{"sni names", manySNI, MaxTLSHosts, "big:5:85: spec.tls.sni.rules[0].hosts: 257 names: write at most 256"},
		{"tls hosts", tlsRule("hosts", numbered("a%d")), MaxTLSHosts, "big:10:41: spec.tls.http.rules[0].hosts: 257 hosts: write at most 256"},
		{"tls sni", tlsRule("sni", numbered("a%d")), MaxTLSHosts, "big:10:39: spec.tls.http.rules[0].sni: 257 names: write at most 256"},
		{"tls methods", tlsRule("methods", numbered("A%d")), MaxTLSWords, "big:10:43: spec.tls.http.rules[0].methods: 17 methods: write at most 16"},
		{"tls rule headers", tlsRule("headers", numbered("a%d")), MaxTLSWords, "big:10:43: spec.tls.http.rules[0].headers: 17 headers: write at most 16"},
		{"tls upgrades", tlsRule("upgrades", numbered("a%d")), MaxTLSWords, "big:10:44: spec.tls.http.rules[0].upgrades: 17 upgrades: write at most 16"},
		{"tls headers", manyHeaders, MaxHeaders, "big:5:33: spec.tls.headers: 33 headers: write at most 32"},
		{"tls size", tlsSize, MaxTLSSize, "big:6:5: spec.tls: takes 65537 bytes in the kernel: write at most 65536, with fewer rules or shorter ones, such as *.example for many names"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Parse("big", []byte(tc.text(tc.most+1))); err == nil || err.Error() != tc.want {
				t.Errorf("%.300v\nwant %s", err, tc.want)
			}
			text := []byte(tc.text(tc.most))
			start := time.Now()
			ps, err := Parse("big", text)
			if err != nil {
				t.Fatalf("%.300v", err)
			}
			parsed := time.Now()
			c, err := ps[0].Compile()
			if err != nil {
				t.Fatal(err)
			}
			checkTLS(t, ps[0], c)
			t.Logf("%d bytes parsed in %s, compiled in %s: %d prefixes, %d entries",
				len(text), parsed.Sub(start), time.Since(parsed), len(c.Prefixes), len(c.Entries))
		})
	}
}

func TestFileSize(t *testing.T) {
	file := func(n int) error {
		_, err := Parse("big", []byte(strings.Repeat("#", n)))
		return err
	}
	if err := file(MaxFileSize + 1); err == nil || !strings.Contains(err.Error(), "big:1:1: the file has 4194305 bytes: write at most 4194304, and split it") {
		t.Error(err)
	}
	if err := file(MaxFileSize); err == nil || strings.Contains(err.Error(), "split") {
		t.Error(err)
	}
}

// What limits the keys of a mapping does not limit the policies of a file.
func TestManyPolicies(t *testing.T) {
	const n = 300
	ps, err := Parse("many", []byte(lines(n, func(i int) string { return "---\n" + fmt.Sprintf(minimal, fmt.Sprint("p", i)) })))
	if err != nil || len(ps) != n {
		t.Errorf("%d policies: %.300v", len(ps), err)
	}
}
