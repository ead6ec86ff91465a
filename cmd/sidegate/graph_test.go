// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/cmd/sidegate/internal/graph"
	"sidegate/observe/cli"
)

// edges are what the graph of a state has, as words.
func edges(t *testing.T, state string, args ...string) (list []string, g graph.Graph) {
	t.Helper()
	stdout, stderr, code := call(state, append([]string{"graph", "-o", "json"}, args...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("%v: %d, %s", args, code, stderr)
	}
	must(t, json.Unmarshal([]byte(stdout), &g))
	for _, e := range g.Edges {
		list = append(list, g.Sentence(e))
	}
	return list, g
}

// TestGraph draws what a pod did.
func TestGraph(t *testing.T) {
	w, sidecar, app := meshPod(t, `  exclude: {egress: [{cidr: 192.0.2.9/32, ports: [81]}]}
  rules: [{role: sidecar, egress: [{protocol: any}], ingress: [{from: [{role: app}]}, {from: [{entity: world}]}]}]
`)
	app.mustDo("dial", "tcp", "192.0.2.1:443")
	app.mustDo("dial", "tcp", "192.0.2.2:443")
	app.mustDo("dial", "tcp", "192.0.2.9:81")
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	app.want("EPERM", "dial", "udp", "192.0.2.53:53")
	sidecar.mustDo("dial", "tcp", "192.0.2.1:443")
	list, g := edges(t, w.state, "--pod", "sho")
	all := strings.Join(list, "\n")
	for _, want := range []string{
		"app to proxy, redirected: tcp/443, 2 times: ",
		"proxy to 192.0.2.1, via: tcp/443, 1 time, for app; the sidecar took 1 connection and connected there 1 time: ",
		"proxy to 192.0.2.2, via: tcp/443, 1 time, for app; the sidecar took 1 connection and connected there 0 times: ",
		"app to 192.0.2.9, direct: tcp/81, 1 time: ",
		"app to proxy, local: tcp/9901, 1 time: ",
		"app to 192.0.2.53, denied: udp/53, 1 time: ",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if len(g.Pods) != 1 || g.Pods[0].Name != "shop" || len(g.Pods[0].Containers) != 2 {
		t.Errorf("pods %+v", g.Pods)
	}
	if _, g := edges(t, w.state, "--max", "1"); len(g.Outside) != 2 || g.Outside[1].More != 3 {
		t.Errorf("outside, of one: %+v", g.Outside)
	}
	if _, g := edges(t, w.state, "--group", "24"); len(g.Outside) != 1 || g.Outside[0].Title() != "192.0.2.0/24" {
		t.Errorf("outside, of networks: %+v", g.Outside)
	}
	if list, _ := edges(t, w.state, "--since", "1h"); len(list) != len(g.Edges) {
		t.Errorf("since an hour: %q", list)
	}
	if list, _ := edges(t, w.state, "--names"); len(list) != len(g.Edges) { // whether DNS answers or not
		t.Errorf("with names: %q", list)
	}
	if list, _ := edges(t, w.state, "--since", "1ns"); len(list) != 0 {
		t.Errorf("since now: %q", list)
	}
	file := filepath.Join(t.TempDir(), "x.svg")
	if stdout, stderr, code := call(w.state, "graph", "--file", file); code != 0 || stdout+stderr != "" {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	svg, err := os.ReadFile(file)
	must(t, err)
	var root struct {
		XMLName xml.Name
		Title   string `xml:"title"`
	}
	if err := xml.Unmarshal(svg, &root); err != nil || root.XMLName.Local != "svg" || root.Title != "Who talks to whom in pod shop" {
		t.Errorf("%v, %+v", err, root)
	}
	for format, begin := range map[string]string{"svg": "<svg ", "dot": "digraph ", "mermaid": "flowchart LR\n"} {
		if stdout, stderr, code := call(w.state, "graph", "-o", format); code != 0 || stderr != "" || !strings.HasPrefix(stdout, begin) {
			t.Errorf("%s: %d, %q, %q", format, code, stderr, stdout)
		}
	}
	if _, stderr, code := call(w.state, "graph", "--pod", "nobody"); code != cli.ExitFailed || !strings.Contains(stderr, "no managed pod nobody") {
		t.Errorf("%d, %q", code, stderr)
	}
	if _, stderr, code := call(w.state, "graph", "--file", "/nowhere/x"); code != cli.ExitFailed || !strings.Contains(stderr, "write graph: open /nowhere/x") {
		t.Errorf("%d, %q", code, stderr)
	}
}

// TestGraphWithoutRules has less to go by: what the sidecar does is not told, nor who is called inside the pod.
func TestGraphWithoutRules(t *testing.T) {
	w, sidecar, app := meshPod(t, "  nonTCP: deny\n")
	app.mustDo("dial", "tcp", "192.0.2.1:443")
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	sidecar.mustDo("dial", "tcp", "192.0.2.1:443")
	list, _ := edges(t, w.state)
	all := strings.Join(list, "\n")
	for _, want := range []string{
		"app to proxy, redirected: tcp/443, 1 time: ", "app to proxy, local: tcp/9901, 1 time: ",
		"proxy to 192.0.2.1, via: tcp/443, 1 time, for app; the sidecar took 1 connection: ",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
}

func TestGraphNotLoaded(t *testing.T) {
	if stdout, stderr, code := call(newState(t), "graph"); code != cli.ExitFailed || stdout != "" || !strings.Contains(stderr, "nothing is loaded") {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
}
