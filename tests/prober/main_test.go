// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"nonsense"}, {"tcp"}, {"tcp", "--to", "nowhere"}, {"udp", "--no-such-flag"}, {"listen", "word"}} {
		var stdout, stderr bytes.Buffer
		if status := run(args, &stdout, &stderr); status != 2 || stderr.Len() == 0 || stdout.Len() != 0 {
			t.Errorf("%q: status %d, stdout %q, stderr %q", args, status, &stdout, &stderr)
		}
	}
}

// Every way to connect reaches a plain echo server on loopback, and says in its result what the server saw.
func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { _ = echoTCP(l, &record{counts: map[string]int{}}) }()
	addr := l.Addr().String()
	for _, flags := range [][]string{{}, {"--nonblock"}, {"--mapped"}, {"--fastopen"}, {"--fastopen-connect"}, {"--unspec-from", addr}, {"--uring"}} {
		var stdout, stderr bytes.Buffer
		status := run(append([]string{"tcp", "--to", addr, "--nonce", "hello"}, flags...), &stdout, &stderr)
		var r result
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
			t.Fatalf("%q: %v: %q %q", flags, err, &stdout, &stderr)
		}
		if r.Errno == "ENOSYS" || (r.Errno == "EPERM" && len(flags) > 0 && flags[0] == "--uring") {
			t.Logf("%q: %s", flags, r.Err)
			continue
		}
		want := addr
		if len(flags) > 0 && flags[0] == "--mapped" {
			want = fmt.Sprintf("[::ffff:127.0.0.1]:%d", l.Addr().(*net.TCPAddr).Port)
		}
		if status != 0 || !r.OK || r.Data["peer"] != want {
			t.Errorf("%q: status %d: %s", flags, status, &stdout)
		}
	}
}

func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var stdout bytes.Buffer
	if status := run([]string{"tcp", "--to", addr}, &stdout, &stdout); status != 1 || !bytes.Contains(stdout.Bytes(), []byte(`"errno":"ECONNREFUSED"`)) {
		t.Errorf("status %d: %s", status, &stdout)
	}
}
