// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// What nginx serves.
const (
	PagePath = "/page"
	PageText = "hello from the outside"
	FilePath = "/file"
	FileSize = 64 << 20
)

// nginx is Debian's, with a prefix and a configuration of its own.
type nginx struct {
	*daemon
	dir string
}

const nginxConfig = `daemon off;
user root;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events { worker_connections 512; }
http {
    log_format lab escape=json '{"client":"$remote_addr","client_port":"$remote_port","server":"$server_addr",'
        '"server_port":"$server_port","uri":"$request_uri","status":"$status","bytes":"$body_bytes_sent"}';
    access_log access.log lab;
    client_body_temp_path tmp/body;
    proxy_temp_path tmp/proxy;
    fastcgi_temp_path tmp/fastcgi;
    uwsgi_temp_path tmp/uwsgi;
    scgi_temp_path tmp/scgi;
    sendfile on;
    server {
        listen 80;
        listen [::]:80 ipv6only=on;
        root www;
    }
}
`

// startNginx starts nginx in the outside.
func startNginx(l *Lab, dir string) (*nginx, error) {
	for _, d := range []string{"www", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	config := strings.ReplaceAll(nginxConfig, "root www", "root "+dir+"/www")
	for name, text := range map[string]string{"nginx.conf": config, "access.log": "", "www" + PagePath: PageText + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if err := writeBulk(filepath.Join(dir, "www", FilePath)); err != nil {
		return nil, err
	}
	d, err := startDaemon(l.Dir, "nginx", "nsenter", "--net="+outsideNetns, "--", "nginx", "-p", dir+"/", "-c", "nginx.conf", "-e", "error.log")
	if err != nil {
		return nil, err
	}
	return &nginx{d, dir}, nil
}

// bulkReader is the same FileSize random bytes for all.
func bulkReader() io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte([]byte("sidegate's lab: a file for tests"))), FileSize)
}

func writeBulk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := io.Copy(w, bulkReader()); err != nil {
		return err
	}
	return w.Flush()
}

// FileSHA256 returns the SHA-256 of the file at FilePath, in hexadecimal.
var FileSHA256 = sync.OnceValue(func() string {
	h := sha256.New()
	_, _ = io.Copy(h, bulkReader()) // neither end can fail
	return hex.EncodeToString(h.Sum(nil))
})

// ready waits until nginx answers.
func (n *nginx) ready(ctx context.Context, o *Outside) error {
	return WaitFor(Patience, "nginx", func() (bool, error) {
		if err := n.alive(); err != nil {
			return false, err
		}
		r, err := o.Probe(ctx, "http", "--to", o.HTTP(false).String(), "--path", PagePath+"?ready")
		return r.OK, err
	})
}

// A Request is an entry of nginx's access log.
type Request struct {
	Client netip.AddrPort
	Server netip.AddrPort
	URI    string
	Status string
}

// requests returns the log's entries whose URI contains nonce.
func (n *nginx) requests(nonce string) ([]Request, error) {
	f, err := os.Open(filepath.Join(n.dir, "access.log"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []Request
	s := bufio.NewScanner(f)
	for s.Scan() {
		if !strings.Contains(s.Text(), nonce) {
			continue
		}
		r, err := parseRequest(s.Bytes())
		if err != nil {
			return nil, fmt.Errorf("nginx's log: %w", err)
		}
		if strings.Contains(r.URI, nonce) {
			found = append(found, r)
		}
	}
	return found, s.Err()
}

func parseRequest(line []byte) (Request, error) {
	var e struct {
		Client, Server, URI, Status string
		ClientPort                  string `json:"client_port"`
		ServerPort                  string `json:"server_port"`
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return Request{}, err
	}
	client, err := joinAddrPort(e.Client, e.ClientPort)
	if err != nil {
		return Request{}, err
	}
	server, err := joinAddrPort(e.Server, e.ServerPort)
	return Request{client, server, e.URI, e.Status}, err
}

// joinAddrPort parses an address and a port that came apart. v4-mapped addresses become IPv4.
func joinAddrPort(addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ap, err := netip.ParseAddrPort(netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	var p uint16
	if _, err := fmt.Sscan(port, &p); err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), p), nil
}
