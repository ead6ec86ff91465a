// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"sidegate/observe/observetest"
)

const (
	metricsDoc    = "../docs/metrics.md"
	alertsFile    = "../contrib/prometheus/alerts.yaml"
	alertsTest    = "../contrib/prometheus/alerts_test.yaml"
	dashboardFile = "../contrib/grafana/sidegate.json"
)

var metricName = regexp.MustCompile(`\bsidegate_[a-z0-9_]+`)

// wantNames fails the test unless each metric of an expression is one that is served.
func wantNames(t *testing.T, what, expr string, known, used map[string]bool) {
	t.Helper()
	names := metricName.FindAllString(expr, -1)
	if len(names) == 0 {
		t.Errorf("%s asks for nothing of Sidegate: %s", what, expr)
	}
	for _, name := range names {
		if !known[name] {
			t.Errorf("%s asks for %s, which nobody serves", what, name)
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && known[base] {
				used[base] = true
			}
		}
		used[name] = true
	}
}

func TestAlerts(t *testing.T) {
	b, err := os.ReadFile(alertsFile)
	must(t, err)
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	must(t, yaml.UnmarshalWithOptions(b, &file, yaml.Strict()))
	known, seen := observetest.Names(t, metricsDoc), make(map[string]bool)
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			wantNames(t, r.Alert, r.Expr, known, map[string]bool{})
			if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Sidegate") {
				t.Errorf("alert %q: its name is another one's, or nobody's", r.Alert)
			}
			seen[r.Alert] = true
			switch r.Labels["severity"] {
			case "info", "warning", "critical":
			default:
				t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
			}
			if r.Annotations["summary"] == "" || len(r.Annotations["description"]) < 50 {
				t.Errorf("%s says not what to do: %q", r.Alert, r.Annotations)
			}
			// What they name in words is there too.
			for _, name := range metricName.FindAllString(r.Annotations["description"], -1) {
				if !known[name] {
					t.Errorf("%s speaks of %s, which nobody serves", r.Alert, name)
				}
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d alerts", len(seen))
	}
	promtool(t, "check", "rules", alertsFile)
	promtool(t, "test", "rules", alertsTest)
}

// promtool is Prometheus' own judgement, where it is installed.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("no promtool: expressions are not evaluated")
		return
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(dashboardFile)
	must(t, err)
	type datasource struct{ Type, UID string }
	var d struct {
		ID            *int
		UID           string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name, Type, Definition string }
		}
		Panels []struct {
			ID          int
			Type, Title string
			Datasource  *datasource
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct {
				Expr       string
				Datasource datasource
			}
		}
	}
	must(t, json.Unmarshal(b, &d))
	if d.ID != nil || d.UID != "" || d.SchemaVersion < 36 || len(d.Templating.List) == 0 || d.Templating.List[0].Type != "datasource" {
		t.Errorf("id %v, uid %q, schema %d: a dashboard to import has no id, and a data source to choose", d.ID, d.UID, d.SchemaVersion)
	}
	var expressions strings.Builder
	known, used, ids := observetest.Names(t, metricsDoc), make(map[string]bool), make(map[int]bool)
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("panel %q: id %d, at %+v", p.Title, p.ID, p.GridPos)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if p.Datasource == nil || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %q: data source %+v, %d targets", p.Title, p.Datasource, len(p.Targets))
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("panel %q: data source %+v", p.Title, target.Datasource)
			}
			if strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") || strings.Contains(target.Expr, "$SEL") {
				t.Errorf("panel %q: %s", p.Title, target.Expr)
			}
			wantNames(t, p.Title, target.Expr, known, used)
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*", "$pod", ".*").Replace(target.Expr)
			fmt.Fprintf(&expressions, "  - {record: panel_%d, expr: %q}\n", p.ID, expr)
		}
	}
	// Prometheus reads expressions in rules only.
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	must(t, os.WriteFile(rules, []byte("groups:\n- name: dashboard\n  rules:\n"+expressions.String()), 0o644))
	promtool(t, "check", "rules", rules)
	for _, name := range []string{"sidegate_drops_total", "sidegate_accelerated_connections_total", "sidegate_tls_requests_total", "sidegate_attach_duration_seconds", "sidegate_map_entries", "sidegate_events_lost_total"} {
		if !used[name] {
			t.Errorf("no panel has %s", name)
		}
	}
}
