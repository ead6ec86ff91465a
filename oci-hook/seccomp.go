// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/cgroups"
	"sidegate/cgroups/seccomp"
	"sidegate/policy"
)

// maxConfig bounds what precreate reads. Configurations of real containers are some hundred KiB.
const maxConfig = 16 << 20

// precreate changes the configuration of a container that podman is about to make: its seccomp profile, and what it has for
// kTLS. It goes from standard input to standard output (oci-hooks(5)). The configuration of every other container comes out to
// the byte as it went in.
func precreate(e env) error {
	config, err := io.ReadAll(io.LimitReader(e.stdin, maxConfig+1))
	if err == nil && len(config) > maxConfig {
		err = fmt.Errorf("it is larger than %d bytes", maxConfig)
	}
	var spec []member
	if err == nil {
		spec, err = parseObject(config)
	}
	var o order
	ok := false
	if err == nil {
		o, ok, err = orderIn(spec)
	}
	rule := false
	if err == nil && ok {
		spec, rule, err = e.withSpliceRule(spec, o)
	}
	if err != nil {
		return fmt.Errorf("read container configuration from standard input: %w", err)
	}
	// podman shows nobody what a hook says at this stage. What keeps the container from having it, createRuntime says.
	mounted := false
	if with, changed, err := e.withKTLS(spec, o); err == nil && changed {
		spec, mounted = with, true
	}
	if rule || mounted {
		config = writeObject(spec)
	}
	_, err = e.stdout.Write(config)
	return err
}

// orderIn reads what is to be done with the container of a configuration. ok is false if that is nothing.
func orderIn(spec []member) (o order, ok bool, err error) {
	var annotations map[string]string
	raw, err := lookup(spec, "annotations")
	if err == nil {
		err = json.Unmarshal(raw, &annotations)
	}
	if err != nil {
		return o, false, fmt.Errorf("annotations: %w", err)
	}
	o, err = readOrder(&specs.State{Annotations: annotations})
	if err != nil {
		return order{}, false, nil //nolint:nilerr // what is wrong with it, createRuntime says
	}
	return o, o.managed && !o.sandbox, nil
}

// withSpliceRule puts the rule for splice(2) into the seccomp profile of a container that is to have it. All else is as it
// was, to the byte. A profile that cannot have the rule stays as it is, and the container is not accelerated.
func (e env) withSpliceRule(spec []member, o order) (_ []member, changed bool, err error) {
	raw, err := lookup(spec, "linux")
	if err != nil {
		return nil, false, err
	}
	linux, profile, err := readProfile(raw)
	if err != nil {
		return spec, false, nil //nolint:nilerr // createRuntime says so again, where it is kept
	}
	if !cgroups.WantsSpliceRule(o.role, e.policyUnder(o, linux)) {
		return spec, false, nil
	}
	merged, change := seccomp.Merge(profile)
	if change != seccomp.Rule && change != seccomp.Profile {
		return spec, false, nil
	}
	text, err := json.Marshal(merged)
	if err != nil {
		return nil, false, err
	}
	return set(spec, "linux", writeObject(set(linux, "seccomp", text))), true, nil
}

// policyUnder reads the policy that a container will be under, as far as that can be known before it has a process: the one
// that it names, or that of the network namespace that it joins, or the default one. It is nil if that cannot be read.
func (e env) policyUnder(o order, linux []member) *policy.PodPolicy {
	name := o.policy
	if path := networkPath(linux); name == "" && path != "" {
		ns, err := cgroups.OpenNetns(path)
		if err != nil {
			return nil
		}
		defer ns.Close()
		err = cgroups.IfLoaded(e.state, func(s *cgroups.Store) (err error) {
			name, err = s.PolicyOf(ns)
			return err
		})
		if err != nil {
			return nil
		}
	}
	p, err := policy.Find(e.policyDir, cmp.Or(name, policy.DefaultName))
	if err != nil {
		return nil
	}
	return p
}

// networkPath is the path of the network namespace that a container joins, "" if it gets one of its own.
func networkPath(linux []member) string {
	var list []specs.LinuxNamespace
	raw, err := lookup(linux, "namespaces")
	if err != nil || json.Unmarshal(raw, &list) != nil {
		return ""
	}
	for _, ns := range list {
		if ns.Type == specs.NetworkNamespace {
			return ns.Path
		}
	}
	return ""
}

// readProfile reads the seccomp profile of what a configuration has under linux. What is in it that this version of
// runtime-spec does not know would be lost, and may be what denies something: that is an error.
func readProfile(raw json.RawMessage) (linux []member, profile *specs.LinuxSeccomp, err error) {
	fault := func(err error) ([]member, *specs.LinuxSeccomp, error) {
		return nil, nil, fmt.Errorf("its seccomp profile is not understood: %w", err)
	}
	if linux, err = splitObject(raw); err != nil {
		return fault(err)
	}
	if raw, err = lookup(linux, "seccomp"); err != nil {
		return fault(err)
	}
	members, err := splitObject(raw) // which refuses what readers may take for different things
	if err != nil {
		return fault(err)
	}
	if len(members) == 0 {
		return linux, nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&profile); err != nil {
		return fault(err)
	}
	return linux, profile, nil
}

// splice says what the container can do with its sockets.
func (c *configuration) splice() (s cgroups.Splice) {
	if c.Linux == nil {
		s.Why = "its configuration has no linux, and so no seccomp profile"
		return s
	}
	_, profile, err := readProfile(c.Linux)
	if err != nil {
		s.Why = err.Error()
		return s
	}
	s.Impossible, s.Why = seccomp.Covers(profile)
	s.NoIOUring = seccomp.DeniesIOUring(profile)
	return s
}
