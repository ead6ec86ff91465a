// SPDX-License-Identifier: Apache-2.0

package httprule

import "slices"

// Request is what rules know of a request.
type Request struct {
	Method   string   // upper case
	Scheme   string   // https, or empty for CONNECT
	Host     string   // lower case; an IPv6 address has no brackets
	Port     uint16   // 443 if the client wrote none
	Path     string   // decoded once; "*" for OPTIONS *, empty for CONNECT
	RawQuery string   // as sent
	Names    []string // of the headers: lower case, sorted, each once
	SNI      string   // lower case, empty if there is none
	Upgrade  string   // lower case: the value of Upgrade or :protocol, such as websocket
	Stream   uint32   // of HTTP/2; in HTTP/1.1, the number of the request, from 1
}

// Has tells whether there is a header with this name, in lower case.
func (r *Request) Has(name string) bool {
	_, ok := slices.BinarySearch(r.Names, name)
	return ok
}

// Tunnel tells whether other bytes than HTTP may follow.
func (r *Request) Tunnel() bool { return r.Method == "CONNECT" || r.Upgrade != "" }
