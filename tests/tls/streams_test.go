// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// talk is what python scripts below begin with: say opens a connection, sends pieces, each a record of its own or more, and
// returns what comes until the end.
const talk = `
import hashlib, socket, ssl, sys, time
def connect(version="TLSv1_2", host="api.example", alpn=None, port=443, timeout=20):
    c = ssl.create_default_context(cafile="/site/ca.pem")
    c.maximum_version = c.minimum_version = getattr(ssl.TLSVersion, version)
    if alpn: c.set_alpn_protocols(alpn)
    raw = socket.create_connection((host, port), timeout)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return c.wrap_socket(raw, server_hostname=host)
def drain(s):
    got = b""
    try:
        while True:
            b = s.recv(65536)
            if not b: return got.decode(), "end"
            got += b
    except Exception as e:
        return got.decode(), getattr(e, "reason", None) or repr(e)
def say(s, *pieces):
    try:
        for p in pieces: s.sendall(p.encode() if isinstance(p, str) else p)
    except Exception as e:
        print("send:", repr(e))
    return drain(s)
def req(path, more="", method="GET", host="api.example"):
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"
close = "Connection: close\r\n"
def hellos(got): return [l for l in got.splitlines() if l.startswith("hello")]
`

var versions = []string{"TLSv1_2", "TLSv1_3"}

// requests of every shape, and what the app and the site get.
func TestRequests(t *testing.T) {
	ctx := begin(t)
	p, free := sharedPod(ctx, t, "inspect"), sharedPod(ctx, t, "free")
	const keepAlive = `
s = connect(sys.argv[1])
for path in ["/v1/1", "/v1/2", "/secret/3", "/v1/4"]:
    s.sendall(req(path).encode())
    try:
        got = s.recv(65536).decode()
        print(path, hellos(got))
    except Exception as e:
        got = ""
        print(path, getattr(e, "reason", e))
    if not got: break
`
	for _, c := range []struct {
		name, script string
		site         []string // what it is asked
		freely       int      // how often it is asked without rules
		why          string   // the event's
	}{
		{"records", `
a = req("/v1/split", close)
print(*say(connect(sys.argv[1]), *a))
`, []string{"GET api.example/v1/split"}, 1, ""},
		{"denied records", `
a = req("/secret/split", close)
print(*say(connect(sys.argv[1]), *a))
`, nil, 1, `rule "secrets" denies it`},
		{"big header", `
print(*say(connect(sys.argv[1]), req("/v1/big", "X-Big: " + "a" * 16384 + "\r\n" + close)))
`, []string{"GET api.example/v1/big"}, 1, ""},
		{"denied behind a big header", `
print(*say(connect(sys.argv[1]), req("/marked/big", "X-Big: " + "a" * 16384 + "\r\n" + close)))
`, nil, 1, "no rule allows it"},
		{"pipelined", `
got, end = say(connect(sys.argv[1]), req("/v1/1") + req("/v1/2") + req("/v1/3", close))
print(hellos(got), end)
`, []string{"GET api.example/v1/1", "GET api.example/v1/2", "GET api.example/v1/3"}, 3, ""},
		{"second of one record", `
got, end = say(connect(sys.argv[1]), req("/v1/1") + req("/secret/2") + req("/v1/3", close))
print(hellos(got), end)
`, nil, 3, `rule "secrets" denies it`},
		{"second record", `
got, end = say(connect(sys.argv[1]), req("/v1/1"), req("/secret/2"), req("/v1/3", close))
print(hellos(got), end)
`, []string{"GET api.example/v1/1"}, 3, `rule "secrets" denies it`},
		{"keep-alive", keepAlive, []string{"GET api.example/v1/1", "GET api.example/v1/2"}, 4, `rule "secrets" denies it`},
		{"http.client", `
import http.client
c = ssl.create_default_context(cafile="/site/ca.pem")
c.maximum_version = getattr(ssl.TLSVersion, sys.argv[1])
h = http.client.HTTPSConnection("api.example", context=c, timeout=20)
for i in range(5):
    h.request("POST", f"/v1/{i}", body=b"x" * i)
    r = h.getresponse()
    print(r.status, r.read().decode().strip(), r.getheader("X-Got").split()[0])
h.close()
`, []string{"POST api.example/v1/0", "POST api.example/v1/1", "POST api.example/v1/2", "POST api.example/v1/3", "POST api.example/v1/4"}, 5, ""},
		{"smuggled", `
print(*say(connect(sys.argv[1]), "POST /v1/a HTTP/1.1\r\nHost: api.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /secret HTTP/1.1\r\n\r\n"))
`, nil, 0, "malformed http/1.1"},
		{"fronting", `
print(*say(connect(sys.argv[1]), req("/v1/a", close, host="other.example")))
`, nil, 1, "denied"},
		{"other than HTTP", `
print(*say(connect(sys.argv[1]), "EHLO x\r\n"))
`, nil, 0, "not HTTP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := free.watch(t)
			free.python(ctx, t, talk+both(c.script))
			w.settled()
			if n := len(w.requests()); n < 2*c.freely {
				t.Fatalf("without rules the site is asked %d times", n)
			}
			w = p.watch(t)
			p.python(ctx, t, talk+both(c.script))
			all := w.ended(2)
			w.askedFor(append(slices.Clone(c.site), c.site...)...)
			if c.why == "" {
				return
			}
			found := 0
			for _, e := range all {
				if (e.Kind == "denied" || e.Kind == "refused") && strings.Contains(e.Reason, c.why) {
					found++
				}
			}
			if found != 2 {
				t.Errorf("%q is not the reason of both:\n%s", c.why, show(all))
			}
			if n12, n13 := w.sealed(false), w.sealed(true); len(c.site) == 0 && (len(n12) != 2 || n12[0] != 0 || n13[1] != 0) {
				t.Errorf("the site got %v or %v records", n12, n13)
			}
		})
	}
}

// both runs a script under TLS 1.2, and then 1.3.
func both(script string) string {
	return "def f(version):\n" + strings.ReplaceAll(strings.ReplaceAll(script, "\n", "\n    "), "sys.argv[1]", "version") + "\nfor v in ['TLSv1_2', 'TLSv1_3']: f(v)\n"
}

// TestProtocols is about what is not HTTP/1.1.
func TestProtocols(t *testing.T) {
	ctx := begin(t)
	p, closed := sharedPod(ctx, t, "inspect"), sharedPod(ctx, t, "closed")
	t.Run("ALPN", func(t *testing.T) {
		// A protocol of one's own that begins with what is no request.
		script := talk + `
s = connect(sys.argv[1], alpn=["x-own"], port=8444)
s.sendall(b"\x00\x01binary" * 100)
got = b""
try:
    while len(got) < 800: got += s.recv(800) or sys.exit(print("end"))
except Exception as e: print(repr(e))
print(len(got))
`
		for _, version := range versions {
			w := closed.watch(t)
			if lines := closed.python(ctx, t, script, version); lines[0] != "800" {
				t.Errorf("%s: python says %q", version, lines)
			}
			all := w.ended(1)
			end := find(t, all, "the end", func(e *event) bool { return e.Kind == "end" })
			if end.ClientBytes < 800 || end.ServerBytes == 0 {
				t.Errorf("%s: %+v", version, end)
			}
			if hs := find(t, all, "the handshake", func(e *event) bool { return e.Kind == "tls" }); !slices.Equal(hs.Offered, []string{"x-own"}) || !hs.ClientKeys {
				t.Errorf("%s: %+v", version, hs)
			}
			if n := w.sealed(version == "TLSv1_3"); len(n) != 1 || n[0] == 0 {
				t.Errorf("%s: the site got %v records", version, n)
			}
			w = p.watch(t)
			p.python(ctx, t, script, version)
			because(t, w.ended(1), "denied", "not HTTP")
			if n := w.sealed(version == "TLSv1_3"); len(n) != 1 || n[0] != 0 {
				t.Errorf("%s: where it is not allowed the site got %v records", version, n)
			}
		}
	})
	t.Run("plaintext", func(t *testing.T) {
		const script = `
import urllib.request
try: print(urllib.request.urlopen("http://api.example/plain", timeout=10).status)
except Exception as e: print(repr(e))
`
		w := p.watch(t)
		p.python(ctx, t, script)
		all := w.ended(1)
		find(t, all, "that it is not read", func(e *event) bool { return e.Kind == "opaque" && e.Reason == "it is not TLS" })
		if end := find(t, all, "the end", func(e *event) bool { return e.Kind == "end" }); end.ServerBytes == 0 {
			t.Errorf("plaintext did not pass: %+v", end)
		}
		w = closed.watch(t)
		closed.python(ctx, t, script)
		all = w.ended(1)
		because(t, all, "refused", "the app:")
		if end := find(t, all, "the end", func(e *event) bool { return e.Kind == "end" }); end.ClientBytes != 0 {
			t.Errorf("plaintext passed: %+v", end)
		}
	})
	t.Run("HTTP2", func(t *testing.T) {
		for _, version := range []string{"-13=false", "-13"} {
			for _, policy := range []string{"free", "inspect"} {
				p := sharedPod(ctx, t, policy)
				w := p.watch(t)
				got := p.lie(ctx, t, "honest", version, "-alpn=h2", "-h2", "GET /v1/a", "GET /v1/b", "GET /secret", "GET /v1/c")
				w.settled()
				if policy == "free" {
					w.askedFor("GET api.example/v1/a", "GET api.example/v1/b", "GET api.example/secret", "GET api.example/v1/c")
					continue
				}
				all := w.ended(1)
				w.askedFor("GET api.example/v1/a", "GET api.example/v1/b")
				if r := w.requests(); len(r) > 0 && r[0].Proto != "HTTP/2.0" {
					t.Errorf("the site was asked by %s", r[0].Proto)
				}
				if len(got) != 4 || got[1].Status != 200 || got[2].Err == "" || got[3].Err == "" {
					t.Errorf("%s: %+v", version, got)
				}
				because(t, all, "denied", `rule "secrets" denies it`)
			}
		}
	})
}

// lied is what the liar prints.
type lied struct {
	Request, Body, Err string
	Status             int
}

// lie runs the client that hands over keys as how says.
func (p *pod) lie(ctx context.Context, t *testing.T, how string, args ...string) (list []lied) {
	t.Helper()
	return lieIn(ctx, t, p.app, how, args...)
}

func lieIn(ctx context.Context, t *testing.T, c *lab.Container, how string, args ...string) (list []lied) {
	t.Helper()
	out, err := run(ctx, c, "", append([]string{"/sidegate/liar", "-how=" + how}, args...)...)
	t.Logf("%s %v: %s", how, args, out)
	must(t, err)
	for line := range strings.Lines(out) {
		var l lied
		must(t, json.Unmarshal([]byte(line), &l))
		list = append(list, l)
	}
	return list
}

const mebibytes = 64 << 20

// sum is of n bytes as the site sends them.
func sum(n int) string {
	h := sha256.New()
	block := []byte(strings.Repeat("sidegate", 1<<13))
	for n > 0 {
		h.Write(block[:min(n, len(block))])
		n -= min(n, len(block))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestBulk(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	want := sum(mebibytes)
	for _, version := range versions {
		t.Run("python/"+version, func(t *testing.T) {
			w := p.watch(t)
			lines := p.python(ctx, t, talk+`
import http.client
n = int(sys.argv[2])
c = ssl.create_default_context(cafile="/site/ca.pem")
c.maximum_version = getattr(ssl.TLSVersion, sys.argv[1])
h = http.client.HTTPSConnection("api.example", context=c, timeout=60)
block = b"sidegate" * (1 << 13)
h.request("PUT", "/v1/up", body=(block for _ in range(n // len(block))), headers={"Content-Length": str(n)})
r = h.getresponse(); r.read()
print(r.getheader("X-Got"))
h.request("GET", f"/size/{n}")
r = h.getresponse()
sum, got = hashlib.sha256(), 0
while b := r.read(1 << 20):
    sum.update(b); got += len(b)
print(got, sum.hexdigest())
h.close()
`, version, strconv.Itoa(mebibytes))
			line := fmt.Sprintf("%d %s", mebibytes, want)
			if !slices.Equal(lines, []string{line, line}) {
				t.Errorf("python says %q, not %q twice", lines, line)
			}
			end := find(t, w.ended(1), "the end", func(e *event) bool { return e.Kind == "end" })
			if end.ClientBytes < mebibytes || end.ServerBytes < mebibytes || end.Duration <= 0 {
				t.Errorf("%+v", end)
			}
		})
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run("openssl/"+version, func(t *testing.T) {
			w := p.watch(t)
			const client = `timeout 60 openssl s_client -quiet -CAfile /site/ca.pem -servername api.example -connect api.example:443 `
			out := p.shell(ctx, t, fmt.Sprintf(`
block() { i=0; while [ $i -lt 64 ]; do cat /tmp/1m; i=$((i+1)); done; }
/usr/bin/yes sidegate | tr -d '\n' | head -c 1048576 >/tmp/1m
{ printf 'PUT /v1/up HTTP/1.1\r\nHost: api.example\r\nContent-Length: %[1]d\r\nConnection: close\r\n\r\n'; block; } | %[2]s %[3]s 2>/dev/null | tr -d '\r' | grep '^X-Got'
printf 'GET /size/%[1]d HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n' | %[2]s %[3]s 2>/dev/null | tail -c %[1]d | sha256sum
`, mebibytes, client, version))
			if want := fmt.Sprintf("X-Got: %d %s\n%s  -\n", mebibytes, want, want); out != want {
				t.Errorf("openssl says %q, not %q", out, want)
			}
			w.ended(2)
		})
	}
}

func TestManyConnections(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	const n = 500
	fds := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", world.relay.PID()))
		must(t, err)
		return len(list)
	}
	before := fds()
	var rss [2]int
	for i := range rss { // what the first leaves, the second uses again
		w := p.watch(t)
		if lines := p.python(ctx, t, talk+crowd, strconv.Itoa(n)); lines[0] != fmt.Sprintf("%d 0 []", n) {
			t.Errorf("python says %q", lines)
		}
		w.ended(n)
		if asked := len(w.requests()); asked != n*9/10 {
			t.Errorf("the site was asked %d times", asked)
		}
		must(t, lab.WaitFor(lab.Patience, "the relay's descriptors to be those before", func() (bool, error) { return fds() <= before, nil }))
		rss[i] = relayKB(t, "VmRSS")
	}
	t.Logf("the relay has %d descriptors, and %d KiB of memory", before, rss)
	// 500 connections have some 100 MiB while they are there. Go gives memory back when it likes; what the first round left
	// the second one did not need as well.
	if max(rss[0], rss[1]) > 150<<10 {
		t.Errorf("the relay has %d KiB", rss)
	}
}

// crowd has n connections at once. A tenth asks for what is denied.
const crowd = `
import threading
n = int(sys.argv[1])
ready, results = threading.Barrier(n + 1), []
gate = threading.Semaphore(50)
def one(i):
    try:
        with gate: s = connect("TLSv1_3" if i % 2 else "TLSv1_2", timeout=50)
        ready.wait(50)
        path = "/secret/x" if i % 10 == 0 else f"/v1/{i}"
        with gate: got, end = say(s, req(path, close))
        results.append((i, hellos(got) == [f"hello {path}"], end))
        s.close()
    except Exception as e:
        ready.abort()
        results.append((i, None, repr(e)))
threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
for t in threads: t.start()
ready.wait(50)
for t in threads: t.join()
wrong = [r for r in sorted(results) if r[1] != (r[0] % 10 != 0)]
print(len(results), len(wrong), wrong[:5])
`

// relayKB is a field of the relay's status.
func relayKB(t *testing.T, field string) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", world.relay.PID()))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			_, err := fmt.Sscan(rest, &kb)
			must(t, err)
			return kb
		}
	}
	t.Fatalf("no %s", field)
	return 0
}

// TestRekeying: the relay reads on, or the connection ends.
func TestRekeying(t *testing.T) {
	ctx := begin(t)
	free := sharedPod(ctx, t, "free")
	for _, c := range []struct {
		name, version, command, reason string
		port                           int
	}{
		{"renegotiation", "-tls1_2", "R", "the app renegotiates", nginxPort},
		{"update of the app's keys", "-tls1_3", "k", "the app changes its keys", nginxPort},
		{"update of both keys", "-tls1_3", "K", "the app changes its keys", nginxPort},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The command is one only at the beginning of what is read.
			script := fmt.Sprintf(`
{ printf 'GET /v1/1 HTTP/1.1\r\nHost: api.example\r\n\r\n'; wait_for 1; printf '%s\n'; wait_for 2; printf 'GET /v1/2 HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n'; wait_for 3; } |
timeout 10 openssl s_client -CAfile /site/ca.pem -servername api.example -connect api.example:%d %s >/tmp/out 2>&1
cat /tmp/out
`, c.command, c.port, c.version)
			script = `
rm -f /tmp/out
wait_for() {
	i=0
	case $1 in 1) what='^hello /v1/1';; 2) what='^RENEGOTIATING\|^KEYUPDATE';; 3) what='^hello /v1/2\|^closed\|:error:\|errno';; esac
	while ! grep -q "$what" /tmp/out 2>/dev/null && [ $i -lt 200 ]; do /usr/bin/sleep 0.02; i=$((i+1)); done
}
` + script
			out := free.shell(ctx, t, script)
			if !strings.Contains(out, "RENEGOTIATING") && !strings.Contains(out, "hello /v1/2") {
				t.Fatalf("without rules: %q", out)
			}
			p := sharedPod(ctx, t, "inspect")
			w := p.watch(t)
			out = p.shell(ctx, t, script)
			all := w.ended(1)
			because(t, all, "refused", c.reason)
			if !strings.Contains(out, "hello /v1/1") || strings.Contains(out, "hello /v1/2") {
				t.Errorf("openssl says %q", out)
			}
		})
	}
}
