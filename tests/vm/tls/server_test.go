// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package tls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// appPort is where the app serves, as the outside sees it.
const appPort = 8443

// An app that serves TLS hands over keys too, and the kernel encrypts what it sends from a file. It is
// none of the relay's business: what comes in goes through the sidecar alone.
func TestServer(t *testing.T) {
	content := bulk(bulkSize)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "content"), content, 0o644))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			server := world.app.command(t.Context(), "openssl", "s_server", "-quiet", "-accept", strconv.Itoa(appPort), "-cert", siteDir+"/ca.pem", "-key", siteDir+"/key.pem",
				"-WWW", "-http_server_binmode", "-sendfile", "-naccept", "1")
			var output bytes.Buffer
			server.Dir, server.Stdout, server.Stderr = dir, &output, &output
			must(t, world.app.start(server))
			must(t, waitFor("s_server", func() bool { return listening(appPort) }))
			keys, events := countKeys(), len(readEvents(t))
			got, err := fetch(version, "/content")
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("got %d bytes, error %v, want %d", len(got), err, len(content))
			}
			after := countKeys()
			if after.tx != keys.tx+1 {
				t.Errorf("the kernel took keys of %d connections", after.tx-keys.tx)
			}
			must(t, server.Wait())
			for _, e := range readEvents(t)[events:] {
				t.Errorf("the relay says %s", e)
			}
			log, err := os.ReadFile(relayLog)
			must(t, err)
			if strings.Contains(string(log), "hands over keys") {
				t.Errorf("the relay logs %s", log)
			}
			if t.Failed() {
				t.Logf("%s", &output)
			}
		})
	}
}

// fetch asks the app, from outside.
func fetch(version uint16, path string) (body []byte, err error) {
	pem, err := os.ReadFile(siteDir + "/ca.pem")
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	var conn net.Conn
	err = inNS(world.outside, func() (err error) {
		conn, err = net.DialTimeout("tcp", podIP+":"+strconv.Itoa(appPort), 10*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: hosts[0], MinVersion: version, MaxVersion: version})
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
		return nil, err
	}
	all, err := io.ReadAll(c)
	_, body, _ = bytes.Cut(all, []byte("\r\n\r\n"))
	return body, err
}
