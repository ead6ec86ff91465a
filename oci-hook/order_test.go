// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/policy"
)

func TestReadOrder(t *testing.T) {
	cri := func(name string, more map[string]string) map[string]string {
		a := map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": name,
			"io.kubernetes.cri.sandbox-name": "web-0", "io.kubernetes.cri.sandbox-namespace": "shop",
		}
		maps.Copy(a, more)
		return a
	}
	pod := map[string]string{"sidegate/role": "app", "sidegate/wait": "5s"} // a pod's, which a runtime hands on
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		want        order
		role        policy.Role
	}{
		{"containerd, app", cri("web", pod), order{managed: true, name: "web", pod: "shop/web-0", runtime: "containerd", wait: 5 * time.Second}, policy.RoleApp},
		{"containerd, sidecar by name", cri("istio-proxy", pod), order{managed: true, name: "istio-proxy", pod: "shop/web-0", runtime: "containerd"}, policy.RoleSidecar},
		{"containerd, init by name", cri("istio-init", pod), order{managed: true, name: "istio-init", pod: "shop/web-0", runtime: "containerd", wait: 5 * time.Second}, policy.RoleInit},
		{"containerd, by its own key", cri("web", map[string]string{"sidegate/role.web": "sidecar", "sidegate/pod": "a/b"}),
			order{managed: true, name: "web", pod: "a/b", runtime: "containerd"}, policy.RoleSidecar},
		{"containerd, nothing", cri("web", nil), order{name: "web", pod: "shop/web-0", runtime: "containerd"}, policy.RoleApp},
		{"containerd, mesh", cri("web", map[string]string{"linkerd.io/proxy-version": "x"}), order{managed: true, name: "web", pod: "shop/web-0", runtime: "containerd"}, policy.RoleApp},
		{"containerd, exempt", cri("envoy", map[string]string{"sidegate/role": "none"}), order{name: "envoy", pod: "shop/web-0", runtime: "containerd"}, policy.RoleSidecar},
		{"sandbox", map[string]string{"io.kubernetes.cri.container-type": "sandbox", "sidegate/policy": "p"},
			order{managed: true, sandbox: true, policy: "p", runtime: "containerd"}, policy.RoleApp},
		{"CRI-O", map[string]string{
			"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.container.name": "web", "io.kubernetes.cri-o.ContainerName": "k8s_web_x",
			"io.kubernetes.pod.name": "w", "io.kubernetes.pod.namespace": "s", "kuma.io/sidecar-injected": "true",
		}, order{managed: true, name: "web", pod: "s/w", runtime: "cri-o"}, policy.RoleApp},
		{"podman", map[string]string{"io.container.manager": "libpod", "io.kubernetes.cri-o.SandboxID": "abc", "sidegate/role": "sidecar"},
			order{managed: true, pod: "abc", runtime: "podman"}, policy.RoleSidecar},
		{"runc", map[string]string{"sidegate/wait": "1s"}, order{managed: true, runtime: "oci", wait: time.Second}, policy.RoleApp},
	} {
		got, err := readOrder(&specs.State{Annotations: tt.annotations})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		role := got.role
		if role == policy.RoleUnset {
			if role, err = got.roleUnder(nil); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		if role != tt.role {
			t.Errorf("%s: role %s, want %s", tt.name, role, tt.role)
		}
		if got.role, got.roleUnder = policy.RoleUnset, nil; got.managed != tt.want.managed || got.sandbox != tt.want.sandbox || got.name != tt.want.name ||
			got.pod != tt.want.pod || got.runtime != tt.want.runtime || got.policy != tt.want.policy || got.wait != tt.want.wait {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
