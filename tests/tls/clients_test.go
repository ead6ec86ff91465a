// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// sClient is a function of the shell: openssl s_client with a request, which the server closes after. It prints the answer,
// and what openssl has to say.
const sClient = `
ask() { # host, port, method and path, more arguments
	host=$1 port=$2 what=$3
	shift 3
	printf '%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$what" "$host" |
	timeout 10 openssl s_client -quiet -verify_return_error -CAfile /site/ca.pem -servername "$host" -connect "$host:$port" "$@" 2>&1 |
	tr -d '\r' | grep -v '^depth=\|^verify return'
}
`

// suites are what OpenSSL hands over keys of.
var suites = []struct {
	flag, name, iana string
	is13             bool
}{
	{"-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", false},
	{"-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", false},
	{"-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", false},
	{"-cipher", "ECDHE-ECDSA-AES128-CCM", "0xC0AC", false},
	{"-ciphersuites", "TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256", true},
	{"-ciphersuites", "TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384", true},
	{"-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256", true},
	{"-ciphersuites", "TLS_AES_128_CCM_SHA256", "0x1304", true},
}

// noKeys are suites that OpenSSL 3.0 does not hand over keys of: they end where keys are required.
var noKeys = map[string]bool{"TLS_AES_128_CCM_SHA256": true}

func TestSuites(t *testing.T) {
	ctx := begin(t)
	var script strings.Builder
	script.WriteString(sClient)
	for _, s := range suites {
		version := "-tls1_2"
		if s.is13 {
			version = "-tls1_3"
		}
		for _, path := range []string{"/v1/" + s.name, "/secret/" + s.name} {
			fmt.Fprintf(&script, "echo '== %s'; ask api.example %d 'GET %s' %s %s %s\n", path, nginxPort, path, version, s.flag, s.name)
		}
	}
	blocks := func(out string) map[string]string {
		m := make(map[string]string)
		for b := range strings.SplitSeq(out, "== ") {
			path, rest, _ := strings.Cut(b, "\n")
			m[path] = rest
		}
		return m
	}
	free := blocks(sharedPod(ctx, t, "free").shell(ctx, t, script.String()))
	p := sharedPod(ctx, t, "inspect")
	w := p.watch(t)
	got := blocks(p.shell(ctx, t, script.String()))
	all := w.ended(2 * len(suites))
	w.settled()
	counts12, counts13 := w.sealed(false), w.sealed(true)
	for i, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			ok, denied := "/v1/"+s.name, "/secret/"+s.name
			for _, path := range []string{ok, denied} {
				if !strings.Contains(free[path], "hello "+path+" ") {
					t.Fatalf("without rules, %s says %q", path, free[path])
				}
			}
			if noKeys[s.name] {
				if strings.Contains(got[ok], "hello") {
					t.Errorf("%s came through: %q", ok, got[ok])
				}
				because(t, all, "refused", "has not handed over its keys")
				return
			}
			if !strings.Contains(got[ok], "hello "+ok+" TLSv1.") {
				t.Errorf("allowed: %q", got[ok])
			}
			if strings.Contains(got[denied], "hello") {
				t.Errorf("denied: %q", got[denied])
			}
			alert := "tlsv1 alert access denied"
			if s.is13 { // no key for what the app receives, so that it sees an end
				alert = "unexpected eof while reading"
			}
			if !strings.Contains(got[denied], alert) {
				t.Errorf("openssl says %q, and not %q", got[denied], alert)
			}
			counts := counts12
			if s.is13 {
				counts = counts13
			}
			if counts[2*i] != 1 || counts[2*i+1] != 0 {
				t.Errorf("the site got %d records of the allowed request, %d of the denied one", counts[2*i], counts[2*i+1])
			}
			e := find(t, all, "the request", func(e *event) bool { return e.HTTP != nil && e.HTTP.Path == ok && e.HTTP.Kind == "request" })
			hs := find(t, all, "the handshake", func(h *event) bool { return h.Kind == "tls" && h.From == e.From })
			if hs.Suite != s.iana || !hs.ClientKeys || hs.ServerKeys == s.is13 || (hs.Version == "TLS 1.3") != s.is13 {
				t.Errorf("the handshake is %+v", hs)
			}
			d := find(t, all, "the denial", func(e *event) bool { return e.HTTP != nil && e.HTTP.Path == denied })
			if d.HTTP.Allowed || d.HTTP.Rule != "secrets" {
				t.Errorf("the denial is %+v", d.HTTP)
			}
		})
	}
}

// urlopen opens each URL: METHOD URL [Header: value].
const urlopen = `
import ssl, sys, urllib.request
c = ssl.create_default_context(cafile="/site/ca.pem")
c.maximum_version = getattr(ssl.TLSVersion, sys.argv[1])
for arg in sys.argv[2:]:
    method, url, *header = arg.split(" ", 2)
    r = urllib.request.Request(url, method=method, headers=dict(h.split(": ") for h in header))
    try:
        with urllib.request.urlopen(r, context=c, timeout=10) as r:
            print(r.status, r.read().decode().strip())
    except Exception as e:
        print("failed:", repr(e))
`

func TestPython(t *testing.T) {
	ctx := begin(t)
	p, off := sharedPod(ctx, t, "inspect"), sharedPod(ctx, t, "free")
	const api = "https://api.example"
	cases := []struct {
		ask, path string // path: the site's answer if it is allowed
		rule      string
	}{
		{"GET " + api + "/v1/a?q=1&r=%20", "/v1/a", "api"},
		{"PUT " + api + "/v1/put", "/v1/put", "api"},
		{"GET " + api + "/marked/x X-Request-Id: 7", "/marked/x", "marked"},
		{"GET " + api + "/v1/exact/more", "/v1/exact/more", "api"},
		{"GET " + api + "/v1/exact", "", "exactly"},
		{"GET " + api + "/secret", "", "secrets"},
		{"GET " + api + "/secret/deep?x", "", "secrets"},
		{"GET " + api + "/v2/admin/users", "", "admins"},
		{"GET " + api + "/v1/%61dmin", "", "admins"},
		{"DELETE " + api + "/v1/a", "", "no-delete"},
		{"GET " + api + "/marked/x", "", ""},
		{"GET " + api + "/v10", "", ""},
		{"GET https://other.example/v1/a", "", ""},
		{"GET https://denied.example/v1/a", "", "names"},
	}
	for _, version := range []string{"TLSv1_2", "TLSv1_3"} {
		t.Run(version, func(t *testing.T) {
			args := []string{version}
			for _, c := range cases {
				args = append(args, c.ask)
			}
			for _, line := range off.python(ctx, t, urlopen, args...) {
				if !strings.HasPrefix(line, "200 hello") {
					t.Fatalf("without rules: %q", line)
				}
			}
			w := p.watch(t)
			lines := p.python(ctx, t, urlopen, args...)
			all := w.ended(len(cases))
			counts := w.sealed(version == "TLSv1_3")
			if len(counts) != len(cases) {
				// A denied hello goes nowhere, but the sidecar connects to where it was to go.
				t.Errorf("the site got %d connections", len(counts))
			}
			var want []string
			for i, c := range cases {
				if c.path != "" {
					method, _, _ := strings.Cut(c.ask, " ")
					want = append(want, method+" api.example"+c.path)
					if lines[i] != "200 hello "+c.path || counts[i] == 0 {
						t.Errorf("%s: %q, and the site got %d records", c.ask, lines[i], counts[i])
					}
					continue
				}
				why := "TLSV1_ALERT_ACCESS_DENIED"
				if version == "TLSv1_3" && c.rule != "names" {
					why = "Remote end closed connection without response"
				}
				if !strings.Contains(lines[i], why) || i < len(counts) && counts[i] != 0 {
					t.Errorf("%s: %q, and the site got %d records", c.ask, lines[i], counts[i])
				}
			}
			w.askedFor(want...)
			if r := w.requests()[0]; r.Query != "q=1&r=%20" || r.Header.Get("User-Agent") == "" || len(r.Header) != 3 {
				t.Errorf("the site got %+v", r)
			}
			var rules []string
			for _, e := range all {
				if e.HTTP != nil && e.HTTP.Kind == "request" {
					rules = append(rules, e.HTTP.Rule)
				} else if e.Kind == "denied" && e.SNI == "denied.example" {
					rules = append(rules, e.Rule)
				}
			}
			var wantRules []string
			for _, c := range cases {
				wantRules = append(wantRules, c.rule)
			}
			if !slices.Equal(rules, wantRules) {
				t.Errorf("rules %q, not %q", rules, wantRules)
			}
		})
	}
}
