// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"slices"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// The wrapper gives an app what makes its TLS libraries hand over their keys. Without the wrapper nobody can.
func TestKTLS(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	const show = `env | grep -e OPENSSL -e GNUTLS | sort; cat "$OPENSSL_CONF" "$GNUTLS_SYSTEM_PRIORITY_FILE" | grep -i ktls; touch "$OPENSSL_CONF"`
	run := func(flags ...string) ([]byte, error) {
		args := slices.Concat([]string{"run", "--rm", "--network", mesh, "--label", "sidegate/ktls=mount"}, flags, []string{lab.AppImage, "/bin/sh", "-c", show + "; true"})
		return world.Docker.CLI(ctx, args...)
	}
	out, err := run(wrapped("app")...)
	must(t, err)
	for _, want := range []string{
		"GNUTLS_SYSTEM_PRIORITY_FILE=/run/sidegate/ktls/gnutls.conf\n", "OPENSSL_CONF=/run/sidegate/ktls/openssl.cnf\n", "Options = KTLS\n", "ktls = true\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	_, err = run(append(wrapped("app"), "--env", "OPENSSL_CONF=/x")...)
	wantError(t, err, `sidegate/ktls: the container has OPENSSL_CONF="/x" already`, "take the variable away")
	_, err = run(label("app")...)
	wantError(t, err, "sidegate/ktls: nothing is mounted at /run/sidegate/ktls: run it by the runtime wrapper (--runtime sidegate)")
	_, err = run(wrapped("sidecar")...)
	wantError(t, err, "sidegate/ktls: mount has no meaning with sidegate/role=sidecar")

	c, _ := runApp(ctx, t, "shop", append(wrapped("app"), "--label", "sidegate/ktls=mount")...)
	out, err = c.Exec(ctx, "/bin/sh", "-c", "cat /proc/1/environ; echo; echo $OPENSSL_CONF; ls /run/sidegate/ktls")
	must(t, err)
	// As docs/tls.md says: the variables are the program's, not those of what is run beside it.
	if first, rest, _ := strings.Cut(string(out), "\n"); !strings.Contains(first, "OPENSSL_CONF=/run/sidegate/ktls/openssl.cnf") || rest != "\ngnutls.conf\nopenssl.cnf\n" {
		t.Errorf("%q", out)
	}
}
