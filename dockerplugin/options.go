// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	libnetwork "github.com/docker/go-plugins-helpers/network"

	"sidegate/policy"
)

// Keys of libnetwork (its package netlabel).
const (
	labelGeneric  = "com.docker.network.generic"
	labelInternal = "com.docker.network.internal"
	labelPortMap  = "com.docker.network.portmap"
)

// Options of `docker network create --opt`. Those of the bridge driver mean here what they mean there.
const (
	optionMTU        = "com.docker.network.driver.mtu"
	optionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
)

func networkOptions() []string { return []string{optionMTU, optionMasquerade} }

// minMTU is IPv6's.
const minMTU = 1280

// parseNetwork reads what libnetwork says of a network.
func parseNetwork(r *libnetwork.CreateNetworkRequest) (*network, error) {
	n := &network{id: r.NetworkID, nat: true}
	if !isID(n.id) {
		return nil, fmt.Errorf("libnetwork gives no network id, but %q", n.id)
	}
	n.internal, _ = r.Options[labelInternal].(bool)
	generic, _ := r.Options[labelGeneric].(map[string]any)
	options := make(map[string]string)
	for key, value := range generic {
		options[key] = fmt.Sprint(value)
	}
	if err := n.setOptions(options); err != nil {
		return nil, err
	}
	for _, data := range r.IPv4Data {
		if err := n.setPool(data.Pool, data.Gateway); err != nil {
			return nil, err
		}
	}
	for _, data := range r.IPv6Data {
		if err := n.setPool(data.Pool, data.Gateway); err != nil {
			return nil, err
		}
	}
	return n, n.check()
}

// isID tells whether text is fit for an id: names of devices and files are made of it.
func isID(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') })
}

// networkOf is parseNetwork for what Docker says of a network that exists.
func networkOf(i *inspectedNetwork) (*network, error) {
	n := &network{id: i.ID, nat: true, internal: i.Internal}
	if err := n.setOptions(i.Options); err != nil {
		return nil, err
	}
	for _, c := range i.IPAM.Config {
		if err := n.setPool(c.Subnet, c.Gateway); err != nil {
			return nil, err
		}
	}
	return n, n.check()
}

func (n *network) setOptions(options map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := options[key]
		var err error
		switch key {
		case optionMTU:
			n.mtu, err = strconv.Atoi(value)
			if err == nil && (n.mtu < minMTU || n.mtu > 65535) {
				err = fmt.Errorf("write a number from %d to 65535", minMTU)
			}
		case optionMasquerade:
			n.nat, err = strconv.ParseBool(value)
		default:
			if strings.HasPrefix(key, "com.docker.network.") {
				continue // Docker's own, of which new ones come
			}
			err = fmt.Errorf("it is not known: the options are %s", strings.Join(networkOptions(), " and "))
		}
		if err != nil {
			return fmt.Errorf("option %s=%q: %w", key, value, err)
		}
	}
	return nil
}

// setPool takes a subnet and its gateway, which may have the subnet's length.
func (n *network) setPool(subnet, gateway string) error {
	if subnet == "" {
		return nil
	}
	var p pool
	var err error
	if p.subnet, err = netip.ParsePrefix(subnet); err != nil {
		return fmt.Errorf("subnet: %w", err)
	}
	if gateway != "" {
		address, _, _ := strings.Cut(gateway, "/")
		if p.gateway, err = netip.ParseAddr(address); err != nil {
			return fmt.Errorf("gateway of subnet %s: %w", subnet, err)
		}
	}
	of := &n.v4
	if p.subnet.Addr().Is6() {
		of = &n.v6
	}
	if of.subnet.IsValid() && of.subnet != p.subnet {
		return fmt.Errorf("it has two subnets of one family, %s and %s: write one --subnet for IPv4 and one for IPv6", of.subnet, p.subnet)
	}
	*of = p
	return nil
}

func (n *network) check() error {
	if !n.v4.subnet.IsValid() && !n.v6.subnet.IsValid() {
		return errors.New("it has no subnet: create it without --ipam-driver null, or with --subnet")
	}
	for _, p := range []pool{n.v4, n.v6} {
		if p.subnet.IsValid() && !p.gateway.IsValid() && !n.internal {
			return fmt.Errorf("subnet %s has no gateway: write --gateway", p.subnet)
		}
	}
	return nil
}

// parseEndpoint reads what libnetwork says of an endpoint. Its driver options are among r.Options.
func parseEndpoint(r *libnetwork.CreateEndpointRequest) (*endpoint, error) {
	e := &endpoint{id: r.EndpointID, network: r.NetworkID}
	if !isID(e.id) || !isID(e.network) {
		return nil, fmt.Errorf("libnetwork gives no network and endpoint id, but %q and %q", e.network, e.id)
	}
	keys := make(map[string]string)
	for key, value := range r.Options {
		if text, ok := value.(string); ok && strings.HasPrefix(key, "sidegate/") {
			keys[key] = text
		}
	}
	if _, err := policy.ParseRequest(keys); err != nil {
		return nil, fmt.Errorf("driver options: %w", err)
	}
	if _, has := keys[policy.KeyKTLS]; has {
		return nil, fmt.Errorf("driver options: %s: no network can mount it: write it as a label of the container, and run that by the runtime wrapper (--runtime sidegate)", policy.KeyKTLS)
	}
	e.role, e.policy, e.pod = keys[policy.KeyRole], keys[policy.KeyPolicy], keys[policy.KeyPod]
	if r.Interface == nil {
		return nil, errors.New("libnetwork gives no addresses")
	}
	var err error
	for _, one := range []struct {
		text string
		to   *netip.Prefix
	}{{r.Interface.Address, &e.v4}, {r.Interface.AddressIPv6, &e.v6}} {
		if one.text == "" {
			continue
		}
		if *one.to, err = netip.ParsePrefix(one.text); err != nil {
			return nil, fmt.Errorf("address of the endpoint: %w", err)
		}
	}
	if !e.v4.IsValid() && !e.v6.IsValid() {
		return nil, errors.New("libnetwork gives no addresses")
	}
	if r.Interface.MacAddress != "" {
		if e.mac, err = net.ParseMAC(r.Interface.MacAddress); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// request is what the endpoint's driver options ask for.
func (e *endpoint) request() map[string]string {
	keys := make(map[string]string)
	for key, value := range map[string]string{policy.KeyRole: e.role, policy.KeyPolicy: e.policy, policy.KeyPod: e.pod} {
		if value != "" {
			keys[key] = value
		}
	}
	return keys
}

// binding is one of libnetwork's published ports (its types.PortBinding).
type binding struct {
	Proto       uint8
	IP          net.IP
	Port        uint16
	HostIP      net.IP
	HostPort    uint16
	HostPortEnd uint16
}

// parseBindings reads the published ports among the options of an endpoint.
func parseBindings(options map[string]any) (list []binding, err error) {
	said, has := options[labelPortMap]
	if !has {
		return nil, nil
	}
	// The request was JSON, and is maps by now.
	b, err := json.Marshal(said)
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("published ports: %w", err)
	}
	for _, b := range list {
		// Docker asks the drivers that are its own which port they have taken. What a remote one says it drops, whatever
		// it is: nobody would find the port.
		if b.HostPort == 0 || b.HostPortEnd > b.HostPort {
			return nil, fmt.Errorf("published port %d/%s: Docker cannot show which port of the host a network driver has chosen: "+
				"write that port, as in --publish 8080:%d", b.Port, protoName(b.Proto), b.Port)
		}
	}
	return list, nil
}
