// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A pod's labels and annotations hold for all of its containers. These prefixes, followed by a container's name, are
// those of what one container is told: sidegate/role.NAME, sidegate/wait.NAME and sidegate/ktls.NAME.
const (
	KeyRoleOf = KeyRole + "."
	KeyWaitOf = KeyWait + "."
	KeyKTLSOf = KeyKTLS + "."
)

// IsKeyOfContainer tells whether a key is a pod's, about one of its containers by name.
func IsKeyOfContainer(key string) bool {
	return strings.HasPrefix(key, KeyRoleOf) || strings.HasPrefix(key, KeyWaitOf) || strings.HasPrefix(key, KeyKTLSOf)
}

// mark is what an injector leaves on a pod that it gave a sidecar. An empty value stands for any.
type mark struct{ key, value string }

// injectors are the marks of the meshes whose sidecars have one of [DefaultSidecarNames].
func injectors() []mark {
	return []mark{
		{"sidecar.istio.io/status", ""},
		{"linkerd.io/proxy-version", ""},
		{"kuma.io/sidecar-injected", "true"},
		{"consul.hashicorp.com/connect-inject-status", "injected"},
		{"consul.hashicorp.com/mesh-inject-status", "injected"},
	}
}

// Istio's injector also fills in the proxy of a gateway, which listens by itself and has no app behind it.
const (
	templatesKey    = "inject.istio.io/templates"
	gatewayTemplate = "gateway"
)

// DefaultInitNames lists the names of the containers by which meshes prepare or check a pod before its apps run. The
// caller owns the slice.
func DefaultInitNames() []string {
	return []string{
		"istio-init", "istio-validation", "linkerd-init", "linkerd-network-validator", "kuma-init", "kuma-validation",
		"consul-connect-inject-init",
	}
}

// PodRequest is what a pod asks for by its labels and annotations, where a runtime has pods: Kubernetes' and CRI's.
type PodRequest struct {
	// Request is of the pod as a whole. Its role is that of the containers which nothing else gives one.
	Request
	// Roles, Waits and KTLSOf are those of containers by name.
	Roles  map[string]Role
	Waits  map[string]time.Duration
	KTLSOf map[string]KTLS
	// Mesh is the key by which a mesh's injector marked the pod; empty if none did.
	Mesh string
	// Labels are the pod's, for [Choose].
	Labels map[string]string
}

// ParsePod reads what starts with "sidegate/" in a pod's labels and annotations, and the marks of injectors. A key that
// both have must have one value. An error lists all that is wrong.
func ParsePod(labels, annotations map[string]string) (PodRequest, error) {
	r := PodRequest{Labels: labels}
	var errs []error
	keys := make(map[string]string)
	pod := make(map[string]string)
	for _, from := range []map[string]string{labels, annotations} {
		for key, value := range from {
			if !strings.HasPrefix(key, keyPrefix) {
				continue
			}
			if other, twice := keys[key]; twice && other != value {
				errs = append(errs, fmt.Errorf("%s: the pod's label says %s, its annotation %s: write it once", key, show(other), show(value)))
			}
			keys[key] = value
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		value := keys[key]
		var err error
		if name, ok := strings.CutPrefix(key, KeyRoleOf); ok {
			err = r.setRole(name, value)
		} else if name, ok := strings.CutPrefix(key, KeyWaitOf); ok {
			err = r.setWait(name, value)
		} else if name, ok := strings.CutPrefix(key, KeyKTLSOf); ok {
			err = r.setKTLS(name, value)
		} else {
			pod[key] = value
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	request, err := ParseRequest(pod)
	if err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return PodRequest{}, errors.Join(errs...)
	}
	r.Request = request
	r.Managed = len(keys) > 0
	r.Mesh = injected(labels, annotations)
	return r, nil
}

func (r *PodRequest) setRole(name, value string) error {
	if msg := nameProblem(name, "the name of a container"); msg != "" {
		return errors.New(msg)
	}
	role, err := ParseRole(value)
	if r.Roles == nil {
		r.Roles = make(map[string]Role)
	}
	r.Roles[name] = role
	return err
}

func (r *PodRequest) setWait(name, value string) error {
	if msg := nameProblem(name, "the name of a container"); msg != "" {
		return errors.New(msg)
	}
	one, err := ParseRequest(map[string]string{KeyWait: value})
	if r.Waits == nil {
		r.Waits = make(map[string]time.Duration)
	}
	r.Waits[name] = one.Wait
	return err
}

func (r *PodRequest) setKTLS(name, value string) error {
	if msg := nameProblem(name, "the name of a container"); msg != "" {
		return errors.New(msg)
	}
	way, err := parseKTLS(value)
	if r.KTLSOf == nil {
		r.KTLSOf = make(map[string]KTLS)
	}
	r.KTLSOf[name] = way
	return err
}

// injected returns the key of an injector's mark.
func injected(labels, annotations map[string]string) string {
	for _, from := range []map[string]string{annotations, labels} {
		for template := range strings.SplitSeq(from[templatesKey], ",") {
			if strings.TrimSpace(template) == gatewayTemplate {
				return ""
			}
		}
	}
	for _, from := range []map[string]string{annotations, labels} {
		for _, m := range injectors() {
			if value, ok := from[m.key]; ok && (m.value == "" || value == m.value) {
				return m.key
			}
		}
	}
	return ""
}

// Wants tells whether the pod asks for Sidegate by itself, whatever its containers are named: it has a "sidegate/" key,
// or an injector's mark. A pod whose role is none wants to be left alone.
func (r *PodRequest) Wants() bool {
	return !r.Exempt() && (r.Managed || r.Mesh != "")
}

// Exempt tells whether the pod is to be left alone, whatever else is known of it.
func (r *PodRequest) Exempt() bool { return r.Role == RoleNone && len(r.Roles) == 0 }

// RoleIn returns the role of a container of this name in the pod, which is managed. First match wins:
//
//  1. sidegate/role.NAME
//  2. the policy's spec.roles
//  3. the default sidecar names: sidecar; the default init names: init
//  4. the pod's sidegate/role
//  5. app
//
// p may be nil, which is the default policy.
func (r *PodRequest) RoleIn(name string, p *PodPolicy) Role {
	if role := r.Roles[name]; role != RoleUnset {
		return role
	}
	role, _ := Container{Name: name}.own(p)
	if role == RoleUnset && slices.Contains(DefaultInitNames(), name) {
		role = RoleInit
	}
	if role == RoleUnset {
		role = r.Role
	}
	if role == RoleUnset {
		role = RoleApp
	}
	return role
}

// WaitIn returns how long the container of this name waits for its sidecar: what is said of it, or else of its pod. Only
// apps and init containers wait.
func (r *PodRequest) WaitIn(name string, role Role) time.Duration {
	if role != RoleApp && role != RoleInit {
		return 0
	}
	if own, has := r.Waits[name]; has {
		return own
	}
	return r.Wait
}

// KTLSIn returns whether the container of this name gets the configuration for kTLS: what is said of it, or else of its
// pod. Only apps and init containers do: the connections of others go through no TLS relay.
func (r *PodRequest) KTLSIn(name string, role Role) KTLS {
	if role != RoleApp && role != RoleInit {
		return KTLSUnset
	}
	if own := r.KTLSOf[name]; own != KTLSUnset {
		return own
	}
	return r.KTLS
}

// NamesSidecar tells whether a container of this name makes its pod a mesh's although nothing else says so.
func (r *PodRequest) NamesSidecar(name string) bool {
	return r.Roles[name] == RoleSidecar || r.Role == RoleUnset && slices.Contains(DefaultSidecarNames(), name)
}
