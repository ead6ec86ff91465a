// SPDX-License-Identifier: Apache-2.0

// Package kubernetes has the tests of the Helm chart in contrib/kubernetes: what it
// renders, against what the plugin, its install command and the policies are.
package kubernetes

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"sidegate/cgroups"
	"sidegate/policy"
)

var update = flag.Bool("update", false, "write contrib/kubernetes/sidegate.yaml and the table of values")

// object is as much of a Kubernetes object as is looked at here. Helm's program has
// checked all of it against Kubernetes' own types.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name      string            `yaml:"name"`
		Namespace string            `yaml:"namespace"`
		Labels    map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
	Data                         map[string]string `yaml:"data"`
	AutomountServiceAccountToken *bool             `yaml:"automountServiceAccountToken"`
	Spec                         struct {
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"selector"`
		UpdateStrategy struct {
			Type          string `yaml:"type"`
			RollingUpdate struct {
				MaxUnavailable int `yaml:"maxUnavailable"`
			} `yaml:"rollingUpdate"`
		} `yaml:"updateStrategy"`
		Template struct {
			Metadata struct {
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"metadata"`
			Spec podSpec `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type podSpec struct {
	HostNetwork                  bool                `yaml:"hostNetwork"`
	HostPID                      bool                `yaml:"hostPID"`
	ServiceAccountName           string              `yaml:"serviceAccountName"`
	AutomountServiceAccountToken *bool               `yaml:"automountServiceAccountToken"`
	PriorityClassName            string              `yaml:"priorityClassName"`
	Tolerations                  []map[string]string `yaml:"tolerations"`
	NodeSelector                 map[string]string   `yaml:"nodeSelector"`
	InitContainers               []container         `yaml:"initContainers"`
	Containers                   []container         `yaml:"containers"`
	Volumes                      []volume            `yaml:"volumes"`
}

type volume struct {
	Name     string `yaml:"name"`
	HostPath struct {
		Path string `yaml:"path"`
		Type string `yaml:"type"`
	} `yaml:"hostPath"`
	ConfigMap struct {
		Name string `yaml:"name"`
	} `yaml:"configMap"`
}

type container struct {
	Name            string   `yaml:"name"`
	Image           string   `yaml:"image"`
	ImagePullPolicy string   `yaml:"imagePullPolicy"`
	Command         []string `yaml:"command"`
	Env             []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	SecurityContext struct {
		Privileged             bool `yaml:"privileged"`
		ReadOnlyRootFilesystem bool `yaml:"readOnlyRootFilesystem"`
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name             string `yaml:"name"`
		MountPath        string `yaml:"mountPath"`
		MountPropagation string `yaml:"mountPropagation"`
		ReadOnly         bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
	StartupProbe   probe `yaml:"startupProbe"`
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
}

type probe struct {
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
		Host string `yaml:"host"`
	} `yaml:"httpGet"`
}

// flags are those of a program's command line, by name.
func (c *container) flags() map[string]string {
	all := make(map[string]string)
	for _, arg := range c.Command[1:] {
		if name, ok := strings.CutPrefix(arg, "--"); ok {
			name, value, _ := strings.Cut(name, "=")
			all[name] = value
		}
	}
	return all
}

// rendered is the chart with some values.
type rendered struct {
	*testing.T
	text    string
	objects []object
	values  map[string]any
	daemon  object
	pod     podSpec
	plugin  container
	relay   *container     // nil if there is none
	config  map[string]any // the plugin's
}

func render(t *testing.T, files ...string) *rendered {
	t.Helper()
	text, err := runHelm(t, append([]string{"template", chart}, files...)...)
	if err != nil {
		t.Fatal(err)
	}
	r := &rendered{T: t, text: text}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		r.objects = append(r.objects, o)
	}
	r.daemon = r.object("DaemonSet", "")
	r.pod = r.daemon.Spec.Template.Spec
	if len(r.pod.Containers) == 0 || len(r.pod.InitContainers) == 0 {
		t.Fatalf("it has %d containers and %d init containers", len(r.pod.Containers), len(r.pod.InitContainers))
	}
	r.plugin = r.pod.Containers[0]
	for _, c := range r.pod.Containers[1:] {
		if c.Name != "tls" || r.relay != nil {
			t.Fatalf("it has a container %s", c.Name)
		}
		r.relay = &c
	}
	text = r.object("ConfigMap", r.daemon.Metadata.Name).Data["config.yaml"]
	if err := yaml.Unmarshal([]byte(text), &r.config); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return r
}

func (r *rendered) object(kind, name string) object {
	r.Helper()
	for _, o := range r.objects {
		if o.Kind == kind && (name == "" || o.Metadata.Name == name) {
			return o
		}
	}
	r.Fatalf("no %s %s in\n%s", kind, name, r.text)
	panic("unreachable")
}

// host returns what a container sees of the node at a path, and how.
func (r *rendered) host(c container, path string) (hostPath, propagation string, readOnly bool) {
	best := ""
	for _, m := range c.VolumeMounts {
		if m.MountPath != path && !strings.HasPrefix(path, m.MountPath+"/") || len(m.MountPath) <= len(best) {
			continue
		}
		for _, v := range r.pod.Volumes {
			if v.Name == m.Name && v.HostPath.Path != "" {
				best = m.MountPath
				hostPath, propagation, readOnly = v.HostPath.Path+strings.TrimPrefix(path, m.MountPath), m.MountPropagation, m.ReadOnly
			}
		}
	}
	return hostPath, propagation, readOnly
}

func (r *rendered) sameOnHost(c container, path, why string) {
	r.Helper()
	if got, _, _ := r.host(c, path); got != path {
		r.Errorf("container %s sees at %s the node's %q: %s", c.Name, path, got, why)
	}
}

// check tells whether all that the plugin and its hook need is there, whatever the values.
func (r *rendered) check() {
	for _, o := range r.objects {
		if o.Metadata.Namespace != "kube-system" {
			r.Errorf("%s %s is in namespace %q", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
		}
		if o.Kind == "ServiceAccount" && (o.AutomountServiceAccountToken == nil || *o.AutomountServiceAccountToken) {
			r.Error("the service account's token is mounted")
		}
	}
	if !r.pod.HostNetwork || !r.pod.HostPID {
		r.Error("it is not in the node's namespaces")
	}
	if r.pod.AutomountServiceAccountToken == nil || *r.pod.AutomountServiceAccountToken {
		r.Error("a token is mounted")
	}
	template := r.daemon.Spec.Template.Metadata
	if template.Annotations[policy.KeyRole] != "none" {
		r.Error("it does not exempt itself")
	}
	request, err := policy.ParsePod(template.Labels, template.Annotations)
	if err != nil || request.Wants() {
		r.Errorf("its own labels and annotations ask for Sidegate: %v", err)
	}
	for key, value := range r.daemon.Spec.Selector.MatchLabels {
		if template.Labels[key] != value {
			r.Errorf("the selector wants label %s=%s of its pods", key, value)
		}
	}
	mounted := map[string]bool{}
	for _, c := range slices.Concat(r.pod.InitContainers, r.pod.Containers) {
		if c.Image != r.plugin.Image || c.ImagePullPolicy != r.plugin.ImagePullPolicy || !strings.HasPrefix(c.Command[0], "/sidegate/") {
			r.Errorf("container %s: another image, or no program of it: %s %s", c.Name, c.Image, c.Command)
		}
		if !c.SecurityContext.Privileged || !c.SecurityContext.ReadOnlyRootFilesystem {
			r.Errorf("container %s: %+v", c.Name, c.SecurityContext)
		}
		for _, m := range c.VolumeMounts {
			mounted[m.Name] = true
			if !slices.ContainsFunc(r.pod.Volumes, func(v volume) bool { return v.Name == m.Name }) {
				r.Errorf("container %s: there is no volume %s", c.Name, m.Name)
			}
		}
	}
	for _, v := range r.pod.Volumes {
		if !mounted[v.Name] {
			r.Errorf("volume %s is not used", v.Name)
		}
		if v.ConfigMap.Name != "" {
			r.object("ConfigMap", v.ConfigMap.Name)
		}
	}
	r.checkInstall()
	r.checkPlugin()
	r.checkRelay()
	r.checkPolicies()
}

// checkRelay tells whether the relay, if there is one, serves what the plugin and its hook ask for.
func (r *rendered) checkRelay() {
	values, _ := r.values["tls"].(map[string]any)
	if want := values["enabled"] == true; want != (r.relay != nil) {
		r.Errorf("tls.enabled is %v, there is a relay: %v", values["enabled"], r.relay != nil)
	}
	// Also without a relay of its own: the node may have one.
	r.sameOnHost(r.plugin, cgroups.TLSSocket(), "the relay answers there")
	if r.relay == nil {
		return
	}
	if r.relay.Command[0] != "/sidegate/sidegate-tls" {
		r.Errorf("the relay is %s", r.relay.Command)
	}
	given, known := r.relay.flags(), flagsIn(r.T, "cmd/sidegate-tls/main.go", logFlags)
	for name := range given {
		if !known[name] {
			r.Errorf("the relay has no flag --%s", name)
		}
	}
	if given["socket"] != cgroups.TLSSocket() {
		r.Errorf("the relay answers at %s, the hook asks at %s", given["socket"], cgroups.TLSSocket())
	}
	if given["state-dir"] != r.config["stateDir"] {
		r.Errorf("the relay's state is in %s, the plugin's in %v", given["state-dir"], r.config["stateDir"])
	}
	for flag, key := range map[string]string{"log-level": "logLevel", "log-format": "logFormat"} {
		want := r.config[key]
		if key == "logLevel" && r.values["verbose"] == true {
			want = "debug"
		}
		if given[flag] != want {
			r.Errorf("--%s of the relay is %q, the plugin's %s is %v", flag, given[flag], key, want)
		}
	}
	if _, has := given["events"]; has != (values["events"] == true) {
		r.Errorf("tls.events is %v, the relay's flags are %v", values["events"], given)
	}
	host, _ := r.values["host"].(map[string]any)
	for path, why := range map[string]string{
		given["socket"]: "the hook asks there", given["state-dir"]: "what is loaded is pinned there", fmt.Sprint(host["cgroup"]): "its own cgroup is there",
	} {
		r.sameOnHost(*r.relay, path, why)
	}
	if _, _, readOnly := r.host(*r.relay, given["socket"]); readOnly {
		r.Error("the relay cannot make its socket")
	}
}

func (r *rendered) checkInstall() {
	install := r.pod.InitContainers[0]
	if install.Command[0] != "/sidegate/sidegate-nri" || install.Command[1] != "install" {
		r.Fatalf("the first init container runs %s", install.Command)
	}
	given := install.flags()
	known := flagsIn(r.T, "nri/install.go")
	for name := range given {
		if !known[name] {
			r.Errorf("install has no flag --%s", name)
		}
	}
	if hook := filepath.Join(given["to"], "sidegate-oci-hook"); r.config["hook"] != hook {
		r.Errorf("the hook is installed as %s, and the plugin tells the runtime %v", hook, r.config["hook"])
	}
	if r.config["policyDir"] != given["policy-dir"] {
		r.Errorf("policies are installed into %s, and the plugin reads %v", given["policy-dir"], r.config["policyDir"])
	}
	if r.config["ktlsDir"] != given["ktls"] {
		r.Errorf("files for kTLS are installed into %s, and the plugin tells the runtime %v", given["ktls"], r.config["ktlsDir"])
	}
	r.sameOnHost(r.plugin, given["ktls"], "it looks whether the files are there")
	for _, dir := range []string{given["to"], given["policy-dir"], given["ktls"]} {
		r.sameOnHost(install, dir, "the runtime looks there")
		if _, _, readOnly := r.host(install, dir); readOnly {
			r.Errorf("install cannot write to %s", dir)
		}
	}
	for _, m := range install.VolumeMounts {
		if m.MountPath == given["policies"] {
			return
		}
	}
	r.Errorf("nothing is mounted at %s", given["policies"])
}

func (r *rendered) checkPlugin() {
	given := r.plugin.flags()
	known := flagsIn(r.T, "nri/main.go", logFlags)
	for name := range given {
		if !known[name] {
			r.Errorf("the plugin has no flag --%s", name)
		}
	}
	keys := configKeys(r.T)
	for key := range r.config {
		if !keys[key] {
			r.Errorf("the plugin's configuration has no key %s", key)
		}
	}
	if len(keys) != len(r.config) {
		r.Errorf("the chart gives %v of the configuration's keys %v", slices.Sorted(maps.Keys(r.config)), slices.Sorted(maps.Keys(keys)))
	}
	if given["config"] != "/config/nri/config.yaml" {
		r.Errorf("--config is %s", given["config"])
	}
	state, _ := r.config["stateDir"].(string)
	dir, _ := r.config["policyDir"].(string)
	paths := map[string]string{
		state: "the hook opens the state there", dir: "the hook reads policies there",
		filepath.Dir(given["socket-path"]): "the runtime's socket is there",
	}
	if given["containerd-address"] != "" {
		paths[given["containerd-address"]] = "containerd's socket is there"
	}
	host, _ := r.values["host"].(map[string]any)
	late := []string{state, fmt.Sprint(host["cgroup"]), filepath.Dir(given["socket-path"])}
	if dirs, ok := host["netnsDirs"].([]any); ok {
		for _, dir := range dirs {
			paths[fmt.Sprint(dir)] = "network namespaces are there"
			late = append(late, fmt.Sprint(dir))
		}
	}
	for path, why := range paths {
		r.sameOnHost(r.plugin, path, why)
	}
	// What is mounted there after the plugin has started has to reach it.
	for _, path := range late {
		if _, propagation, _ := r.host(r.plugin, path); propagation != "HostToContainer" {
			r.Errorf("%s: mount propagation %q", path, propagation)
		}
	}
	for _, one := range r.plugin.Env {
		if one.Name == cgroups.StateEnv && one.Value != state || one.Name == policy.DirEnv && one.Value != dir {
			r.Errorf("the command would look at %s, the plugin elsewhere", one.Value)
		}
	}
	address := given["metrics-address"]
	for _, probe := range []string{r.plugin.LivenessProbe.HTTPGet.Host, r.plugin.ReadinessProbe.HTTPGet.Host, r.plugin.StartupProbe.HTTPGet.Host} {
		loopback := strings.HasPrefix(address, "[127.") || strings.HasPrefix(address, "[::1]")
		if loopback != (probe != "") || loopback && !strings.HasPrefix(address, "["+probe+"]:") {
			r.Errorf("the plugin listens on %s, and is probed on %q", address, probe)
		}
	}
	if l, e := r.plugin.LivenessProbe.HTTPGet.Path, r.plugin.ReadinessProbe.HTTPGet.Path; l != "/healthz" || e != "/readyz" {
		r.Errorf("probes ask %s and %s", l, e)
	}
}

// checkPolicies lays the policies out as the kubelet does, and reads them.
func (r *rendered) checkPolicies() {
	wanted, _ := r.values["policies"].(map[string]any)
	data := r.object("ConfigMap", r.daemon.Metadata.Name+"-policies").Data
	if len(data) != len(wanted) {
		r.Errorf("%d policies in the config map, %d in the values", len(data), len(wanted))
	}
	dir := r.TempDir()
	for name, text := range data {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	if _, err := policy.LoadDir(dir); err != nil {
		r.Error(err)
	}
}

// flagsIn finds the flags that files define.
func flagsIn(t *testing.T, files ...string) map[string]bool {
	all := make(map[string]bool)
	for _, file := range files {
		maps.Copy(all, words(t, file, regexp.MustCompile(`\bf\.\w+Var\(&[ol]\.\w+, "([a-z-]+)"`)))
	}
	return all
}

// logFlags is the file of the flags that all daemons have.
const logFlags = "observe/cli/log.go"

// configKeys finds the keys of the plugin's configuration.
func configKeys(t *testing.T) map[string]bool {
	return words(t, "nri/config.go", regexp.MustCompile("`yaml:\"(\\w+)\"`"))
}

func words(t *testing.T, file string, pattern *regexp.Regexp) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]bool)
	for _, m := range pattern.FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = true
	}
	if len(all) == 0 {
		t.Fatalf("nothing in %s matches %s", file, pattern)
	}
	return all
}

// valuesOf merges files as Helm does, but for null.
func valuesOf(t *testing.T, files ...string) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, file := range append([]string{filepath.Join(chart, "values.yaml")}, files...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var more map[string]any
		if err := yaml.Unmarshal(text, &more); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		merge(all, more)
	}
	return all
}

func merge(into, from map[string]any) {
	for key, value := range from {
		a, is := into[key].(map[string]any)
		b, are := value.(map[string]any)
		if is && are {
			merge(a, b)
			continue
		}
		into[key] = value
	}
}

func valueFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata/%s: %v", dir, err)
	}
	return files
}

func TestDefault(t *testing.T) {
	r := render(t)
	r.values = valuesOf(t)
	r.check()
	var about struct {
		AppVersion string `yaml:"appVersion"`
	}
	text, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	if err == nil {
		err = yaml.Unmarshal(text, &about)
	}
	if err != nil {
		t.Fatal(err)
	}
	if want := "localhost/sidegate:" + about.AppVersion; r.plugin.Image != want {
		t.Errorf("the image is %s, not %s", r.plugin.Image, want)
	}
	if r.config["policyDir"] != policy.DefaultDir || r.config["stateDir"] != cgroups.DefaultState {
		t.Errorf("the plugin's configuration is %v", r.config)
	}
	strategy := r.daemon.Spec.UpdateStrategy
	if strategy.Type != "RollingUpdate" || strategy.RollingUpdate.MaxUnavailable != 1 || r.pod.PriorityClassName != "system-node-critical" {
		t.Errorf("strategy %+v, priority %s", strategy, r.pod.PriorityClassName)
	}
	if len(r.pod.Tolerations) != 1 || !maps.Equal(r.pod.Tolerations[0], map[string]string{"operator": "Exists"}) {
		t.Errorf("tolerations %v", r.pod.Tolerations)
	}
	if r.daemon.Spec.Template.Metadata.Annotations["tolerate-missing-plugins.noderesource.dev"] != "true" {
		t.Error("it does not tolerate that it is missing")
	}
}

// TestPlain compares the plain objects with what the chart makes of its defaults.
func TestPlain(t *testing.T) {
	const head = "# Made by `make kubernetes` from the chart beside it, contrib/kubernetes/sidegate, with its default values.\n" +
		"# Change the chart and not this file. README.md tells what to change before it is applied.\n"
	current(t, root+"/contrib/kubernetes/sidegate.yaml", head+render(t).text)
}

func current(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not current: run `make kubernetes` and commit what it wrote", file)
	}
}

func TestLint(t *testing.T) {
	for _, files := range append([][]string{nil}, slices.Collect(slices.Chunk(valueFiles(t, "values"), 1))...) {
		if _, err := runHelm(t, append([]string{"lint", chart}, files...)...); err != nil {
			t.Error(err)
		}
	}
}

func TestValues(t *testing.T) {
	for _, file := range valueFiles(t, "values") {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			r := render(t, file)
			r.values = valuesOf(t, file)
			r.check()
			if _, err := runHelm(t, "notes", chart, file); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEverything looks for each value that is not the default's in what was rendered.
func TestEverything(t *testing.T) {
	const file = "testdata/values/everything.yaml"
	r := render(t, file)
	r.values = valuesOf(t, file)
	for _, want := range []string{
		"registry.example/team/sidegate:v9", "imagePullPolicy: Always", "name: pull",
		"/home/kubernetes/bin/sidegate/sidegate-oci-hook", "--ktls=/usr/share/sidegate/ktls", "--socket-path=/run/nri/nri.sock", "hookTimeoutSeconds: 90",
		`- "true"`, "adopt: false", "logLevel: debug", "logFormat: json", "--name=barrier", "--idx=90", `example.org/without: "true"`,
		"--containerd-address=/run/k3s/containerd/containerd.sock", "--metrics-address=[$(NODE_IP)]:19464",
		`prometheus.io/port: "19464"`, "kind: PodMonitor", "interval: 15s", "release: prometheus", "- --log-level=debug",
		"system-cluster-critical", "key: only", "disk: ssd", "key: mesh", "type: OnDelete", "terminationGracePeriodSeconds: 3",
		"fsGroup: 0", `example.org/a: "1"`, `example.org/b: "2"`, "serviceAccountName: mine", "name: apply",
	} {
		if !strings.Contains(r.text, want) {
			t.Errorf("there is no %q in it", want)
		}
	}
	for _, o := range r.objects {
		if o.Kind == "ServiceAccount" {
			t.Error("it makes a service account")
		}
		if !strings.HasPrefix(o.Metadata.Name, "barrier") {
			t.Errorf("%s has the name %s", o.Kind, o.Metadata.Name)
		}
	}
	for key, value := range valuesOf(t) {
		if key != "nameOverride" && fmt.Sprint(r.values[key]) == fmt.Sprint(value) {
			t.Errorf("%s has value %s there too: change it", key, file)
		}
	}
	notes, err := runHelm(t, "notes", chart, file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`required_plugins = ["barrier"]`, `tolerate_missing_plugins_annotation = "example.org/without"`, "shop.yaml, two.yml"} {
		if !strings.Contains(notes, want) {
			t.Errorf("there is no %q in the notes", want)
		}
	}
}

// TestRefused has values that would not work. Each file begins with what the error says.
func TestRefused(t *testing.T) {
	for _, file := range valueFiles(t, "bad") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(text), "\n")
		want, ok := strings.CutPrefix(line, "# want: ")
		if !ok {
			t.Fatalf("%s does not begin with what it wants", file)
		}
		for _, command := range []string{"template", "lint"} {
			switch _, err := runHelm(t, command, chart, file); {
			case err == nil:
				t.Errorf("helm %s takes %s", command, file)
			case !strings.Contains(err.Error(), want):
				t.Errorf("helm %s, %s: there is no %q in: %v", command, file, want, err)
			}
		}
	}
}

// TestExamples takes the policies that the chart's comments and contrib/examples show.
func TestExamples(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	inside := false
	for line := range strings.Lines(string(text)) {
		line, comment := strings.CutPrefix(line, "#   ")
		if inside = comment && (inside || strings.HasPrefix(line, "policies:")); inside {
			shown.WriteString(line)
		}
	}
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(shown.String()), &values); err != nil {
		t.Fatal(err)
	}
	policies, ok := values["policies"].(map[string]any)
	if !ok || len(policies) == 0 {
		t.Fatalf("values.yaml shows no policies: %q", shown.String())
	}
	examples := filepath.Join(root, "contrib", "examples")
	entries, err := os.ReadDir(examples)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, e := range entries {
		if e.IsDir() { // no policies
			continue
		}
		text, err := os.ReadFile(filepath.Join(examples, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		texts[e.Name()] = string(text)
		policies[e.Name()] = string(text)
	}
	out, err := yaml.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, out, fs.FileMode(0o644)); err != nil {
		t.Fatal(err)
	}
	r := render(t, file)
	r.values = valuesOf(t, file)
	r.check()
	data := r.object("ConfigMap", "sidegate-policies").Data
	for name, text := range texts {
		if data[name] != text {
			t.Errorf("%s is not as it was:\n%s", name, data[name])
		}
	}
}
