// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
)

// Ports of the sidecar.
const (
	OutboundPort = 15001
	InboundPort  = 15006
	AdminPort    = 15000
)

// HAProxyConfig is a transparent sidecar: what comes to the outbound port goes on to where the client meant it to go, and what comes
// to the inbound port goes to the same port on loopback. An address 0.0.0.0 and port 0 of a server mean the client's destination,
// which HAProxy asks the kernel for with SO_ORIGINAL_DST first and getsockname second. A connection whose destination is the
// sidecar's own port was not redirected, and would loop.
const HAProxyConfig = `global
    maxconn 400
    log stdout format raw local0

defaults
    mode tcp
    log global
    timeout connect 3s
    timeout client 30s
    timeout server 30s
    log-format '{"frontend":"%f","client":"%ci","client_port":"%cp","dst":"%[dst]","dst_port":"%[dst_port]","source":"%bi","source_port":"%bp","server":"%si","server_port":"%sp","bytes":"%B","state":"%ts"}'

frontend outbound4
    bind 127.0.0.1:15001
    tcp-request connection reject if { dst_port 15001 }
    default_backend original4

frontend outbound6
    bind [::1]:15001
    tcp-request connection reject if { dst_port 15001 }
    default_backend original6

frontend inbound
    bind 0.0.0.0:15006
    bind [::]:15006 v6only
    tcp-request connection reject if { dst_port 15006 }
    default_backend app

frontend admin
    bind 127.0.0.1:15000
    mode http
    no log
    stats enable
    stats uri /stats

backend original4
    server orig 0.0.0.0:0

backend original6
    server orig [::]:0

backend app
    server app 127.0.0.1:0
`

// HAProxyHTTPConfig is HAProxyConfig but for what comes to the outbound port, which is HTTP here: requests get a header, "X-Sidecar:
// added", and those for HTTPForbidden the answer 403.
var HAProxyHTTPConfig = func() string {
	text := HAProxyConfig
	for _, family := range []string{"4", "6"} {
		text = strings.Replace(text, "    default_backend original"+family+"\n", `    mode http
    http-request deny deny_status 403 if { path `+HTTPForbidden+` }
    http-request set-header X-Sidecar added
    default_backend original`+family+"\n", 1)
		text = strings.Replace(text, "backend original"+family+"\n    server", "backend original"+family+"\n    mode http\n    server", 1)
	}
	return text
}()

// HTTPForbidden is the path that HAProxyHTTPConfig denies.
const HTTPForbidden = "/forbidden"

// Carried is one connection that HAProxy carried, as its log tells it after the end of the connection.
type Carried struct {
	Frontend string         // outbound4, outbound6 or inbound
	Client   netip.AddrPort // who connected to the sidecar
	Dst      netip.AddrPort // where the client meant to go: SO_ORIGINAL_DST or getsockname
	Source   netip.AddrPort // the sidecar's own end of its connection to the server; zero if there was none
	State    string         // HAProxy's termination state, "--" for a normal end
}

// parseCarried reads the connections out of a container's log in podman's k8s-file format.
func parseCarried(log []byte) []Carried {
	var all []Carried
	for s := bufio.NewScanner(bytes.NewReader(log)); s.Scan(); {
		// TIME STREAM F|P TEXT
		_, text, ok := strings.Cut(s.Text(), " F ")
		if !ok || !strings.HasPrefix(text, "{") {
			continue
		}
		var e struct {
			Frontend, Client, Dst, Source, State string
			ClientPort                           string `json:"client_port"`
			DstPort                              string `json:"dst_port"`
			SourcePort                           string `json:"source_port"`
		}
		if json.Unmarshal([]byte(text), &e) != nil {
			continue
		}
		c := Carried{Frontend: e.Frontend, State: e.State}
		var err error
		if c.Client, err = joinAddrPort(e.Client, e.ClientPort); err != nil {
			continue
		}
		if c.Dst, err = joinAddrPort(e.Dst, e.DstPort); err != nil {
			continue
		}
		c.Source, _ = joinAddrPort(e.Source, e.SourcePort) // "-" if no server was reached
		all = append(all, c)
	}
	return all
}
