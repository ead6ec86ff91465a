// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"strings"
	"testing"

	"sidegate/tests/lab"
)

const fetchSaw = `
import ssl, sys, http.client, urllib.request, urllib.error
c = ssl.create_default_context(cafile="/site/ca.pem")
for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, context=c, timeout=10) as r:
            print(r.status, r.headers["X-Saw"], r.read().decode().strip())
    except urllib.error.HTTPError as e:
        print(e.code)
    except Exception as e:
        print("failed:", repr(e))
k = http.client.HTTPSConnection("api.example", context=c, timeout=10)
for i in range(3):
    k.request("GET", "/keep/%d" % i)
    r = k.getresponse()
    print(r.status, r.headers["X-Saw"], r.read().decode().strip())
`

// The sidecar works on HTTP inside the app's own TLS sessions.
func TestDeferred(t *testing.T) {
	ctx := begin(t)
	p := newPodWith(ctx, t, "deferred", lab.HAProxyHTTPConfig, lab.OpenSSLConfig(lab.KTLS, "MaxProtocol = TLSv1.2"))
	w := watchAll(t)
	lines := p.python(ctx, t, fetchSaw, "https://api.example/v1/a", "https://api.example/forbidden", "https://api.example/secret/b")
	want := []string{"200 added hello /v1/a", "403", "failed:", "200 added hello /keep/0", "200 added hello /keep/1", "200 added hello /keep/2"}
	if len(lines) != len(want) {
		t.Fatalf("python says %q", lines)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("line %d is %q, want %q", i, lines[i], want[i])
		}
	}
	w.askedFor("GET api.example/v1/a", "GET api.example/keep/0", "GET api.example/keep/1", "GET api.example/keep/2")
	for _, r := range w.requests() {
		if r.Header.Get("X-Sidecar") != "added" {
			t.Errorf("%s has the headers %v", r, r.Header)
		}
	}
	// TLS 1.3, where OpenSSL hands over one direction only, is refused and says why.
	other, err := p.startApp(ctx, "other", lab.AppPort+1)
	must(t, err)
	out, err := run(ctx, other, fetchSaw, "/usr/bin/python3", "-", "https://api.example/v1/b")
	if err == nil {
		t.Errorf("with TLS 1.3: %s", out)
	}
	because(t, w.seen("refused"), "refused", "deferred needs the server's keys")
	w.askedFor("GET api.example/v1/a", "GET api.example/keep/0", "GET api.example/keep/1", "GET api.example/keep/2")
}
