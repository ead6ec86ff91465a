// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// Annotations that podman and CRI-O set.
const (
	annotationSandbox = "io.kubernetes.cri-o.SandboxID"
	annotationName    = "io.kubernetes.cri-o.ContainerName"
	annotationManager = "io.container.manager"
)

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
		return usageError{fmt.Errorf("usage: %s createRuntime|poststop, with the container's state on standard input", "sidegate-oci-hook")}
	}
	var stage func(env, *specs.State) error
	switch e.args[1] {
	case "createRuntime", "prestart":
		stage = createRuntime
	case "poststop":
		stage = poststop
	default:
		return usageError{fmt.Errorf("unknown stage %q: write createRuntime or poststop in the hook's args", e.args[1])}
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
	req, err := policy.ParseRequest(st.Annotations)
	if err != nil {
		return err
	}
	name := st.Annotations[annotationName]
	if !req.Managed && !slices.Contains(policy.DefaultSidecarNames(), name) {
		return nil // left alone
	}
	if st.Pid <= 0 {
		return errors.New("its state has no pid: this hook belongs to stage createRuntime")
	}
	if _, err := os.Stat(filepath.Join(st.Bundle, "config.json")); st.Bundle == "" || err != nil {
		return fmt.Errorf("its bundle %q has no config.json", st.Bundle)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", st.Pid)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its process %d does not exist", st.Pid)
	}
	att, err := attach(e, st, req, name)
	if err != nil {
		return err
	}
	if req.Wait == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), req.Wait)
	defer cancel()
	err = cgroups.WaitSidecar(ctx, e.state, att.Cookie)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("its sidecar did not listen on its outbound port within %s (%s): start the sidecar, "+
			"look at its log, or check redirect.outbound in the pod's policy", req.Wait, policy.KeyWait)
	}
	if err != nil {
		return errors.Join(err, detach(e, st.ID, st.Pid))
	}
	return nil
}

func attach(e env, st *specs.State, req policy.Request, name string) (att cgroups.Attached, err error) {
	ns, err := cgroups.NetnsOf(st.Pid)
	if err != nil {
		return att, err
	}
	defer ns.Close()
	var s *cgroups.Store
	defer func() {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	wanted := req.Policy
	if wanted == "" {
		if s, wanted, err = policyOfPod(e, ns); err != nil {
			return att, err
		}
	}
	// Before anything is loaded, so that a wrong policy leaves nothing in the kernel.
	p, err := policy.Find(e.policyDir, wanted)
	if err != nil {
		return att, fmt.Errorf("%s: %w", policy.KeyPolicy, err)
	}
	compiled, err := p.Compile()
	if err != nil {
		return att, fmt.Errorf("policy %s: %w", p.Metadata.Name, err)
	}
	role, err := policy.RoleOf(policy.Container{Name: name, Request: req}, p)
	if err != nil {
		return att, err
	}
	if s == nil {
		if s, err = cgroups.Open(e.state); err != nil {
			return att, err
		}
	}
	return s.Attach(ns, &cgroups.Container{
		ID:      st.ID,
		Name:    name,
		Pod:     cmp.Or(req.Pod, st.Annotations[annotationSandbox]),
		Runtime: runtimeOf(st),
		Role:    role,
		Policy:  compiled,
		PID:     st.Pid,
	})
}

// policyOfPod returns the name of the policy of the pod that ns is, or "", and
// the state that says so, or nil if nothing is loaded.
func policyOfPod(e env, ns *cgroups.Netns) (*cgroups.Store, string, error) {
	s, err := cgroups.OpenExisting(e.state)
	if errors.Is(err, cgroups.ErrNotLoaded) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	name, err := s.PolicyOf(ns)
	if err != nil {
		return nil, "", errors.Join(err, s.Close())
	}
	return s, name, nil
}

func runtimeOf(st *specs.State) string {
	if st.Annotations[annotationManager] == "libpod" {
		return "podman"
	}
	return "oci"
}

// poststop runs for every container, since an unmanaged one, such as a pod's
// infra container, may be the last of its pod.
func poststop(e env, st *specs.State) error { return detach(e, st.ID, 0) }

func detach(e env, id string, dying int) (err error) {
	s, err := cgroups.OpenExisting(e.state)
	if errors.Is(err, cgroups.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	_, err = s.Detach(id, dying)
	return err
}
