// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package tls

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// client is a program that asks a site for something, and hands over its keys.
type client struct {
	name    string
	version string // of TLS
	rx      bool   // it hands over the keys of what it receives, too
	typed   bool   // what is sent is the test's own, byte by byte: not made by the program

	// command is a program that asks host for a path, and sends the file if there is one.
	command func(host, path, file string) []string
	status  func(output []byte) (status int, body []byte, err error)
}

// answer is what a client made of what it got.
type answer struct {
	status  int
	body    []byte
	err     error  // of the program, or of what it printed
	output  []byte // of both kinds
	sent    string // by a client whose bytes are the test's own
	elapsed time.Duration
}

const clientTimeout = 2 * time.Minute

// run starts the client in the app's container, and returns when it has ended.
func (c *client) run(t *testing.T, host, path, file string) *answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clientTimeout)
	defer cancel()
	argv := c.command(host, path, file)
	cmd := world.app.command(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	a := &answer{}
	typeIt := func() {}
	if c.typed {
		// It stays open: its end would end the connection before the answer.
		stdin, err := cmd.StdinPipe()
		must(t, err)
		a.sent = request(t, host, path, file)
		typeIt = func() { _, _ = io.WriteString(stdin, a.sent) } // all of it, if the program goes on
	}
	start := time.Now()
	must(t, world.app.start(cmd))
	go typeIt()
	err := cmd.Wait()
	a.elapsed = time.Since(start)
	a.output = append(stderr.Bytes(), stdout.Bytes()...)
	a.status, a.body, a.err = c.status(stdout.Bytes())
	if a.err == nil {
		a.err = err
	} else {
		a.err = fmt.Errorf("%w (%v)", a.err, err)
	}
	return a
}

// request is an HTTP request in the test's own words.
func request(t *testing.T, host, path, file string) string {
	t.Helper()
	head := fmt.Sprintf(" %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: typed\r\nX-Odd:  spaces, \xe9 \r\nConnection: close\r\n", path, host)
	if file == "" {
		return "GET" + head + "\r\n"
	}
	b, err := os.ReadFile(file)
	must(t, err)
	return fmt.Sprintf("POST%sContent-Length: %d\r\n\r\n%s", head, len(b), b)
}

// rawAnswer reads an answer out of what a client printed that knows nothing of HTTP.
func rawAnswer(output []byte) (int, []byte, error) {
	at := bytes.Index(output, []byte("HTTP/1."))
	if at < 0 {
		return 0, nil, fmt.Errorf("there is no answer")
	}
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(output[at:])), nil)
	if err != nil {
		return 0, nil, err
	}
	body, err := io.ReadAll(r.Body)
	return r.StatusCode, body, err
}

// statusLine reads an answer of which the client printed the status in a line of its own.
func statusLine(output []byte) (status int, body []byte, err error) {
	line, body, _ := bytes.Cut(output, []byte("\n"))
	_, err = fmt.Sscanf(string(line), "%d", &status)
	return status, body, err
}

func sClient(version string, args ...string) *client {
	return &client{
		name: "s_client", version: version, rx: version == "TLS 1.2", typed: true, status: rawAnswer,
		command: func(host, _, _ string) []string {
			option := map[string]string{"TLS 1.2": "-tls1_2", "TLS 1.3": "-tls1_3"}[version]
			return append([]string{
				"openssl", "s_client", "-quiet", "-connect", outsideIP + ":443", "-servername", host,
				"-CAfile", siteDir + "/ca.pem", "-verify_return_error", option,
			}, args...)
		},
	}
}

func pythonClient(version string) *client {
	return &client{
		name: "python3", version: version, rx: version == "TLS 1.2", status: statusLine,
		command: func(host, path, file string) []string {
			argv := []string{"python3.11", "-I", "/tmp/fetch.py", map[string]string{"TLS 1.2": "12", "TLS 1.3": "13"}[version], "https://" + host + path}
			if file != "" {
				argv = append(argv, file)
			}
			return argv
		},
	}
}

func gnutlsClient(version string, args ...string) *client {
	return &client{
		name: "gnutls-cli", version: version, rx: true, typed: true, status: rawAnswer,
		command: func(host, _, _ string) []string {
			return append([]string{
				"gnutls-cli", "--logfile", "/tmp/gnutls.log", "--x509cafile", siteDir + "/ca.pem", "--port", "443",
				"--priority", gnutlsPriority(version), host,
			}, args...)
		},
	}
}

// gnutlsPriority is how GnuTLS is told a version.
func gnutlsPriority(version string) string {
	return "NORMAL:-VERS-ALL:+VERS-" + strings.ReplaceAll(version, " ", "")
}

func wgetClient(version string) *client {
	return &client{
		name: "wget", version: version, rx: true,
		status: func(output []byte) (int, []byte, error) { return 200, output, nil }, // or its exit status is not 0
		command: func(host, path, file string) []string {
			argv := []string{
				"/usr/bin/wget", "-q", "-O", "-", "--tries=1", "--ca-certificate", siteDir + "/ca.pem",
				"--ciphers", gnutlsPriority(version), "https://" + host + path,
			}
			if file != "" {
				argv = append(argv, "--post-file", file)
			}
			return argv
		},
	}
}

// newer is s_client of Debian 13's OpenSSL, which hands over the keys of what it receives in TLS 1.3 too.
func (c *client) newer() *client {
	older := c.command
	c.name, c.rx = "s_client 3.5", true
	c.command = func(host, path, file string) []string {
		return append([]string{OpenSSLDir + "/ld-linux-x86-64.so.2", "--library-path", OpenSSLDir, OpenSSLDir + "/openssl"}, older(host, path, file)[1:]...)
	}
	return c
}

var versions = []string{"TLS 1.2", "TLS 1.3"}

// clients are those that hand over their keys.
func clients() []*client {
	all := []*client{sClient("TLS 1.3").newer()}
	for _, version := range versions {
		all = append(all, sClient(version), pythonClient(version))
	}
	return all
}

// kernelKeys is how often the kernel took keys so far, in the pod.
type kernelKeys struct{ tx, rx int }

func countKeys() (n kernelKeys) {
	for line := range strings.Lines(readIn(world.pod, "/proc/thread-self/net/tls_stat")) {
		switch fields := strings.Fields(line); fields[0] {
		case "TlsTxSw":
			n.tx, _ = strconv.Atoi(fields[1])
		case "TlsRxSw":
			n.rx, _ = strconv.Atoi(fields[1])
		}
	}
	return n
}

// exchange is a run of a client, and all that came of it.
type exchange struct {
	*answer
	keys   kernelKeys // that the kernel took
	visits []*visit   // to the site
	events []event
}

func (c *client) exchange(t *testing.T, host, path, file string) *exchange {
	t.Helper()
	keys, visits, events := countKeys(), world.site.count(), len(readEvents(t))
	x := &exchange{answer: c.run(t, host, path, file)}
	x.events = eventsSince(t, events, 1)
	x.visits = world.site.since(visits)
	after := countKeys()
	x.keys = kernelKeys{after.tx - keys.tx, after.rx - keys.rx}
	t.Logf("%s, %s, https://%s%s: kernel keys %+v, status %d, %d bytes, %v, error %v", c.name, c.version, host, path, x.keys, x.status, len(x.body), x.elapsed.Round(time.Millisecond), x.err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("output: %.2000q", x.output)
			for _, e := range x.events {
				t.Log(e)
			}
		}
	})
	return x
}

// wantKeys says that the kernel took what the client had to give.
func (c *client) wantKeys(t *testing.T, x *exchange) {
	t.Helper()
	want := kernelKeys{tx: 1}
	if c.rx {
		want.rx = 1
	}
	if x.keys != want {
		t.Errorf("the kernel took %+v, want %+v", x.keys, want)
	}
}

// sitePlain is all that the site read inside TLS.
func (x *exchange) sitePlain() string {
	var b strings.Builder
	for _, v := range x.visits {
		b.Write(v.plain.Bytes())
	}
	return b.String()
}

func TestClients(t *testing.T) {
	for _, c := range clients() {
		t.Run(c.name+" "+c.version, func(t *testing.T) {
			t.Run("allowed", c.testAllowed)
			t.Run("denied path", c.testDeniedPath)
			t.Run("denied name", c.testDeniedName)
			t.Run("up", c.testUp)
			t.Run("down", c.testDown)
		})
	}
}

// Debian's own GnuTLS is built without kTLS, whatever its configuration says. Whose keys do not come
// sends nothing, where requests are to be judged.
func TestWithoutKeys(t *testing.T) {
	for _, version := range versions {
		for _, c := range []*client{gnutlsClient(version), wgetClient(version)} {
			t.Run(c.name+" "+version, func(t *testing.T) {
				x := c.exchange(t, "api.example", "/v1/a", "")
				if x.err == nil {
					t.Errorf("got status %d, %q", x.status, x.body)
				}
				if plain := x.sitePlain(); plain != "" {
					t.Errorf("the site got %q", plain)
				}
				if x.keys != (kernelKeys{}) {
					t.Errorf("the kernel took %+v", x.keys)
				}
				if e := find(x.events, "refused"); e == nil || !strings.Contains(e.Reason, "has not handed over its keys") {
					t.Errorf("the relay says %v", e)
				}
			})
		}
	}
}

func (c *client) testAllowed(t *testing.T) {
	x := c.exchange(t, "api.example", "/v1/a?q=1", "")
	if x.err != nil || x.status != 200 || !strings.HasPrefix(string(x.body), "hello /v1/a,") {
		t.Fatalf("got status %d, %q, error %v", x.status, x.body, x.err)
	}
	c.wantKeys(t, x)
	plain := x.sitePlain()
	if c.typed && plain != x.sent {
		t.Errorf("the site got %q, and %q was sent", plain, x.sent)
	}
	if !strings.HasPrefix(plain, "GET /v1/a?q=1 HTTP/1.1\r\n") {
		t.Errorf("the site got %q", plain)
	}
	c.checkEvents(t, x, "GET", "/v1/a")
}

// checkEvents looks for what is to be known of a request that was let through.
func (c *client) checkEvents(t *testing.T, x *exchange, method, path string) {
	t.Helper()
	switch e := find(x.events, "tls"); {
	case e == nil:
		t.Error("no event about TLS")
	case e.Version != c.version || e.Suite == "" || e.SNI != "api.example" || !e.ClientKeys || e.ServerKeys != c.rx:
		t.Errorf("of TLS the relay says %s", e)
	default:
		t.Log(e)
	}
	switch e := find(x.events, "http/request"); {
	case e == nil:
		t.Error("no event about the request")
	case e.HTTP.Method != method || e.HTTP.Path != path || e.HTTP.Host != "api.example" || e.HTTP.Rule != "api":
		t.Errorf("of the request the relay says %s", e)
	case len(e.HTTP.Headers) != 1 || e.HTTP.Headers[0].Value == "":
		t.Errorf("of the client's name the relay says %s", e)
	}
	// Without the keys of what the app receives, nobody can know.
	if e := find(x.events, "http/response"); c.rx != (e != nil && e.HTTP.Status == x.status) {
		t.Errorf("of the answer %d, whose keys came: %v, the relay says %v", x.status, c.rx, e)
	}
	for _, kind := range []string{"denied", "refused", "opaque"} {
		if e := find(x.events, kind); e != nil {
			t.Errorf("the relay says %s", e)
		}
	}
}

func (c *client) testDeniedPath(t *testing.T) {
	x := c.exchange(t, "api.example", "/secret/a", "")
	if x.err == nil || x.status == 200 && len(x.body) > 0 {
		t.Errorf("got status %d, %q, error %v", x.status, x.body, x.err)
	}
	if plain := x.sitePlain(); plain != "" {
		t.Errorf("the site got %q", plain)
	}
	c.wantKeys(t, x)
	if e := find(x.events, "denied"); e == nil || e.Rule != "secrets" {
		t.Errorf("the relay says %v", e)
	}
}

func (c *client) testDeniedName(t *testing.T) {
	x := c.exchange(t, "denied.example", "/v1/a", "")
	if x.err == nil {
		t.Errorf("got status %d, %q", x.status, x.body)
	}
	for _, v := range x.visits {
		if v.raw != 0 {
			t.Errorf("the site got %d bytes", v.raw)
		}
	}
	if e := find(x.events, "denied"); e == nil || e.Rule != "names" || e.SNI != "denied.example" {
		t.Errorf("the relay says %v", e)
	}
}

// bulkSize is what is sent each way, and by a client that is slow here for other reasons.
const (
	bulkSize      = 4 << 20
	smallBulkSize = 1 << 20
)

func (c *client) bulk() []byte {
	if c.name == "python3" {
		return bulk(smallBulkSize)
	}
	return bulk(bulkSize)
}

func (c *client) testUp(t *testing.T) {
	content := c.bulk()
	file := filepath.Join(t.TempDir(), "content")
	must(t, os.WriteFile(file, content, 0o644))
	x := c.exchange(t, "api.example", "/v1/up", file)
	if want := fmt.Sprintf("hello /v1/up, got %d %x\n", len(content), sha256.Sum256(content)); x.err != nil || string(x.body) != want {
		t.Fatalf("the site says %q, want %q; error %v", x.body, want, x.err)
	}
	c.wantKeys(t, x)
	c.checkEvents(t, x, "POST", "/v1/up")
}

func (c *client) testDown(t *testing.T) {
	want := c.bulk()
	path := fmt.Sprintf("/size/%d", len(want))
	x := c.exchange(t, "api.example", path, "")
	if x.err != nil || !bytes.Equal(x.body, want) {
		t.Fatalf("got status %d, %d bytes with sum %x, want %x; error %v", x.status, len(x.body), sha256.Sum256(x.body), sha256.Sum256(want), x.err)
	}
	c.wantKeys(t, x)
	c.checkEvents(t, x, "GET", path)
}
