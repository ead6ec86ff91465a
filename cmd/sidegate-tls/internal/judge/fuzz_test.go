// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
)

// FuzzHTTP1 wants of any bytes that net/http's server, given what is ready of them, sees the requests that were let
// through and no other, and that it does not matter how the bytes are cut.
func FuzzHTTP1(f *testing.F) {
	for _, tt := range accepted1 {
		f.Add([]byte(tt.text))
	}
	for _, tt := range refused1 {
		text, _ := parts(f, tt.text)
		f.Add([]byte(ok1 + text))
	}
	for seed := range uint64(20) {
		f.Add(random1(rand.New(rand.NewPCG(seed, 8))))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		same1(t, stream)
		anyCut(t, Config{Rules: everything, ALPN: "http/1.1", AnyHost: true}, string(stream))
		anyCut(t, Config{Rules: everything, ALPN: "http/1.1", AnyHost: true, Answers: true}, string(stream))
		anyCut(t, Config{Rules: noTunnels, AnyHost: true, Other: true}, string(stream))
	})
}

// FuzzHTTP2 wants the same of x/net/http2's server, but that it may see fewer requests.
func FuzzHTTP2(f *testing.F) {
	for _, tt := range accepted2 {
		f.Add([]byte(settings2 + tt.text))
	}
	for _, tt := range refused2 {
		text, _ := parts(f, tt.text)
		f.Add([]byte(settings2 + get2(101) + text))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		within2(t, append([]byte(preface), stream...))
		anyCut(t, Config{Rules: noTunnels, ALPN: "h2", AnyHost: true}, preface+string(stream))
	})
}

// FuzzChunks wants of any bytes after the head of a chunked request that net/http finds the end of the body at the same
// place, or does not like it.
func FuzzChunks(f *testing.F) {
	for _, tt := range accepted1 {
		if text, ok := strings.CutPrefix(tt.text, chunked1); ok {
			f.Add([]byte(text))
		}
	}
	for _, tt := range refused1 {
		if text, ok := strings.CutPrefix(tt.text, chunked1); ok {
			text, _ = parts(f, text)
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		n, ready, done, problem := newChunks().add(stream)
		if ready > n || done && ready != n || problem == "" && !done && n != len(stream) {
			t.Fatalf("%d read, %d ready, done %t, %q", n, ready, done, problem)
		}
		c := newChunks()
		total := 0
		for i := range stream {
			_, one, end, fault := c.add(stream[i : i+1])
			if total += one; end || fault != "" {
				if end != done || fault != problem {
					t.Fatalf("byte by byte: done %t, %q; whole: done %t, %q", end, fault, done, problem)
				}
				break
			}
		}
		if total != ready {
			t.Fatalf("byte by byte %d are ready, whole %d", total, ready)
		}

		r := bufio.NewReader(strings.NewReader(chunked1 + string(stream)))
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, req.Body)
		rest, _ := io.ReadAll(r)
		switch {
		case done && (err != nil || len(stream)-len(rest) != n):
			t.Fatalf("it ends after %d bytes, for net/http after %d, %v", n, len(stream)-len(rest), err)
		case !done && problem == "" && err == nil:
			t.Fatalf("it does not end, for net/http after %d bytes", len(stream)-len(rest))
		}
	})
}

// anyCut wants the same outcome byte by byte as whole.
func anyCut(t *testing.T, c Config, stream string) {
	whole := run(t, c, []step{client(stream)}, func() int { return 1 << 30 })
	bytes := run(t, c, []step{client(stream)}, func() int { return 1 })
	if whole.ready != bytes.ready || whole.reason() != bytes.reason() || whole.kinds() != bytes.kinds() {
		t.Fatalf("whole %d, %v\n%s\nbyte by byte %d, %v\n%s", whole.ready, whole.err, whole.kinds(), bytes.ready, bytes.err, bytes.kinds())
	}
}
