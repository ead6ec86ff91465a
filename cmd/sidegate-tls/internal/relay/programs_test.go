// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// noKeys is a library without kTLS.
type noKeys struct{}

func (noKeys) Next(Side) (record.Keys, bool, error) { return record.Keys{}, false, nil }

// relayAddress relays all that connects to it.
func relayAddress(t *testing.T, server string, c Conn) string {
	t.Helper()
	var running sync.WaitGroup
	address := serve(t, func(app net.Conn) {
		running.Add(1)
		defer running.Done()
		to, err := net.Dial("tcp", server)
		if err != nil {
			t.Error(err)
			return
		}
		one := c
		one.App, one.Server = app.(*net.TCPConn), to.(*net.TCPConn)
		_ = one.Run(context.Background())
	})
	t.Cleanup(running.Wait)
	return address
}

// What people read whose program may not connect to a name.
func TestPrograms(t *testing.T) {
	a := &answering{}
	server := tlsServer(t, nil, a.handle)
	address := relayAddress(t, server, Conn{Keys: noKeys{}, Policy: Policy{
		SNI: func(name string) (bool, string) { return name == tlstest.Name, "" },
	}})
	host, port, _ := net.SplitHostPort(address)
	python := `import socket, ssl
c = ssl._create_unverified_context()
c.wrap_socket(socket.create_connection(("` + host + `", ` + port + `)), server_hostname="denied.test")`
	for name, test := range map[string]struct {
		command []string
		want    string
	}{
		"openssl":         {[]string{"openssl", "s_client", "-connect", address, "-servername", "denied.test"}, "tlsv1 alert access denied"},
		"openssl allowed": {[]string{"openssl", "s_client", "-connect", address, "-servername", tlstest.Name}, "Cipher is TLS_AES_"},
		"python":          {[]string{"python3", "-c", python}, "[SSL: TLSV1_ALERT_ACCESS_DENIED] tlsv1 alert access denied"},
		"curl":            {[]string{"curl", "-ksS", "--connect-to", "denied.test:443:" + address, "https://denied.test/"}, "access denied"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(test.command[0]); err != nil {
				t.Skip(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			out, _ := exec.CommandContext(ctx, test.command[0], test.command[1:]...).CombinedOutput()
			if !strings.Contains(string(out), test.want) {
				t.Errorf("want %q in:\n%s", test.want, out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "denied") && strings.Contains(line, "alert") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}
