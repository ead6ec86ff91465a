// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package tls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// hosts are the names that the site answers to.
var hosts = []string{"api.example", "other.example", "denied.example"}

// siteDir has the certificate by which clients know the site, and its key.
const siteDir = "/tmp/site"

// site is an HTTPS server in the outside, which remembers what it got.
type site struct {
	cert tls.Certificate

	mu     sync.Mutex
	visits []*visit
}

// visit is one connection to the site.
type visit struct {
	raw   int          // bytes that came, with TLS's own
	plain bytes.Buffer // what was inside TLS, up to a limit
}

const maxPlain = 64 << 10

func newSite() (*site, error) {
	s := &site{}
	if err := s.makeCertificate(); err != nil {
		return nil, err
	}
	var l net.Listener
	err := inNS(world.outside, func() (err error) {
		l, err = net.Listen("tcp", outsideIP+":443")
		return err
	})
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0)}
	go server.Serve(&siteListener{l, s})
	return s, nil
}

func (s *site) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site"}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	s.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return errors.Join(
		os.WriteFile(siteDir+"/ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(siteDir+"/key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
	)
}

// ServeHTTP says how much it got and what that was (X-Got), and answers with the path, or
// with as many bytes as /size/N asks for.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		return
	}
	w.Header().Set("X-Got", fmt.Sprintf("%d %x", n, sum.Sum(nil)))
	var size int
	if _, err := fmt.Sscanf(r.URL.Path, "/size/%d", &size); err != nil {
		fmt.Fprintf(w, "hello %s, got %s\n", r.URL.Path, w.Header().Get("X-Got"))
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(size))
	_, _ = w.Write(bulk(size))
}

// bulk is that many bytes, of which no 64 KiB are like the next.
func bulk(size int) []byte {
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i*7 + i>>8*13)
	}
	var b bytes.Buffer
	for n := 0; b.Len() < size; n++ {
		copy(block, fmt.Sprintf("block %d\n", n))
		b.Write(block)
	}
	return b.Bytes()[:size]
}

// since returns the connections from the nth on.
func (s *site) since(n int) []*visit {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*visit
	for _, v := range s.visits[n:] {
		seen := &visit{raw: v.raw}
		seen.plain.Write(v.plain.Bytes())
		list = append(list, seen)
	}
	return list
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.visits)
}

// siteListener puts TLS on connections, and records what they get below and above it.
type siteListener struct {
	net.Listener
	site *site
}

func (l *siteListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	v := &visit{}
	l.site.mu.Lock()
	l.site.visits = append(l.site.visits, v)
	l.site.mu.Unlock()
	below := &seenConn{c, func(b []byte) {
		l.site.mu.Lock()
		v.raw += len(b)
		l.site.mu.Unlock()
	}}
	return &seenConn{tls.Server(below, &tls.Config{Certificates: []tls.Certificate{l.site.cert}}), func(b []byte) {
		l.site.mu.Lock()
		v.plain.Write(b[:min(len(b), maxPlain-v.plain.Len())])
		l.site.mu.Unlock()
	}}, nil
}

// seenConn shows what is read.
type seenConn struct {
	net.Conn
	see func([]byte)
}

func (c *seenConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.see(b[:n])
	return n, err
}
