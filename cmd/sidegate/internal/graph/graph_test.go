// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/awalterschulze/gographviz"

	"sidegate/cgroups"
)

var update = flag.Bool("update", false, "write the golden files")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var when = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// flow is "container role direction proto address-or-peer port verdict reason".
func flow(pod, line string, count uint64) cgroups.Flow {
	f := cgroups.Flow{Pod: pod, Count: count, Last: when}
	var other, container string
	if _, err := fmt.Sscan(line, &container, &f.Role, &f.Direction, &f.Protocol, &other, &f.Port, &f.Verdict, &f.Reason); err != nil {
		panic(line + ": " + err.Error())
	}
	blank := func(s string) string { return strings.Trim(s, "-") }
	f.Container, f.Role, f.Protocol = blank(container), blank(f.Role), blank(f.Protocol)
	if a, err := netip.ParseAddr(other); err == nil {
		f.Address = a
	} else {
		f.Peer = blank(other)
	}
	return f
}

func one() []cgroups.Flow {
	return []cgroups.Flow{
		flow("shop", "web app egress tcp 192.0.2.10 443 redirected redirected", 128),
		flow("shop", "web app egress tcp 2001:db8::5 5432 redirected redirected", 12),
		flow("shop", "web app egress tcp 198.51.100.20 8443 redirected redirected", 3),
		flow("shop", "proxy sidecar egress tcp 192.0.2.10 443 allowed direct", 120),
		flow("shop", "proxy sidecar egress tcp 2001:db8::5 5432 allowed direct", 12),
		{
			Pod: "shop", Container: "proxy", Role: "sidecar", Direction: egress, Protocol: "tcp", Peer: "web", Address: netip.MustParseAddr("192.0.2.10"),
			Port: 443, Verdict: cgroups.Allowed, Reason: acceptedOutbound, Count: 128, Last: when,
		},
		flow("shop", "proxy sidecar ingress tcp 203.0.113.7 8080 allowed accepted_inbound", 4711),
		flow("shop", "proxy sidecar egress tcp web 8080 allowed local", 4711),
		flow("shop", "web app egress udp 192.0.2.53 53 denied udp", 9),
	}
}

func four() []cgroups.Flow {
	return append(one(),
		flow("shop", "api app egress tcp 192.0.2.10 443 redirected redirected", 1_234_567),
		flow("shop", "api app egress tcp 10.1.2.3 5432 allowed direct", 890),
		flow("shop", "api app egress tcp web 9000 allowed local", 77),
		flow("shop", "web app egress tcp api 9000 denied policy_egress", 6),
		flow("shop", "web app egress unix api 0 allowed local", 31),
		flow("shop", "worker app egress tcp 192.0.2.99 25 denied policy_egress", 42),
		flow("shop", "worker app egress tcp proxy 9901 denied policy_egress", 2),
		flow("shop", "worker app egress udp - 0 denied raw_socket", 5),
		flow("shop", "worker app egress tcp - 15001 denied bind_reserved", 1),
		flow("shop", "worker app egress tcp 192.0.2.40 443 redirected redirected", 11),
		flow("shop", "worker app egress tcp 192.0.2.41 443 audited policy_egress", 15),
		flow("shop", "worker app egress udp 192.0.2.53 53 redirected dns_redirected", 222),
		flow("shop", "migrate init egress tcp 10.1.2.3 5432 allowed direct", 1),
		flow("shop", "migrate init egress tcp migrate 80 allowed local", 1),
		flow("shop", "- - egress tcp - 0 denied unregistered", 3),
		flow("shop", "api app ingress tcp 203.0.113.9 22 denied ingress", 19),
		flow("shop", "api app ingress tcp 203.0.113.8 9090 allowed direct", 1900),
		flow("shop", "proxy sidecar ingress tcp 203.0.113.9 8443 allowed accepted_inbound", 50),
	)
}

func sixty() (list []cgroups.Flow) {
	for i := range 60 {
		line := fmt.Sprintf("crawler app egress tcp 198.51.%d.%d 443 redirected redirected", 100+i/20, 1+i*4)
		list = append(list, flow("crawl", line, uint64(1+i*i*i/7)))
		list = append(list, flow("crawl", strings.Replace(strings.Replace(line, "crawler app", "envoy sidecar", 1), "redirected redirected", "allowed direct", 1), 1))
	}
	return list
}

func twoPods() (list []cgroups.Flow) {
	for _, f := range one() {
		f.Pod = "blog"
		list = append(list, f)
	}
	return append(list, four()...)
}

var evil = []string{
	`</text><script>alert(1)</script>`, "a\"b\\", "]]>", "line\nbreak\r\t", "\x1b[31mred", `"] --> x["`, "end", "%%{init: {}}%%", "&amp;&#10;", "`md`", "日本語のとても長い名前のコンテナ",
	strings.Repeat("w", 300), "\u202Ereversed", "\xff\xfe", "subgraph x", "#quot;", `\`, `\N\G`, "<b>", "'", "{{}}", "|", "…", "👩\u200d🔧",
}

func evils() (list []cgroups.Flow) {
	for i, name := range evil {
		f := flow("x", "x app egress tcp 192.0.2.1 443 redirected redirected", 1)
		f.Container, f.Pod, f.Address = name, evil[i%3], netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		g := f
		g.Peer, g.Address, g.Verdict, g.Reason = evil[(i+5)%len(evil)], netip.Addr{}, cgroups.Denied, evil[(i+7)%len(evil)]
		list = append(list, f, g)
	}
	return list
}

var cases = []struct {
	name    string
	flows   func() []cgroups.Flow
	options Options
	of      func(netip.Addr) string
}{
	{"one", one, Options{Max: 40}, nil},
	{"four", four, Options{Max: 40}, func(a netip.Addr) string {
		return map[string]string{"10.1.2.3": "pod database", "192.0.2.10": "api.example"}[a.String()]
	}},
	{"sixty", sixty, Options{Max: 40}, nil},
	{"grouped", sixty, Options{Max: 40, Bits4: 24, Bits6: 64}, nil},
	{"pods", twoPods, Options{Max: 40}, nil},
	{"evil", evils, Options{Max: 10}, func(a netip.Addr) string { return evil[int(a.As4()[3])%len(evil)] }},
	{"none", func() []cgroups.Flow { return nil }, Options{Max: 40}, nil},
}

func build(flows []cgroups.Flow, o Options, of func(netip.Addr) string) *Graph {
	g := Build(flows, o)
	if of != nil {
		g.Name(of)
	}
	return g
}

func writeJSON(w io.Writer, g *Graph) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(g)
}

var formats = map[string]func(io.Writer, *Graph) error{"svg": WriteSVG, "dot": WriteDOT, "mmd": WriteMermaid, "json": writeJSON}

// TestGolden has all pictures as they were looked at. That of four is in the documentation.
func TestGolden(t *testing.T) {
	for _, c := range cases {
		for ext, write := range formats {
			file := filepath.Join("testdata", c.name+"."+ext)
			if c.name == "four" && ext == "svg" {
				file = "../../../../docs/graph.svg"
			}
			var b bytes.Buffer
			must(t, write(&b, build(c.flows(), c.options, c.of)))
			if *update {
				must(t, os.WriteFile(file, b.Bytes(), 0o644))
			}
			want, err := os.ReadFile(file)
			must(t, err)
			if !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s differs: look at what -update writes", file)
			}
		}
	}
}

// Order of flows, which is by their counts, does not move anything.
func TestSamePictureInAnyOrder(t *testing.T) {
	for _, c := range cases {
		var want string
		for i := range 5 {
			flows := c.flows()
			rand.Shuffle(len(flows), func(i, j int) { flows[i], flows[j] = flows[j], flows[i] })
			var b strings.Builder
			must(t, WriteSVG(&b, build(flows, c.options, c.of)))
			if i > 0 && b.String() != want {
				t.Errorf("%s: it depends on the order", c.name)
			}
			want = b.String()
		}
	}
}

// checkGraph fails unless every flow is in an edge, and every edge has its ends.
func checkGraph(t *testing.T, flows []cgroups.Flow, g *Graph) {
	t.Helper()
	ids := make(map[string]bool)
	for _, p := range g.Pods {
		for _, c := range p.Containers {
			ids[c.ID] = true
		}
	}
	var counted, outside uint64
	for _, o := range g.Outside {
		ids[o.ID] = true
		counted += o.Count
	}
	for _, f := range flows {
		if isOutside(f) {
			outside += f.Count
		}
	}
	if counted != outside {
		t.Errorf("nodes outside count %d of %d", counted, outside)
	}
	in, legs := 0, 0
	for _, e := range g.Edges {
		in += e.flows
		if e.Kind == Redirected { // the other part of a way
			legs += e.flows
		}
		if e.From != "" && !ids[e.From] || e.To != "" && !ids[e.To] || e.From == "" && e.To == "" {
			t.Errorf("edge without ends: %+v", e)
		}
	}
	if in-legs != len(flows) {
		t.Errorf("%d flows are in %d", len(flows), in-legs)
	}
}

// checkPicture fails if anything is over anything else, or not on the picture.
func checkPicture(t *testing.T, g *Graph) {
	t.Helper()
	p := layout(g)
	type named struct {
		rect
		what string
	}
	var all []named
	for _, b := range p.boxes {
		all = append(all, named{b.rect, "box " + b.tip})
		for _, l := range b.labels {
			r := l.rect()
			if r.x < b.x || r.y < b.y || r.x+r.w > b.x+b.w+0.01 || r.y+r.h > b.y+b.h+0.01 {
				t.Errorf("%q is not in its box: %+v in %+v", l.text, r, b.rect)
			}
		}
	}
	drawn := make(map[*Edge]bool)
	for _, w := range p.wires {
		drawn[w.edge] = true
		if len(w.path) < 2 || w.labels[0].at == (point{}) {
			t.Errorf("%s is not drawn: %+v", g.Sentence(w.edge), w)
		}
		for _, l := range w.labels {
			all = append(all, named{l.rect(), "label " + l.text + " of " + g.Sentence(w.edge)})
		}
	}
	for _, pod := range p.pods {
		all = append(all, named{pod.labels[0].rect(), "name of " + pod.tip})
	}
	for i, a := range all {
		if a.x < 0 || a.y < headHeight-1 || a.x+a.w > p.w || a.y+a.h > p.h-legendRow {
			t.Errorf("%s is outside: %+v of %.0fx%.0f", a.what, a.rect, p.w, p.h)
		}
		for _, b := range all[:i] {
			if a.overlaps(b.rect) {
				t.Errorf("%s is over %s: %+v, %+v", a.what, b.what, a.rect, b.rect)
			}
		}
	}
	for i, a := range p.pods {
		for _, b := range p.pods[:i] {
			if a.overlaps(b.rect) {
				t.Errorf("%s is over %s", a.tip, b.tip)
			}
		}
	}
	for _, e := range g.Edges {
		if note := e.From == e.To || e.From == "" || e.To == ""; !note && !drawn[e] {
			t.Errorf("no line for %s", g.Sentence(e))
		}
	}
}

func TestNothingOverlaps(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := build(c.flows(), c.options, c.of)
			checkGraph(t, c.flows(), g)
			checkPicture(t, g)
		})
	}
}

// randomFlows are of few names, so that they meet.
func randomFlows(r *rand.Rand) (list []cgroups.Flow) {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	roles := map[string]string{"web": "app", "api": "app", "proxy": "sidecar", "old": "sidecar", "setup": "init", "": ""}
	for range r.IntN(120) {
		f := cgroups.Flow{
			Pod: pick("a", "b", "c"), Container: pick("web", "api", "proxy", "old", "setup", "", pick(evil...)), Direction: pick("egress", "egress", "ingress"),
			Protocol: pick("tcp", "tcp", "udp", "icmp", "unix", ""), Port: uint16(r.IntN(1 << r.IntN(16))), Last: when, Count: uint64(r.IntN(1 << r.IntN(30))),
			Verdict: pick(cgroups.Allowed, cgroups.Redirected, cgroups.Denied, cgroups.Audited),
			Reason:  pick("local", "redirected", "direct", "policy_egress", "udp", acceptedOutbound, "accepted_inbound", pick(evil...)),
		}
		f.Role = roles[f.Container]
		switch r.IntN(4) {
		case 0:
			f.Peer = pick("web", "api", "proxy", pick(evil...))
		case 1, 2:
			f.Address = netip.AddrFrom4([4]byte{192, 0, byte(r.IntN(3)), byte(r.IntN(1 << r.IntN(8)))})
		}
		if r.IntN(9) == 0 {
			f.Peer, f.Address = "web", netip.MustParseAddr(pick("2001:db8::1", "127.0.0.1", "fe80::1%eth0"))
		}
		list = append(list, f)
	}
	return list
}

// TestAnyFlows: whatever is told is drawn, and readable in all formats.
func TestAnyFlows(t *testing.T) {
	for range 60 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		flows := randomFlows(r)
		g := Build(flows, Options{Max: r.IntN(30), Bits4: []int{0, 24}[r.IntN(2)]})
		checkGraph(t, flows, g)
		checkPicture(t, g)
		checkFormats(t, g)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// checkFormats fails unless each can be read, and has all of the graph.
func checkFormats(t *testing.T, g *Graph) {
	t.Helper()
	var svg, dot, mermaid bytes.Buffer
	must(t, errors.Join(WriteSVG(&svg, g), WriteDOT(&dot, g), WriteMermaid(&mermaid, g)))
	checkXML(t, svg.Bytes())
	checkDOT(t, g, dot.String())
	checkMermaid(t, g, mermaid.String())
}

func checkXML(t *testing.T, svg []byte) {
	t.Helper()
	known := []string{"svg", "title", "desc", "style", "rect", "g", "text", "path"}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if err == io.EOF {
			return
		}
		must(t, err)
		if s, ok := token.(xml.StartElement); ok && !slices.Contains(known, s.Name.Local) {
			t.Errorf("element %s", s.Name.Local)
		}
	}
}

func checkDOT(t *testing.T, g *Graph, dot string) {
	t.Helper()
	// The parser, other than Graphviz, takes this character for a fault in UTF-8.
	tree, err := gographviz.ParseString(strings.ReplaceAll(dot, "\uFFFD", "?"))
	if err != nil {
		t.Fatalf("%v in\n%s", err, dot)
	}
	parsed := gographviz.NewGraph()
	must(t, gographviz.Analyse(tree, parsed))
	nodes := len(g.Outside)
	for _, p := range g.Pods {
		nodes += len(p.Containers)
	}
	if g.endless() {
		nodes++
	}
	if len(parsed.Edges.Edges) != len(g.Edges) || len(parsed.Nodes.Nodes) != nodes || len(parsed.SubGraphs.SubGraphs) != len(g.Pods) {
		t.Errorf("%d edges of %d, %d nodes of %d, %d pods of %d in\n%s", len(parsed.Edges.Edges), len(g.Edges), len(parsed.Nodes.Nodes), nodes,
			len(parsed.SubGraphs.SubGraphs), len(g.Pods), dot)
	}
}

var mermaidLine = regexp.MustCompile(`^ +(?:` +
	`subgraph p\d+\["[^"\[\]{}<>|\x60]*"\]|end|` +
	`[co]\d+(?:\["[^"\[\]{}<>|\x60]*"\]|\(\["[^"\[\]{}<>|\x60]*"\]\))|nobody\(\(" "\)\)|` +
	`(?:[co]\d+|nobody) (?:-->|--x|-\.->)\|"[^"\[\]{}<>|\x60]+"\| (?:[co]\d+|nobody)|` +
	`linkStyle \d+ stroke:#[0-9a-f]{6},stroke-width:[\d.]+px,color:#[0-9a-f]{6}|style c\d+ fill:.*)$`)

// checkMermaid has the part of the grammar that is used.
func checkMermaid(t *testing.T, g *Graph, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != "flowchart LR" {
		t.Errorf("it begins with %q", lines[0])
	}
	edges := 0
	for _, line := range lines[1:] {
		if strings.Contains(line, `|"`) {
			edges++
		}
		if !mermaidLine.MatchString(line) {
			t.Errorf("line %q", line)
		}
	}
	if edges != len(g.Edges) {
		t.Errorf("%d edges of %d in\n%s", edges, len(g.Edges), text)
	}
}

func TestFormats(t *testing.T) {
	for _, c := range cases {
		checkFormats(t, build(c.flows(), c.options, c.of))
	}
}

// TestGraphviz asks the program itself, where it is.
func TestGraphviz(t *testing.T) {
	path, err := exec.LookPath("dot")
	if err != nil {
		t.Skip("no graphviz here: its grammar is checked by TestFormats")
	}
	for _, c := range cases {
		var dot, svg, errs bytes.Buffer
		must(t, WriteDOT(&dot, build(c.flows(), c.options, c.of)))
		cmd := exec.Command(path, "-Tsvg")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = &dot, &svg, &errs
		if err := cmd.Run(); err != nil || errs.Len() > 0 {
			t.Errorf("%s: %v: %s", c.name, err, &errs)
		}
	}
}

// FuzzNames: whatever containers, pods and hosts are called.
func FuzzNames(f *testing.F) {
	for i, name := range evil {
		f.Add(name, evil[(i+1)%len(evil)], evil[(i+2)%len(evil)])
	}
	f.Fuzz(func(t *testing.T, pod, container, host string) {
		flows := four()
		for i := range flows {
			if flows[i].Pod = pod; i%3 == 0 {
				flows[i].Container = container
			}
			if flows[i].Peer != "" && i%2 == 0 {
				flows[i].Peer = container
			}
		}
		g := build(flows, Options{Max: 5}, func(netip.Addr) string { return host })
		checkGraph(t, flows, g)
		checkPicture(t, g)
		checkFormats(t, g)
	})
}

// What a redirected connection became is told at the place that it was for.
func TestVia(t *testing.T) {
	g := Build(one(), Options{})
	var got []string
	for _, e := range g.Edges {
		if e.Kind == Via {
			got = append(got, g.Sentence(e))
		}
	}
	want := []string{
		"proxy to 192.0.2.10, via: tcp/443, 128 times, for web; the sidecar took 128 connections and connected there 120 times: connections sent to the sidecar",
		"proxy to 198.51.100.20, via: tcp/8443, 3 times, for web; the sidecar took 0 connections and connected there 0 times: connections sent to the sidecar",
		"proxy to 2001:db8::5, via: tcp/5432, 12 times, for web; the sidecar took 0 connections and connected there 12 times: connections sent to the sidecar",
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Connections inside a pod without rules are told without the other end's name.
func TestInsideWithoutNames(t *testing.T) {
	local := func(line string, a string) cgroups.Flow {
		f := flow("shop", line, 3)
		f.Address = netip.MustParseAddr(a)
		return f
	}
	flows := []cgroups.Flow{
		local("web app egress tcp - 9901 allowed local", "127.0.0.1"),
		local("proxy sidecar ingress tcp - 9901 allowed accepted_inbound", "127.0.0.1"),
		local("proxy sidecar ingress tcp - 9902 allowed accepted_inbound", "::1"),
		local("web app egress tcp - 80 allowed local", "10.0.0.2"),
		flow("shop", "web app egress tcp 192.0.2.1 443 redirected redirected", 5),
	}
	g := Build(flows, Options{})
	checkGraph(t, flows, g)
	var got []string
	for _, e := range g.Edges {
		got = append(got, g.Sentence(e))
	}
	want := []string{
		"nobody in particular to proxy, local: tcp/9902, 3 times: connections from outside the sidecar took",
		"web to nobody in particular, local: tcp/80, 3 times: connections inside the pod",
		"web to proxy, local: tcp/9901, 3 times: connections inside the pod",
		"web to proxy, redirected: tcp/443, 5 times: connections sent to the sidecar",
		"proxy to 192.0.2.1, via: tcp/443, 5 times, for web; the sidecar took 0 connections: connections sent to the sidecar",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if e := g.Edges[len(g.Edges)-1]; e.unanswered() {
		t.Error("it is not known whether the sidecar went on")
	}
}

func TestMore(t *testing.T) {
	g := Build(sixty(), Options{Max: 40})
	last := g.Outside[len(g.Outside)-1]
	if len(g.Outside) != 41 || last.Title() != "… and 20 more" {
		t.Errorf("%d nodes, the last is %q", len(g.Outside), last.Title())
	}
	grouped := Build(sixty(), Options{Max: 40, Bits4: 24})
	if len(grouped.Outside) != 3 || grouped.Outside[0].Title() != "198.51.102.0/24" {
		t.Errorf("%d nodes, the first is %q", len(grouped.Outside), grouped.Outside[0].Title())
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 9999: "9999", 10_000: "10k", 999_999: "999k", 1_234_567: "1.2M", 5_000_000_000: "5.0G"} {
		if got := short(n); got != want {
			t.Errorf("short(%d) = %s, want %s", n, got, want)
		}
	}
}
