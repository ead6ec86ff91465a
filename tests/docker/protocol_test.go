// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

// Every call, each twice, by the client that dockerd has for remote drivers.
func TestRemoteDriver(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	program := filepath.Join(t.TempDir(), "remote")
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	must(t, err)
	build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(strings.TrimSpace(string(root)), "tests/tools/docker"), "-o", program, "./remote")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build remote: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, program, lab.SidegateDriver).CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// What is no request of libnetwork's is refused, and changes nothing.
func TestMalformedRequests(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(lab.DockerPlugins, lab.SidegateDriver+".sock"))
		},
	}}
	post := func(call, body string) (code int, answer string) {
		t.Helper()
		r, err := client.Post("http://driver/NetworkDriver."+call, "application/json", strings.NewReader(body))
		must(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		must(t, err)
		return r.StatusCode, string(b)
	}
	for _, call := range []string{"CreateNetwork", "CreateEndpoint", "Join", "ProgramExternalConnectivity"} {
		for _, body := range []string{"", "{", "[]", `"x"`, "{}", `{"NetworkID": 7}`, `{"NetworkID": "../../x", "EndpointID": "../y", "Options": {"com.docker.network.portmap": 1}}`} {
			code, answer := post(call, body)
			nothing := call == "ProgramExternalConnectivity" && body == "{}" // no ports to publish
			if code == http.StatusOK && !nothing {
				t.Errorf("%s %s: %d %s", call, body, code, answer)
			}
		}
	}
	for _, call := range []string{"Leave", "DeleteEndpoint", "DeleteNetwork", "RevokeExternalConnectivity"} {
		for _, body := range []string{"{}", `{"NetworkID": "nobody's", "EndpointID": "nobody's"}`} {
			if code, answer := post(call, body); code != http.StatusOK {
				t.Errorf("%s %s of what is not there: %d %s", call, body, code, answer)
			}
		}
	}
	if ends := hostEnds(t); len(ends) != 0 {
		t.Errorf("there are %v", ends)
	}
	newMesh(ctx, t) // it serves still
}
