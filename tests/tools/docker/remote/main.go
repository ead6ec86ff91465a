// SPDX-License-Identifier: Apache-2.0

// Command remote makes every call of a network driver by dockerd's own client (libnetwork's remote driver), each twice,
// and says what is not as libnetwork wants it: remote DRIVER.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/moby/moby/v2/daemon/libnetwork/discoverapi"
	"github.com/moby/moby/v2/daemon/libnetwork/driverapi"
	"github.com/moby/moby/v2/daemon/libnetwork/drivers/remote"
	"github.com/moby/moby/v2/daemon/libnetwork/types"
	"github.com/moby/moby/v2/pkg/plugins"
)

// registry keeps the driver that was registered.
type registry struct {
	driver     driverapi.Driver
	capability driverapi.Capability
}

func (r *registry) RegisterDriver(_ string, d driverapi.Driver, c driverapi.Capability) error {
	r.driver, r.capability = d, c
	return nil
}

func (r *registry) RegisterNetworkAllocator(string, driverapi.NetworkAllocator) error { return nil }

// device is what libnetwork knows of an endpoint's device.
type device struct {
	mac    net.HardwareAddr
	v4, v6 *net.IPNet
}

func (d *device) SetMacAddress(mac net.HardwareAddr) error {
	if d.mac != nil {
		return errors.New("it has one")
	}
	d.mac = mac
	return nil
}
func (d *device) SetIPAddress(*net.IPNet) error { return errors.New("it has one") }
func (d *device) MacAddress() net.HardwareAddr  { return d.mac }
func (d *device) Address() *net.IPNet           { return d.v4 }
func (d *device) AddressIPv6() *net.IPNet       { return d.v6 }
func (d *device) NetnsPath() string             { return "" }
func (d *device) SetCreatedInContainer(bool)    {}

// joined is what libnetwork is told by Join.
type joined struct {
	name, prefix string
	gw4, gw6     net.IP
	none         bool
}

func (j *joined) InterfaceName() driverapi.InterfaceNameInfo { return j }
func (j *joined) SetNames(name, prefix, _ string) error {
	j.name, j.prefix = name, prefix
	return nil
}
func (j *joined) SetGateway(ip net.IP) error {
	j.gw4 = ip
	return nil
}
func (j *joined) SetGatewayIPv6(ip net.IP) error {
	j.gw6 = ip
	return nil
}
func (j *joined) AddStaticRoute(*net.IPNet, types.RouteType, net.IP) error { return nil }
func (j *joined) DisableGatewayService()                                   { j.none = true }
func (j *joined) ForceGw4()                                                {}
func (j *joined) ForceGw6()                                                {}
func (j *joined) AddTableEntry(string, string, []byte) error               { return nil }

func cidr(text string) *net.IPNet {
	ip, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	n.IP = ip
	return n
}

var (
	network  = strings.Repeat("ab", 32)
	endpoint = strings.Repeat("cd", 32)
	other    = strings.Repeat("ef", 32)
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: remote DRIVER")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string) error {
	r := &registry{}
	if err := remote.Register(r, nil); err != nil {
		return err
	}
	if _, err := plugins.Get(name, driverapi.NetworkPluginEndpointType); err != nil {
		return err
	}
	if r.driver == nil {
		return errors.New("it was not registered")
	}
	var wrong []error
	want := func(what string, ok bool, got any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf("%s: %v", what, got))
		}
	}
	fine := func(what string, err error) { want(what, err == nil, err) }
	fails := func(what string, err error, part string) {
		want(what, err != nil && strings.Contains(err.Error(), part), fmt.Sprintf("%v, want %q", err, part))
	}
	d, ctx := r.driver, context.Background()
	want("GetCapabilities", r.capability == driverapi.Capability{DataScope: "local", ConnectivityScope: "local"}, r.capability)
	v4 := []driverapi.IPAMData{{AddressSpace: "LocalDefault", Pool: cidr("203.0.113.0/24"), Gateway: cidr("203.0.113.1/24")}}
	v6 := []driverapi.IPAMData{{AddressSpace: "LocalDefault", Pool: cidr("2001:db8:77::/64"), Gateway: cidr("2001:db8:77::1/64")}}
	options := map[string]any{"com.docker.network.enable_ipv6": true, "com.docker.network.generic": map[string]string{}}
	typo := map[string]any{"com.docker.network.generic": map[string]string{"mtu": "1500"}}
	fails("CreateNetwork, unknown option", d.CreateNetwork(ctx, other, typo, nil, v4, nil), "it is not known")
	fails("CreateNetwork, no subnet", d.CreateNetwork(ctx, other, nil, nil, nil, nil), "no subnet")
	for _, time := range []string{"first", "again"} {
		fine("CreateNetwork, "+time, d.CreateNetwork(ctx, network, options, nil, v4, v6))
	}
	fails("CreateNetwork, overlapping", d.CreateNetwork(ctx, other, nil, nil, v4, nil), "overlaps")
	dev := &device{v4: cidr("203.0.113.9/24"), v6: cidr("2001:db8:77::9/64")}
	fails("CreateEndpoint, unknown network", d.CreateEndpoint(ctx, other, endpoint, dev, nil), "is not known")
	dev.mac = nil
	for _, time := range []string{"first", "again"} {
		dev.mac = nil
		fine("CreateEndpoint, "+time, d.CreateEndpoint(ctx, network, endpoint, dev, nil))
		want("CreateEndpoint, "+time, len(dev.mac) == 6, dev.mac)
	}
	fails("Join, unknown endpoint", d.Join(ctx, network, other, "/nonexistent", &joined{}, nil, nil), "is not known")
	sandbox := map[string]any{"com.docker.network.portmap": []types.PortBinding{{Proto: types.TCP, Port: 80, HostPort: 18081}}}
	for _, time := range []string{"first", "again"} {
		j := &joined{}
		fine("Join, "+time, d.Join(ctx, network, endpoint, "/nonexistent", j, nil, sandbox))
		want("Join, "+time, j.name == "sgc"+endpoint[:12] && j.prefix == "eth" && j.gw4.String() == "203.0.113.1" && j.gw6.String() == "2001:db8:77::1" && !j.none, j)
	}
	_, err := d.EndpointOperInfo(network, endpoint)
	fine("EndpointOperInfo", err)
	if e, ok := d.(driverapi.ExtConner); ok {
		fine("ProgramExternalConnectivity", e.ProgramExternalConnectivity(ctx, network, endpoint, endpoint, endpoint))
		fine("RevokeExternalConnectivity", e.ProgramExternalConnectivity(ctx, network, endpoint, "", ""))
		fine("ProgramExternalConnectivity, again", e.ProgramExternalConnectivity(ctx, network, endpoint, endpoint, endpoint))
	} else {
		want("ExtConner", false, d)
	}
	if e, ok := d.(discoverapi.Discover); ok {
		node := discoverapi.NodeDiscoveryData{Address: "192.0.2.1", Self: true}
		fine("DiscoverNew", e.DiscoverNew(discoverapi.NodeDiscovery, node))
		fine("DiscoverDelete", e.DiscoverDelete(discoverapi.NodeDiscovery, node))
	}
	if e, ok := d.(driverapi.NetworkAllocator); ok {
		_, err := e.NetworkAllocate(other, nil, v4, nil)
		fails("AllocateNetwork", err, "one machine")
		fine("FreeNetwork", e.NetworkFree(other))
	}
	for _, time := range []string{"first", "again"} {
		fine("Leave, "+time, d.Leave(network, endpoint))
	}
	for _, time := range []string{"first", "again"} {
		fine("DeleteEndpoint, "+time, d.DeleteEndpoint(network, endpoint))
	}
	for _, time := range []string{"first", "again"} {
		fine("DeleteNetwork, "+time, d.DeleteNetwork(network))
	}
	return errors.Join(wrong...)
}
