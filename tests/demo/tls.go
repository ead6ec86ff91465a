// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidegate/tests/lab"
)

// tlsApp is an app that knows nothing of Sidegate.
//
//go:embed tls_app.py
var tlsApp string

// siteNames are those of the site. One of them no app may connect to.
var siteNames = []string{"api.example", "other.example", "denied.example"}

// What is asked.
const (
	urlAllowed = "https://api.example/v1/things?page=2"
	urlSecret  = "https://api.example/secret/plans"
	urlOther   = "https://other.example/v1/things"
	urlDenied  = "https://denied.example/"
	urlSidecar = "https://api.example" + lab.HTTPForbidden
)

// Policies of the two pods.
const (
	tlsInspect  = "inspect"
	tlsDeferred = "deferred"
)

func tlsPolicy(mode string) string {
	return `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: ` + mode + `
spec:
  redirect: {getsockname: original} # HAProxy asks SO_ORIGINAL_DST for IPv4 only
  sidecarPorts: [15000] # HAProxy's own
  tls:
    mode: ` + mode + `
    sni:
      default: allow
      rules:
      - {name: no-such-name, action: deny, hosts: [denied.example]}
    http:
      default: deny
      rules:
      - {name: secrets, action: deny, path: {prefix: /secret}}
      - {name: api, action: allow, hosts: [api.example]}
`
}

// The whole opt-in of the apps: lines of their system's openssl.cnf. OpenSSL 3.0 gives the keys of what it receives under TLS 1.2 only,
// and without those nobody can answer the app in the server's stead.
var (
	optIn   = []string{lab.KTLS}
	optIn12 = []string{lab.KTLS, "MaxProtocol = TLSv1.2"}
)

// A tlsDemo is the pods and the site.
type tlsDemo struct {
	*lab.Lab
	e      *env
	hooks  string
	relay  *lab.Relay
	site   *lab.Site
	events int // of the relay, that were told before
	checks []check
}

// check is something that was tried, and what came of it.
type check struct {
	what, came string
	ok         bool
}

// runTLS is run for TLS that apps start.
func runTLS(ctx context.Context, e *env) (ok bool, err error) {
	began := time.Now()
	l, err := lab.New(ctx, lab.Options{Prober: e.prober, Log: e.log})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d := &tlsDemo{Lab: l, e: e}
	if d.hooks, err = lab.Install(l.Dir, filepath.Join(e.bin, "sidegate-oci-hook"), map[string]string{
		"inspect.yaml": tlsPolicy(tlsInspect), "deferred.yaml": tlsPolicy(tlsDeferred),
	}); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, lab.Unload(ctx, filepath.Join(e.bin, "sidegate"))) }()
	if d.site, err = l.Outside.StartSite(siteNames...); err != nil {
		return false, err
	}
	defer d.site.Close()
	if d.relay, err = lab.StartRelay(l.Dir, filepath.Join(e.bin, "sidegate-tls")); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.relay.Stop()) }()
	if err := d.all(ctx); err != nil {
		return false, err
	}
	sum := d.sum()
	fmt.Fprintf(e.stdout, "\n%s\n%s\n", time.Since(began).Round(time.Second), sum)
	return sum.failed == 0, nil
}

func (d *tlsDemo) sum() (s summary) {
	for _, c := range d.checks {
		if c.ok {
			s.passed++
		} else {
			s.failed++
		}
	}
	return s
}

func (d *tlsDemo) printf(format string, args ...any) { fmt.Fprintf(d.e.stdout, format, args...) }

// title begins a part.
func (d *tlsDemo) title(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	d.printf("\n%s\n%s\n", line, strings.Repeat("-", len(line)))
}

// check tells what came of something.
func (d *tlsDemo) check(what string, ok bool, format string, args ...any) {
	c := check{what, fmt.Sprintf(format, args...), ok}
	d.checks = append(d.checks, c)
	word := pass
	if !ok {
		word = fail
	}
	d.printf("  %s  %-58s %s\n", word, c.what, c.came)
}

func (d *tlsDemo) all(ctx context.Context) error {
	d.title("An app, in Python, which knows nothing of Sidegate")
	d.printf("%s", tlsApp)
	d.title("What its image has in /etc/ssl/openssl.cnf, and Debian's has not")
	d.printf("%s\n", strings.Join(optIn, "\n"))
	d.printf("\nThe site's certificate, which its own CA has signed:\n%s\n", d.site.Fingerprint)

	inspect, err := d.pod(ctx, tlsInspect, "")
	if err != nil {
		return err
	}
	defer inspect.Remove(context.WithoutCancel(ctx)) //nolint:errcheck // the lab removes what is left
	if err := d.inspect(ctx, inspect); err != nil {
		return err
	}
	deferred, err := d.pod(ctx, tlsDeferred, lab.HAProxyHTTPConfig)
	if err != nil {
		return err
	}
	defer deferred.Remove(context.WithoutCancel(ctx)) //nolint:errcheck // the lab removes what is left
	if err := d.deferred(ctx, deferred); err != nil {
		return err
	}
	return d.withoutRelay(ctx, inspect, deferred)
}

// tlsPod is a pod with HAProxy, and an app for each version of TLS that is needed.
type tlsPod struct {
	*lab.Pod
	policy string
	app    *lab.Container // TLS 1.3
	app12  *lab.Container // TLS 1.2
}

func (d *tlsDemo) pod(ctx context.Context, policy, sidecar string) (p *tlsPod, err error) {
	p = &tlsPod{policy: policy}
	if p.Pod, err = d.NewPod(ctx, lab.PodOptions{HooksDir: d.hooks, SidecarConfig: sidecar}); err != nil {
		return nil, err
	}
	if _, err := p.StartSidecar(ctx, lab.ContainerOptions{Annotations: asks("sidecar", policy)}); err != nil {
		return nil, err
	}
	if policy == tlsInspect {
		if p.app, err = d.app(ctx, p, "app", optIn); err != nil {
			return nil, err
		}
	}
	p.app12, err = d.app(ctx, p, "app12", optIn12)
	return p, err
}

func asks(role, policy string) map[string]string {
	return map[string]string{"sidegate/role": role, "sidegate/policy": policy}
}

// app starts a container with this machine's programs, where the script can be run.
func (d *tlsDemo) app(ctx context.Context, p *tlsPod, name string, optIn []string) (*lab.Container, error) {
	dir := filepath.Join(d.Dir, p.Name+"-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"fetch.py": tlsApp, "ca.pem": string(d.site.CA), "openssl.cnf": lab.OpenSSLConfig(optIn...),
		"hosts": "127.0.0.1 localhost\n" + lab.OutsideV4.String() + " " + strings.Join(siteNames, " ") + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return p.Run(ctx, name, lab.AppImage, lab.ContainerOptions{
		Annotations: asks("app", p.policy),
		Flags: []string{
			"--volume", "/usr:/usr:ro", "--volume", "/lib:/lib:ro", "--volume", "/lib64:/lib64:ro", "--volume", dir + ":/app:ro",
			"--volume", dir + "/openssl.cnf:/etc/ssl/openssl.cnf:ro", "--volume", dir + "/hosts:/etc/hosts:ro",
		},
		Args: []string{"/bin/busybox", "sleep", "100000"},
	})
}

// answer is what the script says of one URL.
type answer struct {
	url         string
	status      int // 0 if it failed
	fingerprint string
	text        string
}

func (a answer) String() string {
	if a.status == 0 {
		return a.text
	}
	return fmt.Sprintf("%d %s", a.status, a.text)
}

// fetch runs the script.
func (d *tlsDemo) fetch(ctx context.Context, c *lab.Container, urls ...string) (list []answer, err error) {
	d.printf("\n$ python3 /app/fetch.py %s   # in container %s\n", strings.Join(urls, " "), c.Name)
	out, err := c.Exec(ctx, append([]string{"/usr/bin/python3", "/app/fetch.py"}, urls...)...)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(out)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 4)
		if len(f) != 4 {
			return nil, fmt.Errorf("the script says %q", line)
		}
		a := answer{url: f[0], fingerprint: f[2], text: f[3]}
		if f[1] != "failed" {
			if a.status, err = strconv.Atoi(f[1]); err != nil {
				return nil, fmt.Errorf("the script says %q: %w", line, err)
			}
		}
		list = append(list, a)
	}
	if len(list) != len(urls) {
		return nil, fmt.Errorf("the script was asked for %d URLs, and says %q", len(urls), out)
	}
	return list, nil
}

// arrived checks that an answer is the site's, and that python was shown the site's own certificate.
func (d *tlsDemo) arrived(what string, a answer, asked []lab.SiteRequest, times int) {
	seen := 0
	for _, r := range asked {
		if r.String() == request(a.url) {
			seen++
		}
	}
	d.check(what, a.status == 200 && seen == times, "%s; the site was asked %s", a, counted(seen))
	d.own(a)
}

// own checks whose certificate python was shown.
func (d *tlsDemo) own(a answer) {
	same := "the site's"
	if a.fingerprint != d.site.Fingerprint {
		same = "not the site's"
	}
	d.check("  its certificate, as python saw it", a.fingerprint == d.site.Fingerprint, "%.16s..., %s", a.fingerprint, same)
}

// denied checks that a request has failed, and that the site does not know of it.
func (d *tlsDemo) denied(what string, a answer, asked []lab.SiteRequest) {
	seen := slices.ContainsFunc(asked, func(r lab.SiteRequest) bool { return r.String() == request(a.url) })
	never := "the site never saw it"
	if seen {
		never = "the site saw it"
	}
	d.check(what, a.status == 0 && !seen, "%s; %s", a, never)
}

// request is what a site is asked where an app gets a URL.
func request(url string) string {
	url, _, _ = strings.Cut(strings.TrimPrefix(url, "https://"), "?")
	return "GET " + url
}

func counted(n int) string {
	switch n {
	case 0:
		return "never"
	case 1:
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// inspect is the relay that reads, and passes on unchanged.
func (d *tlsDemo) inspect(ctx context.Context, p *tlsPod) error {
	d.title("tls: inspect")
	d.printf("%s", rulesOf(tlsPolicy(tlsInspect)))
	d.site.Requests()
	answers, err := d.fetch(ctx, p.app, urlAllowed, urlSecret, urlDenied, urlOther)
	if err != nil {
		return err
	}
	asked := d.site.Requests()
	d.arrived("GET "+urlAllowed, answers[0], asked, 1)
	d.denied("GET "+urlSecret+": by its path", answers[1], asked)
	d.denied("GET "+urlDenied+": by its SNI", answers[2], asked)
	d.denied("GET "+urlOther+": no rule", answers[3], asked)
	if answers, err = d.fetch(ctx, p.app12, urlAllowed); err != nil {
		return err
	}
	d.arrived("GET "+urlAllowed+", TLS 1.2", answers[0], d.site.Requests(), 1)
	rows, err := d.watched(5)
	if err != nil {
		return err
	}
	has := func(want eventRow) bool {
		return slices.ContainsFunc(rows, func(r eventRow) bool {
			return strings.HasSuffix(r.Container, want.Container) && r.SNI == want.SNI && r.Path == want.Path && r.Verdict == want.Verdict && r.Rule == want.Rule &&
				r.Version == want.Version && r.Status == want.Status && r.Process == "python3"
		})
	}
	for _, w := range []struct {
		what string
		eventRow
	}{
		{"an event of what was allowed", eventRow{Container: "-app", SNI: "api.example", Version: "TLS 1.3", Path: "/v1/things", Verdict: "allowed", Rule: "api"}},
		{"an event of what was denied by its path", eventRow{Container: "-app", SNI: "api.example", Version: "TLS 1.3", Path: "/secret/plans", Verdict: "denied", Rule: "secrets"}},
		{"an event of what was denied by its SNI", eventRow{Container: "-app", SNI: "denied.example", Verdict: "denied", Rule: "no-such-name"}},
		{"an event of what no rule allows", eventRow{Container: "-app", SNI: "other.example", Version: "TLS 1.3", Path: "/v1/things", Verdict: "denied"}},
		{"the answer's status, where its keys are known", eventRow{Container: "-app12", SNI: "api.example", Version: "TLS 1.2", Path: "/v1/things", Verdict: "allowed", Rule: "api", Status: 200}},
	} {
		came := "none is right"
		if has(w.eventRow) {
			came = "as above"
		}
		d.check(w.what, has(w.eventRow), "%s", came)
	}
	return nil
}

// rulesOf is what a policy says of TLS.
func rulesOf(policy string) string {
	_, rules, _ := strings.Cut(policy, "  tls:\n")
	return "spec:\n  tls:\n" + rules
}

// deferred is a sidecar that gets what is inside TLS, and what it sends on is in TLS again.
func (d *tlsDemo) deferred(ctx context.Context, p *tlsPod) error {
	d.title("tls: deferred, with HAProxy in mode http")
	d.printf("openssl.cnf: %s\n", strings.Join(optIn12, "; "))
	for line := range strings.Lines(lab.HAProxyHTTPConfig) {
		if strings.Contains(line, "http-request") {
			d.printf("haproxy.cfg: %s", strings.TrimLeft(line, " "))
		}
		if strings.Contains(line, "frontend outbound6") {
			break
		}
	}
	d.site.Requests()
	answers, err := d.fetch(ctx, p.app12, urlAllowed, urlSidecar, urlSecret)
	if err != nil {
		return err
	}
	asked := d.site.Requests()
	d.arrived("GET "+urlAllowed, answers[0], asked, 1)
	header := ""
	for _, r := range asked {
		if r.String() == request(urlAllowed) {
			header = r.Header.Get("X-Sidecar")
		}
	}
	d.check("  a header that HAProxy adds arrives at the site", header == "added", "X-Sidecar: %s", header)
	seen := slices.ContainsFunc(asked, func(r lab.SiteRequest) bool { return r.Path == lab.HTTPForbidden })
	d.check("GET "+urlSidecar+": by HAProxy", answers[1].status == 403 && !seen, "%s, of HAProxy; the site saw it: %t", answers[1], seen)
	d.own(answers[1])
	d.denied("GET "+urlSecret+": by the policy", answers[2], asked)
	_, err = d.watched(3)
	return err
}

// withoutRelay kills the relay, and starts it again.
func (d *tlsDemo) withoutRelay(ctx context.Context, pods ...*tlsPod) error {
	d.title("The relay is killed, and started again")
	if err := d.relay.Kill(); err != nil {
		return err
	}
	for _, p := range pods {
		answers, err := d.fetch(ctx, p.app12, urlAllowed)
		if err != nil {
			return err
		}
		d.denied(fmt.Sprintf("%s, without a relay", p.policy), answers[0], d.site.Requests())
	}
	if err := d.relay.Start(); err != nil {
		return err
	}
	for _, p := range pods {
		answers, err := d.fetch(ctx, p.app12, urlAllowed)
		if err != nil {
			return err
		}
		d.arrived(fmt.Sprintf("%s, with the relay again", p.policy), answers[0], d.site.Requests(), 1)
	}
	return nil
}
