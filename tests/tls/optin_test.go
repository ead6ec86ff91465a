// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// optedIn says what it has of sidegate/ktls, and then asks.
const optedIn = `
import os, ssl, urllib.request
for name in ("OPENSSL_CONF", "GNUTLS_SYSTEM_PRIORITY_FILE"):
    print(name, os.environ.get(name))
    try:
        os.utime(os.environ[name])
        print("it can be changed")
    except OSError as e:
        print(e.strerror)
c = ssl.create_default_context(cafile="/site/ca.pem")
print(bool(c.options & 1 << 3), c.minimum_version.name)
for path in ("/v1/a", "/secret/b"):
    try:
        with urllib.request.urlopen("https://api.example" + path, context=c, timeout=10) as r:
            print(r.status, r.read().decode().strip())
    except Exception as e:
        print("failed:", type(e).__name__)
print("done")
`

// What an annotation is enough for: OpenSSL in a container hands over its keys, and its requests are seen. It is so for
// any user, where /run is the container's own, where all of it is read-only, and when the container is started again.
func TestOptIn(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, "inspect")
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "hosts"), []byte("127.0.0.1 localhost\n"+lab.OutsideV4.String()+" "+strings.Join(hosts, " ")+"\n"), 0o644))
	flags := []string{
		"--volume", "/usr:/usr:ro", "--volume", "/lib:/lib:ro", "--volume", "/lib64:/lib64:ro",
		"--volume", filepath.Dir(world.site.ca) + ":/site:ro", "--volume", dir + "/hosts:/etc/hosts:ro",
	}
	opts := func(more ...string) lab.ContainerOptions {
		return lab.ContainerOptions{
			Annotations: map[string]string{"sidegate/role": "app", "sidegate/policy": "inspect", "sidegate/ktls": "mount"},
			Flags:       append(slices.Clone(flags), more...), Args: []string{"/usr/bin/python3", "-c", optedIn},
		}
	}
	want := []string{
		"OPENSSL_CONF /run/sidegate/ktls/openssl.cnf", "Read-only file system",
		"GNUTLS_SYSTEM_PRIORITY_FILE /run/sidegate/ktls/gnutls.conf", "Read-only file system",
		"True TLSv1_2", "200 hello /v1/a", "failed: ", "done",
	}
	w := watchAll(t)
	check := func(name, out string) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if !slices.EqualFunc(lines, want, func(got, want string) bool { return got == want || want == "failed: " && strings.HasPrefix(got, want) }) {
			t.Errorf("%s: it says %q", name, lines)
		}
		w.askedFor("GET api.example/v1/a")
		w = watchAll(t)
	}
	for name, o := range map[string]lab.ContainerOptions{
		"user": opts("--user", "65534:65534", "--cap-drop", "all", "--tmpfs", "/run"), "readonly": opts("--read-only"),
	} {
		c, err := p.Run(ctx, name, lab.AppImage, o)
		must(t, err)
		must(t, c.Wait(ctx))
		check(name, logOf(t, c))
		if name != "readonly" {
			continue
		}
		// podman makes the configuration anew for each start.
		first := logOf(t, c)
		must(t, c.Start(ctx))
		must(t, c.Wait(ctx))
		check(name+", started again", strings.TrimPrefix(logOf(t, c), first))
	}

	// What cannot be had does not start, and podman says why.
	for name, tt := range map[string]struct {
		o     lab.ContainerOptions
		hooks string
		words []string
	}{
		"variable": {opts("--env", "OPENSSL_CONF=/etc/ssl/openssl.cnf"), world.hooks,
			[]string{`sidegate/ktls: the container has OPENSSL_CONF="/etc/ssl/openssl.cnf" already`, "take the variable away"}},
		"files": {opts(), bareHooks(t), []string{"/ktls/openssl.cnf is not there: install it there (make install)"}},
	} {
		c, err := runWith(ctx, p, tt.hooks, name, tt.o)
		if err == nil {
			t.Errorf("%s: it started: %s", name, logOf(t, c))
			continue
		}
		for _, word := range tt.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want %q", name, err, word)
			}
		}
		w.askedFor()
	}
}

// Accelerated sockets cannot have TLS in the kernel: who is given the configuration for that is not accelerated.
func TestOptInIsPlain(t *testing.T) {
	ctx := begin(t)
	dir := t.TempDir()
	hooks, err := lab.Install(dir, filepath.Join(world.bin, "sidegate-oci-hook"), map[string]string{
		"fast.yaml": "apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: fast}\nspec: {accelerate: on}\n",
	})
	must(t, err)
	must(t, lab.InstallKTLS(dir, "../../contrib/ktls"))
	p, err := world.NewPod(ctx, lab.PodOptions{HooksDir: hooks})
	must(t, err)
	t.Cleanup(func() { must(t, p.Remove(context.Background())) })
	off := make(map[string]string)
	for name, ktls := range map[string]string{"plain": "mount", "fast": "off"} {
		c, err := p.Run(ctx, name, lab.AppImage, lab.ContainerOptions{
			Annotations: map[string]string{"sidegate/role": "app", "sidegate/policy": "fast", "sidegate/ktls": ktls}, Args: []string{"/bin/sleep", "100"},
		})
		must(t, err)
		var status struct {
			Pods []struct {
				Containers []cgroups.ContainerStatus `json:"containers"`
			} `json:"pods"`
		}
		must(t, json.Unmarshal([]byte(sidegate(t, "status", "-o", "json")), &status))
		for _, pod := range status.Pods {
			for _, one := range pod.Containers {
				if one.Name == c.Name {
					off[name] = one.Acceleration.Off
				}
			}
		}
	}
	if why, ok := off["fast"]; !ok || why != "" {
		t.Skipf("nothing is accelerated here: %q", off)
	}
	if !strings.Contains(off["plain"], "configured to use TLS in the kernel") {
		t.Errorf("it is accelerated: %q", off["plain"])
	}
}

// bareHooks is an installation whose files for kTLS were forgotten.
func bareHooks(t *testing.T) string {
	t.Helper()
	hooks, err := lab.Install(t.TempDir(), filepath.Join(world.bin, "sidegate-oci-hook"), policies)
	must(t, err)
	return hooks
}

// runWith runs a container in the pod with other hooks than the pod's.
func runWith(ctx context.Context, p *pod, hooks, name string, o lab.ContainerOptions) (*lab.Container, error) {
	args := []string{"--hooks-dir", hooks, "run", "--detach", "--pod", p.Name, "--name", p.Name + "-" + name}
	for key, value := range o.Annotations {
		args = append(args, "--annotation", key+"="+value)
	}
	_, err := world.Podman.Run(ctx, append(append(append(args, o.Flags...), lab.AppImage), o.Args...)...)
	return nil, err
}

// logOf is what a container wrote, without what podman writes before each line.
func logOf(t *testing.T, c *lab.Container) string {
	t.Helper()
	if c == nil {
		return ""
	}
	log, err := c.Log()
	must(t, err)
	var text strings.Builder
	for line := range strings.Lines(string(log)) {
		if fields := strings.SplitN(line, " ", 4); len(fields) == 4 {
			text.WriteString(fields[3])
		}
	}
	return text.String()
}
