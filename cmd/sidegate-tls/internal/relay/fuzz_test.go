// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
	"sidegate/policy/httprule"
)

// pair returns both ends of a UNIX connection.
func pair(t testing.TB) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// answers what is asked by turns.
type scripted struct {
	mu   sync.Mutex
	keys [][]byte // nil is none yet
}

func (s *scripted) Next(Side) (record.Keys, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return record.Keys{}, false, nil
	}
	b := s.keys[0]
	s.keys = s.keys[1:]
	if b == nil {
		return record.Keys{}, false, nil
	}
	k, err := record.ParseKeys(b)
	return k, err == nil, err
}

// zeroKeys are keys that everybody knows.
func zeroKeys(version uint16, number uint64) []byte {
	return tlstest.Info(version, tlstest.CipherGCM128, make([]byte, 16), make([]byte, 12), number)
}

// FuzzApp: whatever an app sends and whatever keys it hands over, what the server gets is how the app's stream begins, in
// whole records; and a request that is denied is not in it.
func FuzzApp(f *testing.F) {
	hello := func(version uint16) []byte {
		a, b := net.Pipe()
		go func() {
			_ = tls.Client(a, &tls.Config{ServerName: tlstest.Name, InsecureSkipVerify: true, MaxVersion: version}).Handshake()
		}()
		r, err := record.NewReader(b).Next()
		if err != nil {
			f.Fatal(err)
		}
		defer a.Close()
		return bytes.Clone(r)
	}
	serverHello := func(version uint16) []byte {
		a, b := net.Pipe()
		go func() {
			_ = tls.Server(a, &tls.Config{Certificates: tlstest.Certificates(), CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}).Handshake()
		}()
		_, _ = b.Write(hello(version))
		r, err := record.NewReader(b).Next()
		if err != nil {
			f.Fatal(err)
		}
		defer a.Close()
		return bytes.Clone(r)
	}
	seal := func(version uint16, number uint64, parts ...any) (out []byte) {
		k, err := record.ParseKeys(zeroKeys(version, number))
		if err != nil {
			f.Fatal(err)
		}
		d, err := record.NewDirection(k)
		if err != nil {
			f.Fatal(err)
		}
		s, err := d.Reseal()
		if err != nil {
			f.Fatal(err)
		}
		for i := 0; i < len(parts); i += 2 {
			if out, err = s.Seal(out, parts[i].(record.ContentType), []byte(parts[i+1].(string))); err != nil {
				f.Fatal(err)
			}
		}
		return out
	}
	const data, handshake = record.TypeApplicationData, record.TypeHandshake
	hello12, hello13 := hello(tls.VersionTLS12), hello(tls.VersionTLS13)
	server12, server13 := serverHello(tls.VersionTLS12), serverHello(tls.VersionTLS13)
	finished12 := append(clearly(20, "\x01"), seal(tls.VersionTLS12, 0, handshake, "\x14\x00\x00\x0c............", data, allowed, data, forbidden)...)
	finished13 := append(append(clearly(20, "\x01"), clearly(23, string(make([]byte, 53)))...), seal(tls.VersionTLS13, 0, data, allowed, data, forbidden)...)
	f.Add(hello12, server12, finished12, byte(1), uint16(0))
	f.Add(hello13, server13, finished13, byte(2), uint16(0))
	f.Add(hello13, server13, finished13, byte(0), uint16(7))
	f.Add([]byte("GET / HTTP/1.1\r\n"), []byte("x"), []byte(""), byte(3), uint16(1))
	set, err := httprule.Compile([]httprule.Rule{{Name: "allowed", Allow: true, Path: httprule.Path{Prefix: "/allowed"}}}, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, answer, rest []byte, keys byte, cut uint16) {
		app, nearApp := pair(t)
		server, nearServer := pair(t)
		for _, c := range []*net.UnixConn{app, server} {
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			defer c.Close()
		}
		onApp, onServer := &tap{Stream: nearApp}, &tap{Stream: nearServer}
		script := &scripted{}
		for ; keys > 0; keys >>= 2 {
			script.keys = append(script.keys, [][]byte{nil, zeroKeys(tls.VersionTLS12, 0), zeroKeys(tls.VersionTLS13, 0), zeroKeys(tls.VersionTLS13, 1)}[keys&3])
		}
		done := make(chan error, 1)
		go func() {
			c := &Conn{App: onApp, Server: onServer, Keys: script, Policy: Policy{RequireKeys: true, Judge: judge.Config{Rules: set}}}
			done <- c.Run(context.Background())
		}()
		go func() {
			b := make([]byte, 1)
			_, _ = server.Read(b) // answers what has come
			_, _ = server.Write(answer)
			_, _ = io.Copy(io.Discard, server)
			_ = server.CloseWrite()
		}()
		_, _ = app.Write(first)
		_ = app.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = app.Read(make([]byte, 1<<16))
		at := min(int(cut), len(rest))
		_, _ = app.Write(rest[:at])
		_, _ = app.Write(rest[at:])
		_ = app.CloseWrite()
		_ = app.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.Copy(io.Discard, app)
		app.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the relay does not end")
		}
		sent, got := onApp.read(), onServer.written()
		if !bytes.HasPrefix(sent, got) {
			t.Fatalf("the server got %x, the app sent %x", got, sent)
		}
		whole := 0
		for _, r := range records(got) {
			whole += len(r)
		}
		if whole != len(got) {
			t.Fatalf("the server got %d bytes, of whole records are %d", len(got), whole)
		}
	})
}
