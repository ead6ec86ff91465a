// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// The structs of src/endpoint.bpf.c, generated.
type (
	Endpoint         = endpointSgEndpoint
	EndpointCounters = endpointSgEndpointCounters
	EndpointDrop     = endpointSgEndpointDrop
)

// EndpointOpen is the flag of an endpoint that lets anything through
// (enum sg_endpoint_flags).
const EndpointOpen uint8 = 1

// NewEndpoint returns what the other end of a device may say of itself. An
// address that is not valid it does not have.
func NewEndpoint(mac [6]byte, v4, v6 netip.Addr, flags uint8) Endpoint {
	e := Endpoint{Mac: mac, Flags: flags}
	if v4.IsValid() {
		e.V4.B = v4.As16()
	}
	if v6.IsValid() {
		e.V6.B = v6.As16()
	}
	return e
}

// EndpointDrops returns the reasons for drops, in order of their numbers, by
// their names.
func EndpointDrops() []string {
	return []string{"closed", "mac", "address", "ethertype", "malformed"}
}

// Endpoints are the programs and maps of all guarded endpoints of a node.
// Whoever got them owns the descriptors until Close.
type Endpoints struct {
	From     *ebpf.Program `ebpf:"sg_endpoint_from"` // ingress of the host's end
	To       *ebpf.Program `ebpf:"sg_endpoint_to"`   // egress of it
	Entries  *ebpf.Map     `ebpf:"endpoints"`
	Counters *ebpf.Map     `ebpf:"endpoint_counters"`
}

// Programs gives each program by its name in the object.
func (e *Endpoints) Programs() map[string]**ebpf.Program {
	return map[string]**ebpf.Program{endpointProgSgEndpointFrom: &e.From, endpointProgSgEndpointTo: &e.To}
}

// Maps gives each map by its name in the object.
func (e *Endpoints) Maps() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{endpointMapEndpoints: &e.Entries, endpointMapEndpointCounters: &e.Counters}
}

// LoadEndpoints loads the programs of guarded endpoints with new, empty maps.
func LoadEndpoints() (*Endpoints, error) {
	spec, err := loadEndpoint()
	if err != nil {
		return nil, fmt.Errorf("parse endpoint object: %w", err)
	}
	e := new(Endpoints)
	if err := spec.LoadAndAssign(e, nil); err != nil {
		return nil, fmt.Errorf("load endpoint object: %w", err)
	}
	return e, nil
}

// Close closes the descriptors. Attached programs stay with their links.
func (e *Endpoints) Close() error {
	var errs []error
	for _, p := range e.Programs() {
		errs = append(errs, (*p).Close())
	}
	for _, m := range e.Maps() {
		errs = append(errs, (*m).Close())
	}
	return errors.Join(errs...)
}

// Add adds what another CPU has counted.
func (c *EndpointCounters) Add(o EndpointCounters) {
	for i := range c.V {
		c.V[i] += o.V[i]
	}
}
