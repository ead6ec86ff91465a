// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
)

// AddAgent lets the processes in the cgroup of process pid have TCP and UDP sockets on loopback in the network
// namespaces of managed pods. It is for a runtime that serves its containers there, as Docker's name server does;
// no other address can be reached by them, and no container under rules answers or hears them. Cgroups below it have
// no part in that. The root cgroup is refused. Entries of cgroups that are gone are removed.
func (s *Store) AddAgent(pid int) error { return s.putAgent(pid, bpf.RoleDead) }

// putAgent is AddAgent for sockets that get a record of this role.
func (s *Store) putAgent(pid int, role bpf.Role) error {
	keys, err := keysOf[uint64](s.maps.Agents)
	if err != nil {
		return err
	}
	for _, id := range keys {
		alive, err := s.mount.Alive(id)
		if err != nil {
			return err
		}
		if alive {
			continue
		}
		if err := s.maps.Agents.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete agent of cgroup %d: %w", id, err)
		}
	}
	cg, err := s.mount.Of(pid)
	if err != nil {
		return err
	}
	defer cg.Close()
	if cg.Path == "/" || cg.Path == s.mount.Root {
		return fmt.Errorf("process %d is in the root cgroup, as is whoever is in no other: start it as a service, in a cgroup of its own", pid)
	}
	if err := s.maps.Agents.Put(cg.ID, uint8(role)); err != nil {
		return fmt.Errorf("put agent of cgroup %s: %w", cg.Path, err)
	}
	return nil
}
