// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// counter is a stream that counts writes.
type counter struct {
	*net.TCPConn
	writes int
}

func (c *counter) Write(b []byte) (int, error) {
	c.writes++
	return c.TCPConn.Write(b)
}

// BenchmarkUpload is of one connection's body: 64 MiB and more, per MiB.
func BenchmarkUpload(b *testing.B) {
	server := tlsServer(b, nil, func(c *tls.Conn) { _, _ = io.Copy(io.Discard, c) })
	to, err := net.Dial("tcp", server)
	if err != nil {
		b.Fatal(err)
	}
	app, near := loopback(b)
	onApp, onServer := &tap{Stream: near}, &tap{Stream: to.(*net.TCPConn)}
	r := &rig{t: b, app: app}
	r.log = &tlstest.KeyLog{}
	counted := &counter{TCPConn: to.(*net.TCPConn)}
	head := &switching{Stream: counted, tap: onServer}
	c := &Conn{
		App: &switching{Stream: near, tap: onApp}, Server: head, Policy: strict(b),
		Keys: &library{log: r.log, app: onApp, server: onServer},
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(context.Background()) }()
	client := r.client(nil)
	_, err = fmt.Fprintf(client, "POST /allowed HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000000000\r\n\r\n", tlstest.Name)
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 1<<20)
	_, _ = client.Write(body)
	b.SetBytes(1 << 20)
	counted.writes = 0
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		if _, err := client.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(counted.writes)/float64(b.N), "writes/op")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "mallocs/op")
	app.Close()
	<-done
}

// switching notes what the handshake needs, and no more.
type switching struct {
	Stream
	tap *tap
}

func (s *switching) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	s.tap.mu.Lock()
	defer s.tap.mu.Unlock()
	if s.tap.in.Len() < 16<<10 {
		s.tap.in.Write(b[:n])
	}
	return n, err
}
