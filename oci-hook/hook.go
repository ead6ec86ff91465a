// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/cgroups"
	"sidegate/policy"
)

// maxState bounds what is read from stdin. Annotations of real containers are
// a few KiB; Kubernetes allows 256 KiB of them.
const maxState = 1 << 20

type usageError struct{ error }

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, cgroups.ErrUnsupported):
		return 3
	default:
		return 1
	}
}

func run(e env) error {
	if len(e.args) != 2 {
		return usageError{errors.New("usage: sidegate-oci-hook createRuntime|poststop, with the container's state on standard input; " +
			"sidegate-oci-hook precreate, with its configuration; or, as a runtime, with the arguments of runc")}
	}
	var stage func(env, *specs.State) error
	switch e.args[1] {
	case "createRuntime", "prestart":
		stage = createRuntime
	case "poststop":
		stage = poststop
	case "precreate":
		return precreate(e)
	default:
		return usageError{fmt.Errorf("unknown stage %q: write precreate, createRuntime or poststop in the hook's args", e.args[1])}
	}
	st, err := readState(e.stdin)
	if err != nil {
		return fmt.Errorf("read container state from standard input: %w", err)
	}
	if err := stage(e, st); err != nil {
		return fmt.Errorf("container %s: %w", st.ID, err)
	}
	return nil
}

// readState reads one OCI state object and nothing else.
func readState(r io.Reader) (*specs.State, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxState+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxState {
		return nil, fmt.Errorf("it is larger than %d bytes", maxState)
	}
	var st specs.State
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("it is no OCI state: %w", err)
	}
	if st.ID == "" {
		return nil, errors.New("it is no OCI state: it has no id")
	}
	return &st, nil
}

func createRuntime(e env, st *specs.State) error {
	o, err := readOrder(st)
	if err != nil {
		return err
	}
	if o.sandbox {
		return closePod(e, st, o)
	}
	if !o.managed {
		return admit(e, st)
	}
	if st.Pid <= 0 {
		return errors.New("its state has no pid: this hook belongs to stage createRuntime")
	}
	conf, err := readConfiguration(st.Bundle, true)
	if err != nil {
		return err
	}
	if err := e.checkKTLS(conf, o); err != nil {
		return err
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", st.Pid)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its process %d does not exist", st.Pid)
	}
	if o.name == "" && o.runtime == "podman" {
		if o.name, err = podmanName(st); err != nil {
			return err
		}
	}
	att, err := attach(e, st, conf, o)
	if err != nil {
		return err
	}
	if o.wait == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.wait)
	defer cancel()
	err = cgroups.WaitSidecar(ctx, e.state, att.Cookie)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("its sidecar did not listen on its outbound port within %s (%s): start the sidecar, "+
			"look at its log, or check redirect.outbound in the pod's policy", o.wait, policy.KeyWait)
	}
	if err != nil {
		return errors.Join(err, detach(e, st.ID, st.Pid))
	}
	return nil
}

// closePod makes the network namespace of a CRI pod a managed one when its first process
// comes, which has no sockets. What the pod's containers are, is said with each.
func closePod(e env, st *specs.State, o order) error {
	if !o.managed {
		return nil
	}
	ns, err := cgroups.NetnsOf(st.Pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	return withStore(e, func(s *cgroups.Store, open func() (*cgroups.Store, error)) error {
		c := &cgroups.Container{Role: policy.RoleNone} // no role to find
		if err := choosePolicy(e, s, ns, o, c); err != nil {
			return err
		}
		s, err := open()
		if err != nil {
			return err
		}
		return s.Manage(ns, &cgroups.PodSpec{Pod: o.pod, Policy: c.Policy, PolicyName: c.PolicyName, Source: c.Source})
	})
}

// admit leaves a container alone that wants nothing, unless it is in a managed pod
// and has what gets round what is enforced there: capabilities, or sockets. Few have
// that: only then more is read than its configuration and its descriptors.
func admit(e env, st *specs.State) error {
	c := &cgroups.Container{ID: st.ID, PID: st.Pid}
	if conf, err := readConfiguration(st.Bundle, false); err == nil { // else nobody asked
		c.Capabilities = conf.capabilities()
	}
	if st.Pid <= 0 || !cgroups.NeedsAdmission(c) {
		return nil
	}
	return cgroups.IfLoaded(e.state, func(s *cgroups.Store) error {
		ns, err := cgroups.NetnsOf(st.Pid)
		if err != nil {
			return err
		}
		defer ns.Close()
		return s.Admit(ns, c)
	})
}

func attach(e env, st *specs.State, conf *configuration, o order) (att cgroups.Attached, err error) {
	ns, err := cgroups.NetnsOf(st.Pid)
	if err != nil {
		return att, err
	}
	defer ns.Close()
	err = withStore(e, func(s *cgroups.Store, open func() (*cgroups.Store, error)) error {
		c := &cgroups.Container{
			ID:      st.ID,
			Name:    o.name,
			Pod:     o.pod,
			Runtime: o.runtime,
			PID:     st.Pid,

			Capabilities: conf.capabilities(),
			Splice:       conf.splice(),
			Rootfs:       conf.rootfs(st.Bundle),
		}
		if err := choosePolicy(e, s, ns, o, c); err != nil {
			return err
		}
		s, err := open()
		if err != nil {
			return err
		}
		att, err = s.Attach(ns, c)
		return err
	})
	return att, err
}

// withStore calls f with the state, nil if nothing is loaded, and with what loads it: so
// that a wrong policy leaves nothing in the kernel.
func withStore(e env, f func(s *cgroups.Store, open func() (*cgroups.Store, error)) error) (err error) {
	s, err := cgroups.OpenExisting(e.state)
	if err != nil && !errors.Is(err, cgroups.ErrNotLoaded) {
		return err
	}
	defer func() {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	return f(s, func() (*cgroups.Store, error) {
		if s == nil {
			s, err = cgroups.Open(e.state)
		}
		return s, err
	})
}

// choosePolicy puts policy and role into c.
func choosePolicy(e env, s *cgroups.Store, ns *cgroups.Netns, o order, c *cgroups.Container) error {
	if c.Role == policy.RoleUnset {
		c.Role = o.role
	}
	warning, err := cgroups.ChoosePolicy(s, e.policyDir, ns, o.policy, o.roleUnder, c)
	if warning != "" {
		fmt.Fprintf(e.stderr, "sidegate: warning: %s\n", warning)
	}
	return err
}

// configuration is what is needed of a bundle's config.json (runtime-spec,
// "Configuration").
type configuration struct {
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
	Process struct {
		Capabilities map[string][]string `json:"capabilities"` // by set
		Env          []json.RawMessage   `json:"env"`
	} `json:"process"`
	// Nil if they were not asked for.
	Linux  json.RawMessage   `json:"linux"`
	Mounts []json.RawMessage `json:"mounts"`
}

// readConfiguration stops when it has what it wants, which is at the beginning as
// runtime-spec's types are written: what follows has a hundred kilobytes of seccomp,
// unless all is wanted.
func readConfiguration(bundle string, all bool) (*configuration, error) {
	file := filepath.Join(bundle, "config.json")
	f, err := os.Open(file)
	if bundle == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its bundle %q has no config.json", bundle)
	}
	if err != nil {
		return nil, fmt.Errorf("read its configuration: %w", err)
	}
	defer f.Close()
	c := new(configuration)
	if all {
		err = c.readAll(f)
	} else {
		err = decodeMembers(json.NewDecoder(f), map[string]any{"root": &c.Root, "process": &c.Process})
	}
	if err != nil {
		return nil, fmt.Errorf("its configuration %s is no OCI configuration: %w", file, err)
	}
	return c, nil
}

func (c *configuration) readAll(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	members, err := parseObject(b)
	if err != nil {
		return err
	}
	for _, m := range members {
		var err error
		switch m.key {
		case "root":
			err = json.Unmarshal(m.value, &c.Root)
		case "process":
			err = json.Unmarshal(m.value, &c.Process)
		case "mounts":
			err = json.Unmarshal(m.value, &c.Mounts)
		case "linux":
			c.Linux = m.value
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.key, err)
		}
	}
	return nil
}

// decodeMembers reads those members of an object that are wanted, and no further than to
// the last of them.
func decodeMembers(d *json.Decoder, wanted map[string]any) error {
	if _, err := d.Token(); err != nil { // {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := key.(string)
		into := wanted[name]
		if into == nil {
			into = new(json.RawMessage)
		}
		if err := d.Decode(into); err != nil {
			return err
		}
		if delete(wanted, name); len(wanted) == 0 {
			return nil
		}
	}
	_, err := d.Token() // }
	return err
}

// rootfs returns the container's root directory, which its init process has not
// entered yet at createRuntime (runtime-spec, "Root" and "createRuntime Hooks").
func (c *configuration) rootfs(bundle string) string {
	if filepath.IsAbs(c.Root.Path) {
		return c.Root.Path
	}
	return filepath.Join(bundle, c.Root.Path)
}

// capabilities are those of all sets: what only the bounding set has, a program
// with file capabilities or set-user-ID root can get.
func (c *configuration) capabilities() []string {
	return slices.Concat(slices.Collect(maps.Values(c.Process.Capabilities))...)
}

// podmanName finds the container's name, which podman does not tell hooks, where
// containers/storage keeps it: in containers.json of the directory that has one
// directory for each container, and in that the bundle. "" if there is no such
// file: another layout.
func podmanName(st *specs.State) (string, error) {
	file := filepath.Join(filepath.Dir(filepath.Dir(filepath.Clean(st.Bundle))), "containers.json")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find its name: %w", err)
	}
	var list []struct {
		ID    string   `json:"id"`
		Names []string `json:"names"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return "", fmt.Errorf("find its name in %s: %w", file, err)
	}
	for _, c := range list {
		if c.ID == st.ID && len(c.Names) > 0 {
			return c.Names[0], nil
		}
	}
	return "", nil
}

// poststop runs for every container, since an unmanaged one, such as a pod's
// infra container, may be the last of its pod.
func poststop(e env, st *specs.State) error { return detach(e, st.ID, 0) }

func detach(e env, id string, dying int) error {
	return cgroups.IfLoaded(e.state, func(s *cgroups.Store) error {
		_, err := s.Detach(id, dying)
		return err
	})
}
