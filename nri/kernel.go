// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

const stateEnv = cgroups.StateEnv

// kernel is what this process does to the state in the kernel, and the policies that it
// has read for it. It holds the state's lock only while it works.
type kernel struct {
	log *logrus.Logger

	mu       sync.Mutex
	mark     uint64 // of the directory that policies were read from
	policies map[string]*policy.PodPolicy
	read     bool
}

// with opens the state, and loads what enforces if it is not loaded.
func with(c *config, f func(*cgroups.Store) error) (err error) {
	s, err := cgroups.Open(c.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return f(s)
}

// load returns the policies of the directory that have no fault. It reads them again
// when the directory has changed.
func (k *kernel) load(dir string) (map[string]*policy.PodPolicy, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	mark, err := policy.Fingerprint(dir)
	if err != nil {
		return nil, err
	}
	if k.read && mark == k.mark {
		return k.policies, nil
	}
	good, broken, err := policy.LoadEach(dir)
	if err != nil {
		return nil, err
	}
	for what, err := range broken {
		k.log.WithField(cli.FieldPath, what).WithError(err).
			Error("a policy has a fault, and what was read before holds: correct the file")
	}
	if len(broken) > 0 {
		// So that a slip of the pen leaves no pod alone that a policy selects. Which policy a
		// faulty file was, nobody knows.
		for name, p := range k.policies {
			if good[name] == nil {
				good[name] = p
			}
		}
	}
	k.policies, k.mark, k.read = good, mark, true
	return good, nil
}

// policyOf returns the policy that the pod is under, or will be. It is nil if that has a
// fault now, or is gone from its directory: the kernel has it.
func (k *kernel) policyOf(c *config, one *pod) (*policy.PodPolicy, error) {
	policies, err := k.load(c.PolicyDir)
	if err != nil {
		return nil, err
	}
	name := cmp.Or(one.policy, one.request.Policy)
	p, err := policy.Choose(policies, name, one.request.Labels)
	if err != nil && one.policy != "" {
		return nil, nil //nolint:nilerr // as the comment says
	}
	return p, err
}

// selected tells whether a policy's podSelector says that the pod is to be managed, though
// nothing in the pod does.
func (k *kernel) selected(c *config, one *pod) (bool, error) {
	policies, err := k.load(c.PolicyDir)
	if err != nil {
		return false, err
	}
	for _, p := range policies {
		if p.Spec.PodSelector.Narrows() && p.Selects(one.request.Labels) {
			return true, nil
		}
	}
	return false, nil
}

// manage closes the pod's network namespace.
func (k *kernel) manage(c *config, one *pod) error {
	ns, err := cgroups.OpenNetns(one.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return with(c, func(s *cgroups.Store) error {
		have, err := s.PolicyOf(ns)
		if err != nil {
			return err
		}
		if have != "" && (one.request.Policy == "" || one.request.Policy == have) {
			one.policy = have
			return nil
		}
		wanted := one.request.Policy
		if wanted == "" {
			p, err := k.policyOf(c, one)
			if err != nil {
				return err
			}
			wanted = p.Metadata.Name
		}
		what := cgroups.Container{Role: policy.RoleNone} // no role to find
		if err := k.choose(s, c, one, ns, wanted, &what); err != nil {
			return err
		}
		if err := s.Manage(ns, &cgroups.PodSpec{Pod: one.name, Policy: what.Policy, PolicyName: what.PolicyName, Source: what.Source}); err != nil {
			return err
		}
		one.policy = wanted
		return nil
	})
}

func (k *kernel) choose(s *cgroups.Store, c *config, one *pod, ns *cgroups.Netns, wanted string, what *cgroups.Container) error {
	warning, err := cgroups.ChoosePolicy(s, c.PolicyDir, ns, wanted, nil, what)
	if warning != "" {
		k.log.WithFields(one.subject(what.Name, what.ID).fields()).WithFields(logrus.Fields{cli.FieldPolicy: wanted, logrus.ErrorKey: warning}).
			Warn("the policy stays as it is in force: correct its file, or put it back")
	}
	return err
}

// in opens the namespace and the state for one container of the pod, whose process must
// be in that namespace.
func (k *kernel) in(c *config, one *pod, what container, f func(*cgroups.Store, *cgroups.Netns, *cgroups.Container) error) error {
	ns, err := cgroups.NetnsOf(what.pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	capabilities, err := cgroups.CapabilitiesOf(what.pid)
	if err != nil {
		return err
	}
	return with(c, func(s *cgroups.Store) error {
		of := &cgroups.Container{
			ID: what.id, Name: what.name, Pod: one.name, Runtime: what.runtime, Role: what.role, PID: what.pid, Capabilities: capabilities,
			Splice: what.splice,
		}
		if err := k.choose(s, c, one, ns, one.policy, of); err != nil {
			return err
		}
		return f(s, ns, of)
	})
}

// attach registers a container that has not run. It tells whether it was registered.
func (k *kernel) attach(c *config, one *pod, what container) (already bool, err error) {
	err = k.in(c, one, what, func(s *cgroups.Store, ns *cgroups.Netns, of *cgroups.Container) error {
		att, err := s.Attach(ns, of)
		already = att.Already
		return err
	})
	return already, err
}

// adopt registers a container that runs.
func (k *kernel) adopt(c *config, one *pod, what container) (got cgroups.Adopted, err error) {
	err = k.in(c, one, what, func(s *cgroups.Store, ns *cgroups.Netns, of *cgroups.Container) error {
		got, err = s.Adopt(ns, of)
		return err
	})
	return got, err
}

// shut closes the namespace of a container that could not be registered, if it is not
// closed already, so that it is not left without enforcement either.
func (k *kernel) shut(c *config, one *pod, what container) error {
	ns, err := cgroups.NetnsOf(what.pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	return with(c, func(s *cgroups.Store) error { return s.Shut(ns, one.name) })
}

func (k *kernel) forget(c *config, id string) error {
	return cgroups.IfLoaded(c.StateDir, func(s *cgroups.Store) error {
		_, err := s.Forget(id)
		return err
	})
}

func (k *kernel) collect(c *config) (n cgroups.Collected, err error) {
	err = cgroups.IfLoaded(c.StateDir, func(s *cgroups.Store) error {
		n, err = s.Collect()
		return err
	})
	return n, err
}

// preload puts programs and guard into the kernel before the first pod waits for it, and
// tells early whether this kernel can.
func preload(c *config) error {
	if err := with(c, func(*cgroups.Store) error { return nil }); err != nil {
		return fmt.Errorf("state %s: %w", c.StateDir, err)
	}
	return nil
}
