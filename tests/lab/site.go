// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"sync"
)

// SitePort is where a Site listens.
const SitePort = 443

// A Site is an HTTPS server outside, which remembers what it was asked.
type Site struct {
	CA          []byte // who signed its certificate, as PEM
	Fingerprint string // SHA-256 of its certificate, in hexadecimal

	server *http.Server

	mu    sync.Mutex
	asked []SiteRequest
}

// SiteRequest is one that a Site was asked.
type SiteRequest struct {
	Method, Host, Path string
	Header             http.Header
}

func (r SiteRequest) String() string { return r.Method + " " + r.Host + r.Path }

// StartSite starts one that has these names.
func (o *Outside) StartSite(names ...string) (*Site, error) {
	ca, err := NewAuthority("the site's own CA")
	if err != nil {
		return nil, err
	}
	cert, err := ca.Certificate(names, OutsideV4, OutsideV6)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(cert.Certificate[0])
	s := &Site{CA: ca.PEM, Fingerprint: hex.EncodeToString(sum[:])}
	l, err := o.Listen("tcp", ":"+strconv.Itoa(SitePort))
	if err != nil {
		return nil, err
	}
	s.server = &http.Server{
		Handler:   s,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go s.server.ServeTLS(l, "", "") //nolint:errcheck // it ends with Close
	return s, nil
}

// Close ends it.
func (s *Site) Close() error { return s.server.Close() }

// ServeHTTP says what it was asked.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, SiteRequest{r.Method, r.Host, r.URL.Path, r.Header.Clone()})
	s.mu.Unlock()
	fmt.Fprintf(w, "hello %s\n", r.URL.Path)
}

// Requests returns what was asked so far, and forgets it.
func (s *Site) Requests() []SiteRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}
