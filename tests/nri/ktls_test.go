// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"maps"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// containerd gives the apps of a pod what the plugin adds, and what is run beside their programs too.
func TestKTLS(t *testing.T) {
	ctx := begin(t)
	startPlugin(ctx, t)
	annotations := map[string]string{"sidegate/ktls": "mount", "sidegate/ktls.other": "off"}
	maps.Copy(annotations, istio())
	p := newPod(ctx, t, lab.PodOptions{Annotations: annotations})
	const show = `env | grep -e OPENSSL -e GNUTLS | sort; cat "$OPENSSL_CONF" "$GNUTLS_SYSTEM_PRIORITY_FILE" | grep -i ktls; touch "$OPENSSL_CONF" && echo changed; true`
	see := func(c *lab.Container) string {
		t.Helper()
		out, err := c.Exec(ctx, "/bin/sh", "-c", show)
		must(t, err)
		return string(out)
	}
	startSidecar(ctx, t, p)
	app := startApp(ctx, t, p, lab.ContainerOptions{})
	other, err := p.Run(ctx, "other", lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/sleep", "100"}})
	must(t, err)
	got := see(app)
	for _, want := range []string{
		"GNUTLS_SYSTEM_PRIORITY_FILE=/run/sidegate/ktls/gnutls.conf\n", "OPENSSL_CONF=/run/sidegate/ktls/openssl.cnf\n", "Options = KTLS\n", "ktls = true\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if strings.Contains(got, "changed") {
		t.Error("the app can change it")
	}
	out, err := other.Exec(ctx, "/bin/sh", "-c", "env; ls -d /run/sidegate; true")
	if must(t, err); strings.Contains(string(out), "OPENSSL_CONF") || strings.Contains(string(out), "/run/sidegate") {
		t.Errorf("who is exempt has %q", out)
	}
	must(t, p.Remove(ctx))
}
