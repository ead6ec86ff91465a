// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/policy"
)

// dockerAt serves Docker's list of containers at a socket in dir.
func dockerAt(t *testing.T, dir, list string) string {
	t.Helper()
	socket := filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", socket)
	must(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/containers/json" || r.URL.Query().Get("all") != "1" || !strings.Contains(r.URL.Query().Get("filters"), "c0ffee") {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = w.Write([]byte(list))
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return socket
}

// mobyBundle makes the wrapping's bundle that of a container of Docker's.
func mobyBundle(t *testing.T, w *wrapping) {
	t.Helper()
	bundle := filepath.Join(w.bundle, dockerNamespace, "c0ffee")
	must(t, os.MkdirAll(bundle, 0o700))
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(`{"annotations":{"sidegate/policy":"own","x":"y"}}`), 0o600))
	w.args = append(w.args, "create", "--bundle", bundle, "c0ffee")
}

// Labels of Docker's containers reach the hook.
func TestDockerLabels(t *testing.T) {
	w := newWrapping(t)
	mobyBundle(t, w)
	socket := dockerAt(t, t.TempDir(), `[{"Id":"c0ffee","Names":["/shop","/other/alias"],"Labels":{"sidegate/role":"app","sidegate/policy":"label","z":"1"}}]`)
	w.environ = append(w.environ, dockerEnv+"="+socket)
	_ = w.wrap()
	b, err := os.ReadFile(filepath.Join(w.bundle, dockerNamespace, "c0ffee", "config.json"))
	must(t, err)
	if want := `{"annotations":{"sidegate/policy":"own","x":"y","io.sidegate.docker.name":"shop","sidegate/role":"app"},"hooks":`; !strings.HasPrefix(string(b), want) {
		t.Errorf("config.json is %s, want %s...", b, want)
	}
	if w.executed == nil {
		t.Error("the runtime was not executed")
	}
	o, err := readOrder(&specs.State{Annotations: map[string]string{"sidegate/role": "app", "io.sidegate.docker.name": "shop"}})
	must(t, err)
	if o.name != "shop" || o.pod != "shop" || o.runtime != "docker" || o.role != policy.RoleApp || !o.managed {
		t.Errorf("the hook reads %+v", o)
	}
}

// Who it is that asks for no role is as important as who does.
func TestDockerDoesNotAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		socket func(dir string) string
		want   string
	}{
		"no socket":      {func(dir string) string { return filepath.Join(dir, "none") }, "SIDEGATE_DOCKER_SOCKET"},
		"unknown":        {func(dir string) string { return dockerAt(t, dir, `[{"Id":"c0ffee1"}]`) }, "it does not know it"},
		"something else": {func(dir string) string { return dockerAt(t, dir, `{}`) }, "cannot unmarshal"},
	} {
		w := newWrapping(t)
		mobyBundle(t, w)
		w.environ = append(w.environ, dockerEnv+"="+tt.socket(t.TempDir()))
		if err := w.wrap(); err == nil || !strings.Contains(err.Error(), tt.want) || w.executed != nil {
			t.Errorf("%s: executed %q, error %v, want %q", name, w.executed, err, tt.want)
		}
	}
}

// Docker starts what it is to start again before it serves.
func TestDockerFile(t *testing.T) {
	containers := filepath.Join(t.TempDir(), "containers")
	for name, tt := range map[string]struct{ mounted, file, want string }{
		"its own":         {"c0ffee/hosts", `{"ID":"c0ffee","Name":"/shop","Config":{"Labels":{"sidegate/role":"app","z":"1"}}}`, ""},
		"of another":      {"facade/resolv.conf", `{"ID":"c0ffee","Name":"/shop","Config":{"Labels":{"sidegate/role":"app"}}}`, ""},
		"another's file":  {"c0ffee/hosts", `{"ID":"facade","Name":"/shop","Config":{"Labels":{"sidegate/role":"app"}}}`, "is not understood"},
		"not understood":  {"c0ffee/hosts", `[`, "is not understood"},
		"another's mount": {"../c0ffee/hosts", `{"ID":"c0ffee"}`, "nor are the files found"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWrapping(t)
			mobyBundle(t, w)
			bundle := filepath.Join(w.bundle, dockerNamespace, "c0ffee")
			config := `{"mounts":[{"destination":"/proc","source":"proc"},{"destination":"/etc/hosts","source":"` + filepath.Join(containers, tt.mounted) + `"}]}`
			must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o600))
			must(t, os.MkdirAll(filepath.Join(containers, "c0ffee"), 0o700))
			must(t, os.WriteFile(filepath.Join(containers, "c0ffee", "config.v2.json"), []byte(tt.file), 0o600))
			w.environ = append(w.environ, dockerEnv+"="+filepath.Join(t.TempDir(), "none"))
			err := w.wrap()
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || w.executed != nil {
					t.Errorf("executed %q, error %v, want %q", w.executed, err, tt.want)
				}
				return
			}
			b, rerr := os.ReadFile(filepath.Join(bundle, "config.json"))
			must(t, rerr)
			if w.executed == nil || !strings.Contains(string(b), `"annotations":{"io.sidegate.docker.name":"shop","sidegate/role":"app"}`) {
				t.Errorf("executed %q, error %v, config.json %s", w.executed, err, b)
			}
		})
	}
}
