// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
)

// Role is what a container is to its pod.
type Role uint8

// The roles.
const (
	RoleUnset   Role = iota // not said: the container's name, or the pod, decides
	RoleApp                 // goes through the sidecar
	RoleSidecar             // carries the pod's traffic
	RoleInit                // runs before the apps; Spec.Init says how
	RoleNone                // left alone
)

func roleWords() []string { return []string{"", "app", "sidecar", "init", "none"} }

// String gives the word that is written in a label, empty for RoleUnset.
func (r Role) String() string { return word(roleWords(), uint8(r)) }

// MarshalText writes what String gives.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// ParseRole reads a role. The empty string is not one.
func ParseRole(s string) (Role, error) {
	words := roleWords()
	if i := slices.Index(words, s); i > 0 {
		return Role(i), nil
	}
	return RoleUnset, fmt.Errorf("%s is not a role: write %s", show(s), or(words[1:]))
}

// DefaultSidecarNames lists the container names that are sidecars without any label. The caller owns the slice.
func DefaultSidecarNames() []string {
	return []string{"istio-proxy", "linkerd-proxy", "envoy", "consul-dataplane", "kuma-sidecar"}
}

// Container is one container as its runtime names it (without a leading slash), with what it asks for.
type Container struct {
	Name    string
	Request Request
}

// origin says what decided a role, for messages.
type origin uint8

const (
	byNothing origin = iota
	byLabel
	byPolicy
	byName
)

// own resolves what the container by itself settles: label, then policy, then name.
func (c Container) own(p *PodPolicy) (Role, origin) {
	if c.Request.Role != RoleUnset {
		return c.Request.Role, byLabel
	}
	if p != nil {
		for _, r := range p.Spec.Roles {
			if r.Container == c.Name {
				return r.Role, byPolicy
			}
		}
	}
	if slices.Contains(DefaultSidecarNames(), c.Name) {
		return RoleSidecar, byName
	}
	return RoleUnset, byNothing
}

// RoleOf resolves the role of a container seen alone, which is all that an OCI hook sees. First match wins:
//
//  1. the label sidegate/role
//  2. the policy's spec.roles, by container name
//  3. the default sidecar names: sidecar
//  4. any other sidegate/ label: app
//  5. none
//
// p may be nil, which is the default policy. It differs from [Roles] in one case only: a container that none of
// 1 to 4 settles is an app there if the rest of the pod is managed, and none here, where the rest is not seen.
func RoleOf(c Container, p *PodPolicy) (Role, error) {
	role, _ := c.own(p)
	if role > RoleNone {
		return RoleUnset, fmt.Errorf("container %s: role %s does not exist", show(c.Name), role)
	}
	switch {
	case role != RoleUnset:
		return role, nil
	case c.Request.Managed:
		return RoleApp, nil
	}
	return RoleNone, nil
}

// Roles resolves the roles of a whole pod, in the order of cs. p may be nil, which is the default policy.
//
// Each container gets what its sidegate/role label says, else what the policy's spec.roles says, else sidecar if it
// has a default sidecar's name. The rest of them are apps if the pod is managed, that is if any container got a role
// other than none or has another sidegate/ label; if it is not, they are none and the pod is left alone.
//
// Two sidecars in a pod are an error, and so are two containers of one name.
func Roles(cs []Container, p *PodPolicy) ([]Role, error) {
	roles := make([]Role, len(cs))
	managed := false
	sidecar, sidecarBy := -1, byNothing
	seen := make(map[string]bool, len(cs))
	for i, c := range cs {
		if seen[c.Name] {
			return nil, fmt.Errorf("two containers of the pod are named %s: give them different names", show(c.Name))
		}
		seen[c.Name] = true
		role, by := c.own(p)
		if role > RoleNone {
			return nil, fmt.Errorf("container %s: role %s does not exist", show(c.Name), role)
		}
		roles[i] = role
		managed = managed || (role != RoleUnset && role != RoleNone) || (role == RoleUnset && c.Request.Managed)
		if role != RoleSidecar {
			continue
		}
		if sidecar >= 0 {
			return nil, fmt.Errorf("two sidecars in the pod: %s (%s) and %s (%s): give one of them another role with the label %s",
				show(cs[sidecar].Name), because(sidecarBy), show(c.Name), because(by), KeyRole)
		}
		sidecar, sidecarBy = i, by
	}
	for i, r := range roles {
		if r != RoleUnset {
			continue
		}
		roles[i] = RoleNone
		if managed {
			roles[i] = RoleApp
		}
	}
	return roles, nil
}

func because(o origin) string {
	switch o {
	case byLabel:
		return "by its label"
	case byPolicy:
		return "by the policy"
	}
	return "by its name"
}
