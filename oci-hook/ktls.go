// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

// withKTLS gives a container that asks for it the mount and the variables of package ktls. All else is as it was, to the
// byte. A container that cannot have all of it, has none, and an error.
func (e env) withKTLS(spec []member, o order) (_ []member, changed bool, err error) {
	if !o.ktls {
		return spec, false, nil
	}
	fault := func(err error) ([]member, bool, error) {
		return nil, false, fmt.Errorf("%s: %w", policy.KeyKTLS, err)
	}
	raw, err := lookup(spec, "process")
	if err != nil {
		return fault(err)
	}
	process, err := splitObject(raw)
	if err != nil {
		return fault(fmt.Errorf("process: %w", err))
	}
	environ, err := lookupList(process, "env")
	if err != nil {
		return fault(fmt.Errorf("process.%w", err))
	}
	mounts, err := lookupList(spec, "mounts")
	if err != nil {
		return fault(err)
	}
	has, err := hasKTLS(environ, mounts)
	if err != nil {
		return fault(err)
	}
	if has {
		return spec, false, nil
	}
	if err := ktls.CheckHost(e.ktlsDir); err != nil {
		return fault(err)
	}
	for _, v := range ktls.Variables() {
		text, err := json.Marshal(v.String())
		if err != nil {
			return fault(err)
		}
		environ = append(environ, text)
	}
	// The last of all mounts: whatever is mounted above it, it is not hidden.
	text, err := json.Marshal(specs.Mount{Destination: ktls.Dir, Type: ktls.MountType, Source: e.ktlsDir, Options: ktls.MountOptions()})
	if err != nil {
		return fault(err)
	}
	process = set(process, "env", writeList(environ))
	spec = set(spec, "process", writeObject(process))
	return set(spec, "mounts", writeList(append(mounts, text))), true, nil
}

// checkKTLS tells whether a container that is about to start has what it asks for, and if it has not, why.
func (e env) checkKTLS(c *configuration, o order) error {
	if !o.ktls {
		return nil
	}
	has, err := hasKTLS(c.Process.Env, c.Mounts)
	if err == nil && !has {
		err = ktls.CheckHost(e.ktlsDir)
	}
	if err == nil && !has {
		err = errors.New("nothing has put it into the container's configuration: " + whoMounts(o.runtime))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", policy.KeyKTLS, err)
	}
	return nil
}

// whoMounts says what is to do about a container without its mount.
func whoMounts(runtime string) string {
	switch runtime {
	case "podman":
		return "let podman run this hook at precreate too (make install writes 50-sidegate-precreate.json)"
	case "containerd", "cri-o":
		return "sidegate-nri does when it is created, or sidegate-oci-hook as its runtime: create it again when one of them is there"
	}
	return "run it by sidegate-oci-hook as its runtime"
}

// hasKTLS is [ktls.Has] of what a configuration has.
func hasKTLS(environ, mounts []json.RawMessage) (bool, error) {
	var variables, destinations []string
	for _, raw := range environ {
		var one string
		if err := json.Unmarshal(raw, &one); err != nil {
			return false, fmt.Errorf("process.env: %w", err)
		}
		variables = append(variables, one)
	}
	for _, raw := range mounts {
		var one specs.Mount
		if err := json.Unmarshal(raw, &one); err != nil {
			return false, fmt.Errorf("mounts: %w", err)
		}
		destinations = append(destinations, one.Destination)
	}
	return ktls.Has(variables, destinations)
}

// lookupList returns a member that is a list, nil if there is none.
func lookupList(members []member, key string) (list []json.RawMessage, err error) {
	raw, err := lookup(members, key)
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return list, nil
}

func writeList(list []json.RawMessage) json.RawMessage {
	raw := []byte{'['}
	return append(append(raw, bytes.Join(asBytes(list), []byte{','})...), ']')
}
