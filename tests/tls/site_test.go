// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"sidegate/tests/lab"
)

// hosts are the names that the outside answers to.
var hosts = []string{"api.example", "other.example", "denied.example"}

// sitePort is where it listens.
const sitePort = 443

// site is an HTTPS server in the outside, which remembers what it was asked, and every
// byte that it got.
type site struct {
	ca string // file of the certificate that signs

	server *http.Server
	l      net.Listener

	mu    sync.Mutex
	asked []request
	conns []*recordedConn

	nginx *exec.Cmd // an OpenSSL server, at nginxPort
	other net.Listener
	own   net.Listener // speaks ownProtocol at ownPort
}

// request is one that the site was asked.
type request struct {
	Method, Host, Path, Query, Proto string
	Header                           http.Header
}

func (r request) String() string { return r.Method + " " + r.Host + r.Path }

func newSite(l *lab.Lab, dir string) (*site, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s := &site{ca: filepath.Join(dir, "ca.pem")}
	ca, err := lab.NewAuthority("the site's own CA")
	if err != nil {
		return nil, err
	}
	pemCert, pemKey, err := ca.Issue(hosts, lab.OutsideV4, lab.OutsideV6)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pemCert, pemKey)
	if err != nil {
		return nil, err
	}
	for name, b := range map[string][]byte{"ca.pem": ca.PEM, "cert.pem": pemCert, "key.pem": pemKey} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return nil, err
		}
	}
	if err := s.startNginx(l, dir); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	inner, err := l.Outside.Listen("tcp", ":"+strconv.Itoa(sitePort))
	if err != nil {
		return nil, err
	}
	s.l = &recorded{inner, s}
	s.server = &http.Server{
		Handler:   s,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go s.server.ServeTLS(s.l, "", "")
	if inner, err = l.Outside.Listen("tcp", ":"+strconv.Itoa(ownPort)); err != nil {
		return nil, err
	}
	s.own = tls.NewListener(&recorded{inner, s}, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{ownProtocol}})
	go s.echo()
	return s, nil
}

func (s *site) close() {
	_ = s.server.Close()
	_ = s.other.Close()
	_ = s.own.Close()
	_ = s.nginx.Process.Kill()
	_ = s.nginx.Wait()
}

// ServeHTTP answers with what it was asked. /size/N has N bytes, and X-Sum of them; what was
// sent is summed in X-Got.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, request{r.Method, r.Host, r.URL.Path, r.URL.RawQuery, r.Proto, r.Header.Clone()})
	s.mu.Unlock()
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		return
	}
	w.Header().Set("X-Got", fmt.Sprintf("%d %s", n, hex.EncodeToString(sum.Sum(nil))))
	w.Header().Set("X-Saw", r.Header.Get("X-Sidecar"))
	var size int
	if _, err := fmt.Sscanf(r.URL.Path, "/size/%d", &size); err != nil {
		fmt.Fprintf(w, "hello %s\n", r.URL.Path)
		return
	}
	block := bytes.Repeat([]byte("sidegate"), 1<<13)
	w.Header().Set("Content-Length", strconv.Itoa(size))
	for size > 0 {
		n, err := w.Write(block[:min(size, len(block))])
		if err != nil {
			return
		}
		size -= n
	}
}

// recorded is a listener whose connections are recorded.
type recorded struct {
	net.Listener
	site *site
}

func (l *recorded) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	rc := &recordedConn{Conn: c, site: l.site}
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.site.conns = append(l.site.conns, rc)
	return rc, nil
}

// recordedConn keeps the first of what it got.
type recordedConn struct {
	net.Conn
	site   *site
	buf    bytes.Buffer // under site.mu
	closed bool
}

func (c *recordedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.site.mu.Lock()
	defer c.site.mu.Unlock()
	if c.buf.Len() < 1<<17 {
		c.buf.Write(p[:n])
	}
	return n, err
}

func (c *recordedConn) Close() error {
	c.site.mu.Lock()
	c.closed = true
	c.site.mu.Unlock()
	return c.Conn.Close()
}

// sealed counts the records that carry application data: those of content type 23, but in TLS 1.3 for the Finished, which
// is the first.
func sealed(raw []byte, is13 bool) (n int) {
	for len(raw) >= 5 {
		size := 5 + int(binary.BigEndian.Uint16(raw[3:]))
		if raw[0] == 23 {
			n++
		}
		raw = raw[min(size, len(raw)):]
	}
	if is13 && n > 0 {
		n--
	}
	return n
}

// A protocol of one's own: what is said comes back.
const (
	ownPort     = 8444
	ownProtocol = "x-own"
)

func (s *site) echo() {
	for {
		c, err := s.own.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// nginxPort is where a site by OpenSSL is, which knows all suites.
const nginxPort = 8443

const nginxConf = `daemon off;
worker_processes 1;
error_log stderr warn;
pid %[1]s/nginx.pid;
events {}
http {
  access_log %[1]s/access.log;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  server {
    listen unix:%[1]s/site.sock ssl;
    ssl_certificate %[1]s/cert.pem;
    ssl_certificate_key %[1]s/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ciphers ALL:@SECLEVEL=0;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_CCM_SHA256;
    default_type text/plain;
    location / { return 200 "hello $uri $ssl_protocol $ssl_cipher\n"; }
  }
}
`

// startNginx starts it behind a recorder.
func (s *site) startNginx(l *lab.Lab, dir string) error {
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir), 0o644); err != nil {
		return err
	}
	s.nginx = exec.Command("/usr/sbin/nginx", "-c", conf, "-e", "stderr")
	s.nginx.Stderr = os.Stderr
	if err := s.nginx.Start(); err != nil {
		return err
	}
	socket := filepath.Join(dir, "site.sock")
	if err := lab.WaitFor(lab.Patience, "nginx", func() (bool, error) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false, nil
		}
		return true, c.Close()
	}); err != nil {
		return err
	}
	inner, err := l.Outside.Listen("tcp", ":"+strconv.Itoa(nginxPort))
	if err != nil {
		return err
	}
	s.other = &recorded{inner, s}
	go func() {
		for {
			c, err := s.other.Accept()
			if err != nil {
				return
			}
			go splice(c, socket)
		}
	}()
	return nil
}

// splice goes on to a UNIX socket.
func splice(c net.Conn, socket string) {
	defer c.Close()
	to, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(to, c)
		_ = to.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(c, to)
}
