// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	libnetwork "github.com/docker/go-plugins-helpers/network"

	"sidegate/policy"
)

func TestParseNetwork(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	v4 := []*libnetwork.IPAMData{{Pool: "10.1.0.0/24", Gateway: "10.1.0.1/24"}}
	v6 := []*libnetwork.IPAMData{{Pool: "2001:db8:9::/64", Gateway: "2001:db8:9::1/64"}}
	generic := func(kv ...string) map[string]any {
		options := make(map[string]any)
		for i := 0; i < len(kv); i += 2 {
			options[kv[i]] = kv[i+1]
		}
		return map[string]any{labelGeneric: options}
	}
	got, err := parseNetwork(&libnetwork.CreateNetworkRequest{NetworkID: "abc", IPv4Data: v4, IPv6Data: v6, Options: generic(
		optionMTU, "9000", optionMasquerade, "false", "com.docker.network.something.new", "1")})
	want := &network{
		id: "abc", mtu: 9000, v4: pool{prefix("10.1.0.0/24"), addr("10.1.0.1")}, v6: pool{prefix("2001:db8:9::/64"), addr("2001:db8:9::1")},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	got, err = parseNetwork(&libnetwork.CreateNetworkRequest{
		NetworkID: "abc", IPv4Data: []*libnetwork.IPAMData{{Pool: "10.1.0.0/24"}}, Options: map[string]any{labelInternal: true},
	})
	if err != nil || !got.internal || got.v4.gateway.IsValid() {
		t.Errorf("internal: got %+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		r    libnetwork.CreateNetworkRequest
		want string
	}{
		"no id":        {libnetwork.CreateNetworkRequest{IPv4Data: v4}, "no network id"},
		"a path as id": {libnetwork.CreateNetworkRequest{NetworkID: "../x", IPv4Data: v4}, "no network id"},
		"no pool":      {libnetwork.CreateNetworkRequest{NetworkID: "a"}, "no subnet"},
		"no gateway":   {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: []*libnetwork.IPAMData{{Pool: "10.1.0.0/24"}}}, "write --gateway"},
		"two pools":    {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: append(v4, &libnetwork.IPAMData{Pool: "10.2.0.0/24"})}, "two subnets"},
		"wrong pool":   {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: []*libnetwork.IPAMData{{Pool: "10.1.0.0"}}}, "subnet"},
		"unknown":      {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: v4, Options: generic("mtu", "1500")}, "it is not known"},
		"mtu":          {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: v4, Options: generic(optionMTU, "100")}, "1280 to 65535"},
		"mtu no digit": {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: v4, Options: generic(optionMTU, "x")}, optionMTU},
		"masquerade":   {libnetwork.CreateNetworkRequest{NetworkID: "a", IPv4Data: v4, Options: generic(optionMasquerade, "maybe")}, optionMasquerade},
	} {
		if got, err := parseNetwork(&tt.r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %+v, %v, want %q", name, got, err, tt.want)
		}
	}
}

func TestParseEndpoint(t *testing.T) {
	good := func() *libnetwork.CreateEndpointRequest {
		return &libnetwork.CreateEndpointRequest{
			NetworkID: "n", EndpointID: "e", Options: map[string]any{"sidegate/role": "app", "com.docker.network.portmap": []any{}},
			Interface: &libnetwork.EndpointInterface{Address: "10.1.0.2/24", AddressIPv6: "2001:db8:9::2/64", MacAddress: "02:42:00:00:00:01"},
		}
	}
	e, err := parseEndpoint(good())
	if err != nil || e.role != "app" || e.v4.String() != "10.1.0.2/24" || e.v6.String() != "2001:db8:9::2/64" || e.mac.String() != "02:42:00:00:00:01" {
		t.Errorf("got %+v, %v", e, err)
	}
	for name, tt := range map[string]struct {
		spoil func(*libnetwork.CreateEndpointRequest)
		want  string
	}{
		"no id":        {func(r *libnetwork.CreateEndpointRequest) { r.EndpointID = "" }, "endpoint id"},
		"no interface": {func(r *libnetwork.CreateEndpointRequest) { r.Interface = nil }, "no addresses"},
		"no address":   {func(r *libnetwork.CreateEndpointRequest) { r.Interface = &libnetwork.EndpointInterface{} }, "no addresses"},
		"address":      {func(r *libnetwork.CreateEndpointRequest) { r.Interface.Address = "10.1.0.2" }, "address of the endpoint"},
		"mac":          {func(r *libnetwork.CreateEndpointRequest) { r.Interface.MacAddress = "x" }, "invalid MAC"},
		"ktls":         {func(r *libnetwork.CreateEndpointRequest) { r.Options["sidegate/ktls"] = "mount" }, "write it as a label of the container"},
		"role":         {func(r *libnetwork.CreateEndpointRequest) { r.Options["sidegate/role"] = "ap" }, "driver options"},
		"unknown key":  {func(r *libnetwork.CreateEndpointRequest) { r.Options["sidegate/rule"] = "app" }, "did you mean"},
	} {
		r := good()
		tt.spoil(r)
		if e, err := parseEndpoint(r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %+v, %v, want %q", name, e, err, tt.want)
		}
	}
}

func TestParseBindings(t *testing.T) {
	got, err := parseBindings(map[string]any{labelPortMap: []any{
		map[string]any{"Proto": float64(6), "IP": "", "Port": float64(80), "HostIP": "192.0.2.1", "HostPort": float64(8080), "HostPortEnd": float64(8080)},
	}})
	want := []binding{{Proto: 6, IP: net.IP{}, Port: 80, HostIP: net.ParseIP("192.0.2.1"), HostPort: 8080, HostPortEnd: 8080}}
	if err != nil || len(got) != 1 || got[0].Port != want[0].Port || !got[0].HostIP.Equal(want[0].HostIP) || got[0].HostPort != 8080 {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if got, err := parseBindings(map[string]any{labelPortMap: nil}); err != nil || len(got) != 0 {
		t.Errorf("null: %+v, %v", got, err)
	}
	if got, err := parseBindings(map[string]any{labelPortMap: "80:80"}); err == nil {
		t.Errorf("a string: %+v", got)
	}
	for name, ports := range map[string][2]uint16{"none": {}, "a range": {8080, 8081}} {
		got, err := parseBindings(map[string]any{labelPortMap: []binding{{Proto: 6, Port: 80, HostPort: ports[0], HostPortEnd: ports[1]}}})
		if err == nil || !strings.Contains(err.Error(), "--publish 8080:80") {
			t.Errorf("%s of the host's ports: %+v, %v", name, got, err)
		}
	}
}

// A label and a driver option may both say what a container is, if they say the same.
func TestRequest(t *testing.T) {
	c := &candidate{labels: map[string]string{"sidegate/role": "app", "other": "x"}, endpoint: &endpoint{role: "app", policy: "strict"}}
	r, err := c.request()
	if err != nil || !r.Managed || r.Policy != "strict" {
		t.Errorf("got %+v, %v", r, err)
	}
	c.endpoint.role = "sidecar"
	if r, err := c.request(); err == nil || !strings.Contains(err.Error(), "write it once") {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := (&candidate{labels: map[string]string{"other": "x"}}).request(); err != nil || r.Managed {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestCheckKTLS(t *testing.T) {
	if err := checkKTLS(policy.Request{}, 1<<30); err != nil {
		t.Error(err)
	}
	if err := checkKTLS(policy.Request{KTLS: policy.KTLSMount}, os.Getpid()); err == nil ||
		!strings.Contains(err.Error(), "sidegate/ktls: nothing is mounted at /run/sidegate/ktls: run it by the runtime wrapper") {
		t.Error(err)
	}
}
