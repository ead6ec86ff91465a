// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidegate/cgroups/ktls"
)

// Apps and init containers of a pod that asks for it get the files and the variables, and the hook finds them.
func TestKTLS(t *testing.T) {
	w := newRuntime(t, nil)
	w.config.KTLSDir = t.TempDir()
	must(t, os.Chmod(w.config.KTLSDir, 0o755))
	w.startPlugin()
	p := w.mustRun("web", podOptions{labels: map[string]string{"sidegate/ktls": "mount"}, annotations: map[string]string{
		"sidegate/role.proxy": "sidecar", "sidegate/role.migrate": "init", "sidegate/ktls.go": "off",
	}})
	_, err := p.start("early", ctrOptions{})
	wantError(t, err, "container shop/web/early: sidegate/ktls: "+w.config.KTLSDir+"/openssl.cnf is not there: install it there")
	for _, name := range ktls.Files() {
		must(t, os.WriteFile(filepath.Join(w.config.KTLSDir, name), nil, 0o644))
		must(t, os.Chmod(filepath.Join(w.config.KTLSDir, name), 0o644))
	}
	var ours []string
	for _, v := range ktls.Variables() {
		ours = append(ours, v.String())
	}
	for name, tt := range map[string]struct {
		o    ctrOptions
		want bool
	}{
		"app":     {ctrOptions{env: []string{"PATH=/bin"}, mounts: []string{"/run"}}, true},
		"migrate": {ctrOptions{}, true},
		"has":     {ctrOptions{env: ours, mounts: []string{ktls.Dir}}, true}, // by the wrapper, say
		"proxy":   {ctrOptions{}, false},
		"go":      {ctrOptions{}, false},
		"own":     {ctrOptions{annotations: map[string]string{"sidegate/ktls": "off"}}, false},
	} {
		c := p.mustStart(name, tt.o)
		var there []string
		for _, m := range c.config.Mounts {
			if m.Destination == ktls.Dir {
				there = append(there, m.Source)
			}
		}
		env := slices.DeleteFunc(slices.Clone(c.config.Process.Env), func(one string) bool { return !slices.Contains(ours, one) })
		if !tt.want {
			if len(there)+len(env) != 0 {
				t.Errorf("%s: mounts %q, environment %q", name, there, env)
			}
			continue
		}
		source := w.config.KTLSDir
		if name == "has" {
			source = "/tmp"
		}
		if !slices.Equal(there, []string{source}) || !slices.Equal(env, ours) {
			t.Errorf("%s: mounts %q, environment %q", name, there, c.config.Process.Env)
		}
		if name == "app" {
			m := c.config.Mounts[len(c.config.Mounts)-1]
			if m.Type != "bind" || !slices.Equal(m.Options, ktls.MountOptions()) {
				t.Errorf("mount %+v", m)
			}
		}
	}
	_, err = p.start("other", ctrOptions{env: []string{"OPENSSL_CONF=/etc/ssl/my.cnf"}})
	wantError(t, err, "container shop/web/other", `sidegate/ktls: the container has OPENSSL_CONF="/etc/ssl/my.cnf" already`, "take the variable away")
	_, err = p.start("below", ctrOptions{mounts: []string{ktls.Dir + "/x"}})
	wantError(t, err, "which would be hidden")

	// A container's own annotation, in a pod that says nothing.
	p = w.mustRun("own", podOptions{labels: map[string]string{"sidegate/role": "app"}})
	c := p.mustStart("web", ctrOptions{annotations: map[string]string{"sidegate/ktls": "mount"}})
	if len(c.config.Mounts) != 1 {
		t.Errorf("mounts %+v", c.config.Mounts)
	}
	if c = p.mustStart("db", ctrOptions{}); len(c.config.Mounts) != 0 {
		t.Errorf("mounts %+v", c.config.Mounts)
	}
	_, err = w.run("word", podOptions{labels: map[string]string{"sidegate/ktls": "yes"}})
	wantError(t, err, `sidegate/ktls: "yes" is no way to opt in to kTLS: write mount`)
}

// Who was created while the plugin was away has no mount, and does not start. Who ran before keeps running, and the log
// tells.
func TestKTLSAway(t *testing.T) {
	w := newWorld(t, nil)
	p := w.mustRun("web", podOptions{labels: map[string]string{"sidegate/ktls": "mount"}})
	w.stopPlugin()
	_, err := p.start("away", ctrOptions{away: true, between: w.startPlugin})
	wantError(t, err, "sidegate/ktls: nothing is mounted at /run/sidegate/ktls, since it was created while this plugin was away: create it again")
	w.stopPlugin()
	p.mustStart("before", ctrOptions{silent: true})
	w.startPlugin()
	w.wantRoles("shop/web", "before=app")
	if !strings.Contains(w.logged(), "nothing is mounted at /run/sidegate/ktls") {
		t.Error("the log does not say that it has no mount")
	}
}
