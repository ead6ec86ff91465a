// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"io"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for linkname

	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// Nothing but this makes crypto/tls choose a suite of TLS 1.3. It is kept linkable (go.dev/issue/67401).
//
//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

// connection is a client and a server of crypto/tls with a relay in between.
type connection struct {
	client, server     *tls.Conn
	toServer, toClient *pump
}

// close is of both ends at once: each writes an alert, and waits for who reads it.
func (c *connection) close() {
	go c.client.Close()
	c.server.Close()
	<-c.toServer.done
	<-c.toClient.done
}

// connect lets the pumps be set up before they run.
func connect(t *testing.T, suite *tls.CipherSuite, setup func(c *connection)) *connection {
	t.Helper()
	version := suite.SupportedVersions[len(suite.SupportedVersions)-1]
	if version == tls.VersionTLS13 {
		was, wasNoAES := defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES
		defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = []uint16{suite.ID}, []uint16{suite.ID}
		t.Cleanup(func() { defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = was, wasNoAES })
	}
	s := &session{}
	config := &tls.Config{
		MinVersion: version, MaxVersion: version, CipherSuites: []uint16{suite.ID}, KeyLogWriter: s,
		Certificates: tlstest.Certificates(), InsecureSkipVerify: true, ServerName: tlstest.Name, NextProtos: []string{"h2", "http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(1), // else no tickets come
	}
	client, relayClient := net.Pipe()
	server, relayServer := net.Pipe()
	c := &connection{
		client: tls.Client(client, config), server: tls.Server(server, config),
		toServer: &pump{t: t, s: s, toServer: true, done: make(chan struct{})},
		toClient: &pump{t: t, s: s, done: make(chan struct{})},
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, conn := range []net.Conn{client, server, relayClient, relayServer} {
		if err := conn.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	if setup != nil {
		setup(c)
	}
	go c.toServer.run(relayClient, relayServer)
	go c.toClient.run(relayServer, relayClient)
	return c
}

// echo sends data to a server that sends it back.
func (c *connection) echo(t *testing.T, data []byte) {
	t.Helper()
	failed := make(chan error, 2)
	go func() {
		_, err := io.CopyN(c.server, c.server, int64(len(data)))
		failed <- err
	}()
	go func() {
		_, err := c.client.Write(data)
		failed <- err
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c.client, got); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, data) {
		t.Fatal("what came back is not what was sent")
	}
}

func TestCryptoTLS(t *testing.T) {
	suites := tlstest.Suites()
	if len(suites) < 11 {
		t.Fatalf("crypto/tls has %d suites, known are 11", len(suites))
	}
	random := mathrand.NewChaCha8([32]byte{1})
	for _, suite := range suites {
		for mode, reseal := range map[string]bool{"pass": false, "reseal": true} {
			t.Run(suite.Name+"/"+mode, func(t *testing.T) {
				c := connect(t, suite, func(c *connection) {
					c.toServer.reseal, c.toClient.reseal = reseal, reseal
				})
				var all []byte
				for _, size := range []int{1, 2, 1000, 1 << 14, 1<<20 + 1} {
					data := make([]byte, size)
					random.Read(data)
					c.echo(t, data)
					all = append(all, data...)
				}
				state := c.client.ConnectionState()
				c.close()

				for _, p := range []*pump{c.toServer, c.toClient} {
					if !bytes.Equal(p.plain.Bytes(), all) {
						t.Errorf("to server %v: read %d bytes of plaintext, %d were sent, or others", p.toServer, p.plain.Len(), len(all))
					}
					if p.kinds[TypeAlert] == 0 {
						t.Errorf("to server %v: saw no close_notify", p.toServer)
					}
					// TLS 1.2 has its Finished under these keys, 1.3 before them.
					if is13 := state.Version == tls.VersionTLS13; is13 != (p.missed > 0) || !is13 && p.kinds[TypeHandshake] == 0 {
						t.Errorf("to server %v: %d records did not open, %d were of a handshake", p.toServer, p.missed, p.kinds[TypeHandshake])
					}
				}
				checkHellos(t, c, state)
				if reseal {
					checkNonces(t, c.toServer)
					checkNonces(t, c.toClient)
				}
			})
		}
	}
}

func checkHellos(t *testing.T, c *connection, state tls.ConnectionState) {
	t.Helper()
	s := c.toServer.s
	if s.client.ServerName != "sidegate.test" || strings.Join(s.client.ALPN, " ") != "h2 http/1.1" || s.client.EarlyData || s.client.EncryptedClientHello {
		t.Errorf("client hello: %+v", s.client)
	}
	if s.server.Version != state.Version || s.server.CipherSuite != state.CipherSuite {
		t.Errorf("server hello: %+v", s.server)
	}
	want := state.NegotiatedProtocol
	if state.Version == tls.VersionTLS13 {
		want = ""
	}
	if s.server.ALPN != want {
		t.Errorf("server hello has ALPN %q, want %q", s.server.ALPN, want)
	}
}

// checkNonces: in TLS 1.2 with AES what was sealed has nonces of its own.
func checkNonces(t *testing.T, p *pump) {
	t.Helper()
	if p.sealer.p.explicit == 0 {
		return
	}
	sealed, seen := 0, map[string]bool{}
	for _, r := range p.records {
		if r.Type() != TypeApplicationData {
			continue
		}
		nonce := string(r.Body()[:explicitSize])
		if p.explicit[nonce] || seen[nonce] {
			t.Fatalf("to server %v: nonce %x was used before", p.toServer, nonce)
		}
		seen[nonce] = true
		sealed++
	}
	if sealed == 0 {
		t.Error("sealed nothing")
	}
}

// A policy's no reaches an unmodified program as an alert, whichever side it is for.
func TestDenied(t *testing.T) {
	for _, suite := range tlstest.Suites() {
		for _, toServer := range []bool{true, false} {
			t.Run(suite.Name, func(t *testing.T) {
				c := connect(t, suite, func(c *connection) {
					p := c.toClient
					if toServer {
						p = c.toServer
					}
					p.deny = "forbidden"
				})
				c.echo(t, []byte("allowed"))
				from, to := c.server, c.client
				if toServer {
					from, to = c.client, c.server
				}
				go func() { _, _ = io.WriteString(from, "this is forbidden") }()
				b, err := io.ReadAll(to)
				if err == nil || !strings.Contains(err.Error(), "remote error: tls: access denied") || len(b) > 0 {
					t.Errorf("to server %v: read %q, %v", toServer, b, err)
				}
				c.close()
			})
		}
	}
}

// What is changed on its way is noticed by the other end: the relay's records are bound to their place as the app's are.
func TestEndsNoticeChange(t *testing.T) {
	for _, suite := range tlstest.Suites() {
		t.Run(suite.Name, func(t *testing.T) {
			c := connect(t, suite, func(c *connection) {
				c.toServer.reseal = true
				c.toServer.tamper = func(out []byte) []byte {
					if c.toServer.kinds[TypeApplicationData] == 2 {
						out[len(out)-1] ^= 1
					}
					return out
				}
			})
			c.echo(t, []byte("fine"))
			go func() { _, _ = io.WriteString(c.client, "x") }()
			b, err := io.ReadAll(c.server)
			if err == nil || !strings.Contains(err.Error(), "bad record MAC") || len(b) > 0 {
				t.Errorf("read %q, %v", b, err)
			}
			c.close()
		})
	}
}

// The relay asks a crypto/tls server for a key update, which only an endpoint could, and follows the change of both keys.
func TestKeyUpdate(t *testing.T) {
	for _, suite := range tlstest.Suites() {
		if suite.SupportedVersions[0] != tls.VersionTLS13 {
			continue
		}
		t.Run(suite.Name, func(t *testing.T) {
			var saw []MessageType
			c := connect(t, suite, func(c *connection) {
				c.toServer.reseal = true
				c.toServer.inject = func(p *pump) []byte {
					if p.plain.String() != "beforeafter" {
						return nil
					}
					update, err := p.sealer.Seal(nil, TypeHandshake, []byte{byte(MessageKeyUpdate), 0, 0, 1, 1})
					if err != nil {
						t.Error(err)
					}
					p.s.nextGeneration(true)
					p.sealer.Wipe()
					p.sealer = sealer(t, p.s.info(true))
					return update
				}
				c.toClient.saw = func(m Message) { saw = append(saw, m.Type) }
			})
			c.echo(t, []byte("before"))
			c.echo(t, []byte("after"))
			c.echo(t, bytes.Repeat([]byte("long after"), 10000))
			c.close()
			if want := "beforeafter" + strings.Repeat("long after", 10000); c.toClient.plain.String() != want || c.toServer.plain.String() != want {
				t.Error("read another plaintext")
			}
			if len(saw) != 2 || saw[0] != MessageNewSessionTicket || saw[1] != MessageKeyUpdate {
				t.Errorf("saw messages %d", saw)
			}
		})
	}
}
