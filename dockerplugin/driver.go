// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	libnetwork "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

// driver answers libnetwork. It may send requests of different containers side by side, and any of them again. What
// this process knows it has from the kernel (restore), or asks of Docker: it may be killed at any time.
type driver struct {
	log     *logrus.Logger
	config  config
	docker  *docker
	metrics *metrics
	memory  memory

	// mu is held while what follows, or rules of nftables, change. Who has it may wait for the state's lock; so who has
	// that must not wait for this.
	mu        sync.Mutex
	networks  map[string]*network
	endpoints map[string]*endpoint
	made      map[string]time.Time // when a network or endpoint was made, if this process did
	pods      map[string]uint64    // cookies of the managed namespaces that endpoints have joined
	published []publish
	held      map[string][]io.Closer // sockets that keep published ports from other programs, by endpoint
	refused   map[string]bool        // containers that run and were refused, and it was said
	tries     int                    // of reconcileLater, still to make
	faults    int                    // that reconcileLater was started for

	collecting chan struct{} // holds a value while somebody is about to collect
}

func newDriver(c config, log *logrus.Logger, m *metrics) *driver {
	return &driver{
		log: log, config: c, docker: newDocker(c.docker), metrics: m, memory: memory(c.dataDir),
		networks: make(map[string]*network), endpoints: make(map[string]*endpoint), made: make(map[string]time.Time),
		pods: make(map[string]uint64), held: make(map[string][]io.Closer), refused: make(map[string]bool),
		collecting: make(chan struct{}, 1),
	}
}

// shortLen is how much of an id Docker's command shows.
const shortLen = 12

func short(id string) string { return id[:min(len(id), shortLen)] }

// subject is what a request or a message is about, by ids: a network, or an endpoint of it.
type subject struct{ network, endpoint string }

// String is what people are told.
func (s subject) String() string {
	if s.endpoint != "" {
		return "endpoint " + short(s.endpoint)
	}
	return "network " + short(s.network)
}

// fields are what logs have of it.
func (s subject) fields() logrus.Fields {
	f := make(logrus.Fields)
	for key, id := range map[string]string{cli.FieldNetwork: s.network, cli.FieldEndpoint: s.endpoint} {
		if id != "" {
			f[key] = id
		}
	}
	return f
}

// do runs f for one request and measures it. Its error is what people see: it says whose it is.
func (d *driver) do(request string, about subject, f func() error) error {
	began := time.Now()
	err := f()
	took := time.Since(began)
	d.metrics.request(request, took, err)
	entry := d.log.WithFields(about.fields()).WithFields(logrus.Fields{cli.FieldRequest: request, cli.FieldTook: took.Round(time.Microsecond).String()})
	if err == nil {
		entry.Debug("done")
		return nil
	}
	entry.WithError(err).Error("the request has failed, and Docker shows it to who made it: see error for what to do")
	return errors.New(strings.ReplaceAll(fmt.Sprintf("sidegate: %s: %v", about, err), "\n", "; "))
}

// GetCapabilities says that networks are this machine's.
func (d *driver) GetCapabilities() (*libnetwork.CapabilitiesResponse, error) {
	return &libnetwork.CapabilitiesResponse{Scope: libnetwork.LocalScope, ConnectivityScope: libnetwork.LocalScope}, nil
}

// AllocateNetwork is for networks of a swarm, whose drivers have the scope "global".
func (d *driver) AllocateNetwork(*libnetwork.AllocateNetworkRequest) (*libnetwork.AllocateNetworkResponse, error) {
	return nil, errors.New("sidegate: its networks are of one machine: create the network without --scope swarm")
}

// FreeNetwork is AllocateNetwork's opposite.
func (d *driver) FreeNetwork(*libnetwork.FreeNetworkRequest) error { return nil }

// DiscoverNew is for networks of a cluster.
func (d *driver) DiscoverNew(*libnetwork.DiscoveryNotification) error { return nil }

// DiscoverDelete is for networks of a cluster.
func (d *driver) DiscoverDelete(*libnetwork.DiscoveryNotification) error { return nil }

// EndpointInfo has nothing that Docker does not know.
func (d *driver) EndpointInfo(*libnetwork.InfoRequest) (*libnetwork.InfoResponse, error) {
	return &libnetwork.InfoResponse{Value: map[string]string{}}, nil
}

// CreateNetwork makes a bridge with the network's gateways, and its rules.
func (d *driver) CreateNetwork(r *libnetwork.CreateNetworkRequest) error {
	return d.do("CreateNetwork", subject{network: r.NetworkID}, func() error {
		n, err := parseNetwork(r)
		if err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.made[n.id] = time.Now()
		return d.makeNetwork(n)
	})
}

// makeNetwork makes a network, or repairs it.
func (d *driver) makeNetwork(n *network) error {
	_, had := d.networks[n.id]
	if !n.internal {
		if err := ensureForwarding(n.v4.subnet.IsValid(), n.v6.subnet.IsValid()); err != nil {
			return err
		}
	}
	err := d.memory.remember(n)
	if err == nil {
		err = ensureBridge(n)
	}
	if err == nil {
		d.networks[n.id] = n
		err = d.apply()
	}
	if err != nil && !had {
		delete(d.networks, n.id)
		err = errors.Join(err, deleteBridge(n.id), d.memory.forget(n.id), d.apply())
	}
	return err
}

// apply brings the rules of nftables in line with what is known.
func (d *driver) apply() error {
	var list []*network
	for _, n := range d.networks {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b *network) int { return strings.Compare(a.id, b.id) })
	if len(list) == 0 {
		return deleteRules()
	}
	return applyRules(list, d.published)
}

// DeleteNetwork removes what CreateNetwork made.
func (d *driver) DeleteNetwork(r *libnetwork.DeleteNetworkRequest) error {
	return d.do("DeleteNetwork", subject{network: r.NetworkID}, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.deleteNetwork(r.NetworkID)
	})
}

func (d *driver) deleteNetwork(id string) error {
	delete(d.networks, id)
	delete(d.made, id)
	return errors.Join(deleteBridge(id), d.memory.forget(id), d.apply())
}

// networkOf returns a network. One that the kernel has lost, since the machine has started again, is made again
// from what was remembered, or else from what Docker knows.
func (d *driver) networkOf(id string) (*network, error) {
	d.mu.Lock()
	n := d.networks[id]
	d.mu.Unlock()
	if n != nil {
		return n, nil
	}
	if !isID(id) {
		return nil, fmt.Errorf("libnetwork gives no network id, but %q", id)
	}
	n, err := d.memory.recall(id)
	if err != nil {
		d.log.WithFields(subject{network: id}.fields()).WithField(cli.FieldPath, d.config.dataDir).WithError(err).
			Warn("what was remembered of the network cannot be read, Docker is asked instead: see error, and repair the directory")
	}
	if n == nil {
		if n, err = d.askNetwork(id); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.networks[id]; other != nil {
		return other, nil
	}
	return n, d.makeNetwork(n)
}

// askNetwork asks Docker what a network is.
func (d *driver) askNetwork(id string) (*network, error) {
	known, err := d.docker.network(context.Background(), id)
	if errors.Is(err, errNoObject) {
		return nil, fmt.Errorf("its network %s is not known: create it again with docker network create -d sidegate", short(id))
	}
	if err != nil {
		return nil, err
	}
	n, err := networkOf(known)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", short(id), err)
	}
	return n, nil
}

// CreateEndpoint makes a veth pair whose end on the host lets nothing through.
func (d *driver) CreateEndpoint(r *libnetwork.CreateEndpointRequest) (answer *libnetwork.CreateEndpointResponse, err error) {
	err = d.do("CreateEndpoint", subject{network: r.NetworkID, endpoint: r.EndpointID}, func() error {
		e, err := parseEndpoint(r)
		if err != nil {
			return err
		}
		n, err := d.networkOf(e.network)
		if err != nil {
			return err
		}
		answer = &libnetwork.CreateEndpointResponse{Interface: &libnetwork.EndpointInterface{}}
		if e.mac == nil {
			e.mac = newMAC(e)
			// What libnetwork said itself it does not want to hear.
			answer.Interface.MacAddress = e.mac.String()
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if err := d.makeEndpoint(n, e); err != nil {
			return errors.Join(err, d.deleteEndpoint(e.id))
		}
		d.endpoints[e.id], d.made[e.id] = e, time.Now()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// newMAC is the hardware address that Docker's bridge driver would choose: one made from an IPv4 address does not
// change when the container comes back.
func newMAC(e *endpoint) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	if e.v4.IsValid() {
		v4 := e.v4.Addr().As4()
		copy(mac[2:], v4[:])
		return mac
	}
	rand.Read(mac[2:]) // never fails
	return mac
}

// makeEndpoint makes the pair of an endpoint, guarded before it is plugged in.
func (d *driver) makeEndpoint(n *network, e *endpoint) error {
	if err := ensureVeth(n, e); err != nil {
		return err
	}
	err := d.store(func(s *cgroups.Store) error { return s.GuardEndpoint(e.guard()) })
	if err != nil {
		return err
	}
	return plug(n, e)
}

// guard is the endpoint as package cgroups has it.
func (e *endpoint) guard() *cgroups.Endpoint {
	return &cgroups.Endpoint{Name: e.host(), MAC: e.mac, V4: e.v4.Addr(), V6: e.v6.Addr()}
}

func (e *endpoint) addrs() (list []netip.Addr) {
	for _, p := range []netip.Prefix{e.v4, e.v6} {
		if p.IsValid() {
			list = append(list, p.Addr())
		}
	}
	return list
}

// DeleteEndpoint removes what CreateEndpoint made.
func (d *driver) DeleteEndpoint(r *libnetwork.DeleteEndpointRequest) error {
	return d.do("DeleteEndpoint", subject{network: r.NetworkID, endpoint: r.EndpointID}, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.deleteEndpoint(r.EndpointID)
	})
}

// deleteEndpoint removes all of an endpoint, whatever there is of it.
func (d *driver) deleteEndpoint(id string) error {
	e := d.endpoints[id]
	if e == nil {
		e = &endpoint{id: id}
	}
	errs := []error{d.unpublish(id), d.leave(e, d.pods[id])}
	errs = append(errs, cgroups.IfLoaded(d.config.stateDir, func(s *cgroups.Store) error { return s.ForgetEndpoint(e.host()) }))
	errs = append(errs, deleteVeth(id))
	delete(d.endpoints, id)
	delete(d.made, id)
	delete(d.pods, id)
	d.collectSoon()
	return errors.Join(errs...)
}

// endpointOf returns what is known of an endpoint.
func (d *driver) endpointOf(id string) (*endpoint, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known(id)
}

// known is endpointOf for who has the mutex.
func (d *driver) known(id string) (*endpoint, error) {
	if e := d.endpoints[id]; e != nil {
		return e, nil
	}
	return nil, errors.New("it is not known: its device is gone; start the container again")
}

// podOf returns the cookie of the managed namespace that an endpoint has joined, 0 if that is not known.
func (d *driver) podOf(e *endpoint) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pods[e.id]
}

// Join gives a container its end. Where its process is there already, and has not run (Docker 28 and later), it is
// registered now if it asks for that; the endpoint opens when it is. Older Docker tells of the process when it runs.
func (d *driver) Join(r *libnetwork.JoinRequest) (answer *libnetwork.JoinResponse, err error) {
	err = d.do("Join", subject{network: r.NetworkID, endpoint: r.EndpointID}, func() error {
		n, err := d.networkOf(r.NetworkID)
		if err != nil {
			return err
		}
		e, err := d.endpointOf(r.EndpointID)
		if err != nil {
			return err
		}
		if err := d.join(e, r.SandboxKey); err != nil {
			return errors.Join(err, d.leave(e, d.podOf(e)))
		}
		answer = &libnetwork.JoinResponse{InterfaceName: libnetwork.InterfaceName{SrcName: e.inner(), DstPrefix: "eth"}}
		if n.internal {
			// Else libnetwork would give the container another network, to have a gateway.
			answer.DisableGatewayService = true
			return nil
		}
		if e.v4.IsValid() {
			answer.Gateway = n.v4.gateway.String()
		}
		if e.v6.IsValid() {
			answer.GatewayIPv6 = n.v6.gateway.String()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// Leave closes an endpoint. libnetwork takes the device out of the container next.
func (d *driver) Leave(r *libnetwork.LeaveRequest) error {
	return d.do("Leave", subject{network: r.NetworkID, endpoint: r.EndpointID}, func() error {
		d.mu.Lock()
		e := d.endpoints[r.EndpointID]
		d.mu.Unlock()
		if e == nil {
			return nil
		}
		d.collectSoon()
		return d.leave(e, d.podOf(e))
	})
}

// ProgramExternalConnectivity publishes ports.
func (d *driver) ProgramExternalConnectivity(r *libnetwork.ProgramExternalConnectivityRequest) error {
	return d.do("ProgramExternalConnectivity", subject{network: r.NetworkID, endpoint: r.EndpointID}, func() error {
		bindings, err := parseBindings(r.Options)
		if err != nil || len(bindings) == 0 {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		e, err := d.known(r.EndpointID)
		if err != nil {
			return err
		}
		if err := d.unpublish(e.id); err != nil { // a repeated request
			return err
		}
		if err := d.publish(e, bindings); err != nil {
			return errors.Join(err, d.unpublish(e.id))
		}
		return nil
	})
}

// RevokeExternalConnectivity takes the published ports back.
func (d *driver) RevokeExternalConnectivity(r *libnetwork.RevokeExternalConnectivityRequest) error {
	return d.do("RevokeExternalConnectivity", subject{network: r.NetworkID, endpoint: r.EndpointID}, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.unpublish(r.EndpointID)
	})
}

func (d *driver) publish(e *endpoint, bindings []binding) error {
	for _, b := range bindings {
		hostIP, _ := netip.AddrFromSlice(b.HostIP)
		hostIP = hostIP.Unmap()
		for _, at := range e.addrs() {
			if hostIP.IsValid() && hostIP.Is4() != at.Is4() {
				continue
			}
			on := anyOf(hostIP, at)
			hold, err := reservePort(b.Proto, on, b.HostPort)
			if err != nil {
				return err
			}
			d.held[e.id] = append(d.held[e.id], hold)
			d.published = append(d.published, publish{
				endpoint: e.id, proto: b.Proto, hostIP: on, hostPort: b.HostPort, to: netip.AddrPortFrom(at, b.Port),
			})
		}
	}
	return d.apply()
}

// anyOf is ip, or, if that is not said, any address of at's family.
func anyOf(ip, at netip.Addr) netip.Addr {
	switch {
	case ip.IsValid():
		return ip
	case at.Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (d *driver) unpublish(endpoint string) error {
	before := len(d.published)
	d.published = slices.DeleteFunc(d.published, func(p publish) bool { return p.endpoint == endpoint })
	var errs []error
	for _, hold := range d.held[endpoint] {
		errs = append(errs, hold.Close())
	}
	delete(d.held, endpoint)
	if len(d.published) != before {
		errs = append(errs, d.apply())
	}
	return errors.Join(errs...)
}

// store opens the state, and loads what enforces if it is not loaded.
func (d *driver) store(f func(*cgroups.Store) error) (err error) {
	s, err := cgroups.Open(d.config.stateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return f(s)
}
