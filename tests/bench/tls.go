// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/lab"
)

// Sides of the measurement of TLS: what becomes of the app's TLS on its way. The same redirect brings all to HAProxy.
const (
	tlsPass     = "pass through"      // nothing: HAProxy carries bytes
	tlsInspect  = "inspect"           // Sidegate's relay reads and judges it, then HAProxy carries bytes
	tlsDeferred = "deferred"          // Sidegate's relay reads and judges it, HAProxy gets HTTP, the relay encrypts it again
	tlsMiddle   = "man in the middle" // it ends at HAProxy, which has a certificate of its own CA, and begins another one
)

var tlsSides = []string{tlsPass, tlsInspect, tlsDeferred, tlsMiddle}

var tlsRatios = []compare{{tlsInspect, tlsPass}, {tlsDeferred, tlsPass}, {tlsMiddle, tlsPass}, {tlsPass, tlsMiddle}, {tlsInspect, tlsMiddle}, {tlsDeferred, tlsMiddle}}

// throughRelay tells whether the app's connections pass the relay.
func throughRelay(side string) bool { return side == tlsInspect || side == tlsDeferred }

const (
	tlsPort       = 443
	tlsStatusPort = 8080          // nginx's, of itself
	tlsName       = "api.example" // the site's
	tlsSecret     = "/secret"     // what nobody may ask for
	tlsBulk       = 64 << 20
)

// The policies of pods with TLS.
const (
	tlsInspectName  = "bench-tls-inspect"
	tlsDeferredName = "bench-tls-deferred"
)

// tlsPolicy has rules of each kind, and the one that allows what is asked is the last. HAProxy is configured to the same effect where it
// is the one that judges.
func tlsPolicy(name, mode string) string {
	return policyHead(name) + `  tls:
    mode: ` + mode + `
    sni:
      default: deny
      rules:
      - {name: sites, action: allow, hosts: [api.example, "*.partner.example"]}
    http:
      default: deny
      rules:
      - {name: secrets, action: deny, path: {prefix: ` + tlsSecret + `}}
      - {name: admin, action: deny, path: {regex: "/v[0-9]+/admin(/.*)?"}}
      - {name: no-delete, action: deny, methods: [DELETE]}
      - {name: partners, action: allow, hosts: ["*.partner.example"], methods: [GET, HEAD]}
      - {name: api, action: allow, hosts: [api.example]}
`
}

// tlsHTTP is what HAProxy does with HTTP, both where it gets that from the relay and where it has ended TLS itself.
const tlsHTTP = `    mode http
    http-request deny deny_status 403 if { path_beg ` + tlsSecret + ` }
    http-request deny deny_status 403 if { path_reg ^/v[0-9]+/admin(/.*)?$ }
    http-request deny deny_status 403 if { method DELETE }
    http-request deny deny_status 403 unless { req.hdr(host),lower -m str api.example } || { req.hdr(host),lower -m end .partner.example }
    http-request set-header X-Sidecar added
`

// tlsProxyConfig is proxyConfig for a side. %s is the control socket. dir has the certificates.
func tlsProxyConfig(side, dir string) string {
	text := proxyConfig
	if side != tlsDeferred && side != tlsMiddle {
		return text
	}
	text = strings.Replace(text, "    default_backend original\n", tlsHTTP+"    default_backend original\n", 1)
	text = strings.Replace(text, "\nbackend original\n", "\nbackend original\n    mode http\n", 1)
	if side == tlsMiddle {
		bind := " ssl no-tls-tickets crt " + filepath.Join(dir, "middle.pem")
		for _, addr := range []string{"127.0.0.1", "[::1]"} {
			text = strings.Replace(text, "bind "+addr+":15001\n", "bind "+addr+":15001"+bind+"\n", 1)
		}
		text = strings.Replace(text, "server original 0.0.0.0:0", "server original 0.0.0.0:0 ssl verify required ca-file "+filepath.Join(dir, "site-ca.pem")+" sni ssl_fc_sni", 1)
		// No session is taken up again: each handshake here is a whole one, on all sides.
		text = strings.Replace(text, "global\n", "global\n    tune.ssl.cachesize 0\n", 1)
	}
	return text
}

const tlsSiteConfig = `daemon off;
user root;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path tmp;
    proxy_temp_path tmp;
    fastcgi_temp_path tmp;
    uwsgi_temp_path tmp;
    scgi_temp_path tmp;
    keepalive_timeout 60s;
    keepalive_requests 1000000000;
    ssl_certificate site.pem;
    ssl_certificate_key site.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache off;
    ssl_session_tickets off;
    server {
        listen 8080;
        stub_status;
    }
    server {
        listen 443 ssl backlog=4096;
        root www;
        open_file_cache max=10;
    }
}
`

// A tlsLoad is what wrk does.
type tlsLoad struct {
	name    string
	path    string
	conns   int
	closes  bool // a connection for each request
	bulk    bool // bytes count, and not requests
	quick   bool // also where there is little time
	version string
}

const (
	tls12 = "TLS 1.2"
	tls13 = "TLS 1.3"
)

var tlsLoads = []tlsLoad{
	{name: "64 B, 16 connections", path: wrkPath(64), conns: 16, version: tls12, quick: true},
	{name: "16 KiB, 16 connections", path: wrkPath(16 << 10), conns: 16, version: tls12},
	{name: "64 B, a connection each, 16 at a time", path: wrkPath(64), conns: 16, closes: true, version: tls12, quick: true},
	{name: "64 MiB", path: bulkPath, conns: 1, bulk: true, version: tls12},
	{name: "64 B, 16 connections", path: wrkPath(64), conns: 16, version: tls13},
	{name: "64 B, a connection each, 16 at a time", path: wrkPath(64), conns: 16, closes: true, version: tls13},
}

// kept is that of connections, whose handshakes are no part of the load.
func (l *tlsLoad) kept() bool { return !l.closes && !l.bulk }

func (l *tlsLoad) String() string { return l.version + ", " + l.name }

// sides are those that can have the load: OpenSSL 3.0 gives the keys of what it receives under TLS 1.2 only, and those are what deferring
// needs.
func (l *tlsLoad) sides(all []string) []string {
	if l.version == tls12 {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == tlsDeferred })
}

// A tlsBench is a site, a relay, and a pod of each side.
type tlsBench struct {
	t      *traffic
	dir    string
	site   *proc
	relay  *proc
	cgroup string // the relay's
	events string // file
	pods   map[string]*pod
	hosts  bool // names are known
	client *http.Client
}

// measureTLS times HTTPS.
func measureTLS(ctx context.Context, e *env, t *traffic) (figures []figure, notes []string, err error) {
	b := &tlsBench{t: t, dir: filepath.Join(t.w.dir, "tls"), pods: map[string]*pod{}, client: &http.Client{Transport: &http.Transport{}}}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.fill(ctx, e); err != nil {
		return nil, nil, err
	}
	var sides []string
	var errs []error
	for _, side := range tlsSides {
		if err := b.start(ctx, side); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", side, err))
			continue
		}
		sides = append(sides, side)
	}
	loads := slices.DeleteFunc(slices.Clone(tlsLoads), func(l tlsLoad) bool { return e.quick && !l.quick || !e.loads.MatchString(l.String()) })
	for _, l := range loads {
		if e.late() {
			errs = append(errs, fmt.Errorf("%s: %w", &l, errLate))
			continue
		}
		t.w.logf("tls: %s", &l)
		fs, err := b.measure(ctx, e, &l, l.sides(sides))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", &l, err))
			continue
		}
		figures = append(figures, fs...)
	}
	notes = append(tlsJudgement(figures),
		"tls: the client is wrk, whose OpenSSL has \"Options = KTLS\" on all sides; the same redirect of Sidegate brings all sides' connections to HAProxy, which has one thread; nginx is the site",
		"tls: no session is taken up again; the man in the middle checks the site's certificate, adds a header and judges requests as the policies do, and so does HAProxy behind deferred",
		"tls: CPU is that of the sidecar and, on the sides that have it, of the relay, whose events are written to a file; neither the app's nor the site's")
	return figures, notes, errors.Join(errs...)
}

// fill makes all but the pods.
func (b *tlsBench) fill(ctx context.Context, e *env) error {
	for _, d := range []string{"www/keep", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := b.certificates(); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	files := map[string]string{
		"nginx.conf":      strings.ReplaceAll(tlsSiteConfig, "root www", "root "+filepath.Join(b.dir, "www")),
		"hosts":           "127.0.0.1 localhost\n" + outsideIP + " " + tlsName + "\n",
		tls12 + ".cnf":    lab.OpenSSLConfig(lab.KTLS, "MaxProtocol = TLSv1.2"),
		tls13 + ".cnf":    lab.OpenSSLConfig(lab.KTLS),
		"www" + tlsSecret: "secret\n",
	}
	for _, size := range wrkSizes {
		files["www"+wrkPath(size)] = strings.Repeat("x", size)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	bulk := filepath.Join(b.dir, "www", bulkPath)
	if err := errors.Join(os.WriteFile(bulk, nil, 0o644), os.Truncate(bulk, tlsBulk)); err != nil {
		return err
	}
	// In the node only, as all mounts are.
	if err := unix.Mount(filepath.Join(b.dir, "hosts"), "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return os.NewSyscallError("mount over /etc/hosts", err)
	}
	b.hosts = true
	for name, mode := range map[string]string{tlsInspectName: "inspect", tlsDeferredName: "deferred"} {
		if err := b.t.w.writePolicy(name, tlsPolicy(name, mode)); err != nil {
			return err
		}
	}
	var err error
	b.site, err = b.t.w.spawn(b.t.out.cgroup, b.t.out.netns, nil, "nginx", "-p", b.dir+"/", "-c", "nginx.conf", "-e", "error.log")
	if err != nil {
		return err
	}
	if err := b.t.waitAccepting(ctx, b.site, b.t.out.netns, at(outsideIP, tlsPort)); err != nil {
		return err
	}
	return b.startRelay(filepath.Join(e.bin, "sidegate-tls"))
}

// certificates are the site's, and that of the man in the middle, whose CA the app trusts.
func (b *tlsBench) certificates() error {
	for _, who := range []string{"site", "middle"} {
		ca, err := lab.NewAuthority("CA of the " + who)
		if err != nil {
			return err
		}
		cert, key, err := ca.Issue([]string{tlsName})
		if err != nil {
			return err
		}
		err = errors.Join(os.WriteFile(filepath.Join(b.dir, who+"-ca.pem"), ca.PEM, 0o644),
			os.WriteFile(filepath.Join(b.dir, who+".pem"), append(cert, key...), 0o600))
		if err != nil {
			return err
		}
	}
	return nil
}

// startRelay starts the relay as its service does, with its events, in a cgroup of its own.
func (b *tlsBench) startRelay(binary string) (err error) {
	if b.cgroup, err = b.t.w.mkcgroup("tls-relay"); err != nil {
		return err
	}
	b.events = filepath.Join(b.dir, "events.json")
	if b.relay, err = b.t.w.spawn(b.cgroup, "", nil, binary, "--events", b.events); err != nil {
		return err
	}
	return lab.WaitFor(lab.Patience, "the TLS relay", func() (bool, error) {
		_, err := os.Stat(lab.RelaySocket)
		return err == nil, b.relay.alive()
	})
}

// start starts a side's pod, and sees that it does what it should.
func (b *tlsBench) start(ctx context.Context, side string) (err error) {
	p, err := b.t.startHAProxy(ctx, side, tlsProxyConfig(side, b.dir))
	if err != nil {
		return err
	}
	b.pods[side] = p
	// A load that is no part of a figure: what is there for the first time is warmed up.
	defer func() {
		if err == nil {
			_, err = b.try(ctx, side, &tlsLoads[0])
		}
	}()
	whose := "site"
	if side == tlsMiddle {
		whose = "middle"
	}
	for _, c := range []struct {
		path string
		ok   bool
	}{{wrkPath(64), true}, {tlsSecret, side == tlsPass}} {
		out, err := b.openssl(ctx, p, whose, c.path)
		if got := strings.HasPrefix(out, "HTTP/1.1 200 "); got != c.ok {
			return fmt.Errorf("an answer of 200 to a request for %s: %t, want %t: %q, %w", c.path, got, c.ok, out[:min(len(out), 200)], err)
		}
	}
	return nil
}

// openssl makes one request in an app, which checks whose certificate it is shown, and returns the answer.
func (b *tlsBench) openssl(ctx context.Context, p *pod, whose, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	dir, err := os.Open(p.appCgroup)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	env, argv, err := confined("openssl", "s_client", "-quiet", "-connect", tlsName+":"+strconv.Itoa(tlsPort), "-servername", tlsName,
		"-CAfile", filepath.Join(b.dir, whose+"-ca.pem"), "-verify_return_error")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + p.netns, "--"}, argv...)...)
	cmd.Env = append(append(os.Environ(), "OPENSSL_CONF="+filepath.Join(b.dir, tls12+".cnf")), env...)
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stdin = strings.NewReader("GET " + path + " HTTP/1.1\r\nHost: " + tlsName + "\r\nConnection: close\r\n\r\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("openssl: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}

// tlsSample is what a round was for a side.
type tlsSample struct {
	rate, p50, p99, cpu float64
}

const (
	tlsRounds, tlsRoundsQuick = 5, 2
	// tlsTries is how often a round is tried: where others use the machine, a second may be too short.
	tlsTries = 3
)

// measure makes the rounds of a load. All was warmed up when it was checked.
func (b *tlsBench) measure(ctx context.Context, e *env, l *tlsLoad, sides []string) (figures []figure, err error) {
	rounds := tlsRounds
	if e.quick {
		rounds = tlsRoundsQuick
	}
	rate, p50, p99, cpu := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	err = inTurns(rounds, sides, func(side string, warm bool) error {
		if warm {
			return nil
		}
		s, err := b.try(ctx, side, l)
		if err == nil {
			rate[side], cpu[side] = append(rate[side], s.rate), append(cpu[side], s.cpu)
			p50[side], p99[side] = append(p50[side], s.p50), append(p99[side], s.p99)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	ratios := slices.DeleteFunc(slices.Clone(tlsRatios), func(c compare) bool { return !slices.Contains(sides, c.of) || !slices.Contains(sides, c.to) })
	list := []struct {
		name, unit string
		values     map[string][]float64
	}{{tlsRate, "1/s", rate}, {tlsCPU, "us a request", cpu}, {"latency, p50", "ms", p50}, {"latency, p99", "ms", p99}}
	if l.bulk {
		list = list[:2]
		list[0].unit, list[1].unit = "MiB/s", "ms a GiB"
	}
	for _, q := range list {
		f, err := newFigure("tls", l.String()+": "+q.name, q.unit, sides, q.values, ratios...)
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// What figures are of, behind the load's name.
const (
	tlsRate = "rate"
	tlsCPU  = "CPU of sidecar and relay"
)

// try makes a load on a side until it works.
func (b *tlsBench) try(ctx context.Context, side string, l *tlsLoad) (s tlsSample, err error) {
	for range tlsTries {
		if s, err = b.wrk(ctx, side, l); err == nil {
			return s, nil
		}
		b.t.w.logf("tls: %s: %s: %v", l, side, err)
	}
	return s, err
}

// wrk makes a load on a side once.
func (b *tlsBench) wrk(ctx context.Context, side string, l *tlsLoad) (s tlsSample, err error) {
	p := b.pods[side]
	if err := os.Truncate(b.events, 0); err != nil {
		return s, err
	}
	carried, err := p.carried()
	if err != nil {
		return s, err
	}
	asked, err := p.asked()
	if err != nil {
		return s, err
	}
	argv := []string{"env", "OPENSSL_CONF=" + filepath.Join(b.dir, l.version+".cnf"), "wrk", "--threads", "1", "--connections", strconv.Itoa(l.conns),
		"--duration", strconv.Itoa(int(wrkTime.Seconds())), "--timeout", "3", "--latency"}
	if l.closes {
		argv = append(argv, "--header", "Connection: close")
	}
	wctx, cancel := context.WithTimeout(ctx, wrkTime+10*time.Second)
	defer cancel()
	kept := make(chan error, 1)
	var looked time.Time
	if l.kept() {
		go func() {
			var err error
			s.rate, s.cpu, looked, err = b.window(wctx, side, l)
			kept <- err
		}()
	}
	before, err := b.cpu(side)
	if err != nil {
		return s, err
	}
	out, err := runIn(wctx, p.appCgroup, p.netns, append(argv, "https://"+tlsName+l.path)...)
	ended := time.Now()
	if err != nil {
		cancel()
	}
	if l.kept() {
		if err = errors.Join(err, <-kept); err == nil && looked.After(ended) {
			err = errors.New("wrk had ended when what it did was looked at")
		}
	}
	if err != nil {
		return s, err
	}
	after, err := b.cpu(side)
	if err != nil {
		return s, err
	}
	a, err := parseWrk(out)
	if err != nil {
		return s, err
	}
	n, err := p.carried()
	if err != nil {
		return s, err
	}
	want := int64(l.conns)
	if l.closes {
		want = a.Done
	}
	if n -= carried; n < want {
		return s, fmt.Errorf("HAProxy carried %d connections, and should have %d", n, want)
	}
	if err := b.read(side, a.Done, asked); err != nil {
		return s, err
	}
	switch {
	case l.bulk:
		got, err := parseRead(out)
		if err != nil {
			return s, err
		}
		return tlsSample{rate: got / (1 << 20) / a.Took, cpu: (after - before) / (got / (1 << 30)) * 1e3}, nil
	case l.closes:
		s.rate, s.cpu = float64(a.Done)/a.Took, (after-before)/float64(a.Done)*1e6
	}
	s.p50, s.p99, err = parseLatency(out)
	return s, err
}

// cpu is what a side has used so far of its sidecar and the relay.
func (b *tlsBench) cpu(side string) (float64, error) {
	cgroups := []string{b.pods[side].sidecarCgroup}
	if throughRelay(side) {
		cgroups = append(cgroups, b.cgroup)
	}
	return cpuUsage(cgroups...)
}

// Of the second of wrk, what is looked at begins this long after the first request, and ends so.
const (
	windowFrom = wrkTime * 15 / 100
	windowTo   = wrkTime * 85 / 100
)

// window looks at a load on connections that are kept, from when all have been made, since handshakes are another load.
func (b *tlsBench) window(ctx context.Context, side string, l *tlsLoad) (rate, cpu float64, over time.Time, err error) {
	asked := int64(-1) // by us, and the first time does not count
	look := func() (at time.Time, used float64, requests int64, err error) {
		if requests, err = b.served(ctx); err == nil {
			used, err = b.cpu(side)
			asked++
		}
		return time.Now(), used, requests - asked, err
	}
	_, _, first, err := look()
	if err != nil {
		return 0, 0, over, err
	}
	var begin time.Time
	for {
		from, before, n, err := look()
		if err != nil {
			return 0, 0, over, err
		}
		if begin.IsZero() && n > first {
			begin = from
		}
		if begin.IsZero() || time.Since(begin) < windowFrom || n-first < int64(10*l.conns) {
			if !begin.IsZero() && time.Since(begin) > windowTo*3/4 {
				return 0, 0, over, fmt.Errorf("only %d requests in %s", n-first, time.Since(begin))
			}
			time.Sleep(5 * time.Millisecond)
			continue
		}
		time.Sleep(time.Until(begin.Add(windowTo)))
		to, after, last, err := look()
		if err != nil {
			return 0, 0, to, err
		}
		done := float64(last - n)
		if done <= 0 {
			return 0, 0, to, errors.New("nothing was done once all connections had been made")
		}
		return done / to.Sub(from).Seconds(), (after - before) / done * 1e6, to, nil
	}
}

var nginxStatus = regexp.MustCompile(`server accepts handled requests\n \d+ \d+ (\d+)`)

// served asks nginx how many requests it has served, this one with them, by a connection that is kept.
func (b *tlsBench) served(ctx context.Context) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at(outsideIP, tlsStatusPort)+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return parseStatus(text)
}

func parseStatus(text []byte) (int64, error) {
	m := nginxStatus.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("nginx says of itself %q", text)
	}
	return strconv.ParseInt(string(m[1]), 10, 64)
}

// read is an error unless who should read requests has read them, since so many were asked of HAProxy.
func (b *tlsBench) read(side string, done, asked int64) error {
	p := b.pods[side]
	if side == tlsDeferred || side == tlsMiddle {
		now, err := p.asked()
		if err != nil {
			return err
		}
		if now-asked < done {
			return fmt.Errorf("HAProxy has read %d of %d requests", now-asked, done)
		}
	}
	if !throughRelay(side) {
		return nil
	}
	seen, lost := int64(0), int64(0)
	// The relay writes events beside.
	return lab.WaitFor(lab.Patience, fmt.Sprintf("events of %d requests", done), func() (bool, error) {
		text, err := os.ReadFile(b.events)
		if err != nil {
			return false, err
		}
		if seen, lost, err = countEvents(text); err != nil {
			return false, err
		}
		// What is lost may be anything.
		return seen+lost >= done, b.relay.alive()
	})
}

var eventsLost = regexp.MustCompile(`"kind":"lost","lost":(\d+)`)

// countEvents counts requests that were let through, and events that were not written.
func countEvents(text []byte) (allowed, lost int64, err error) {
	for _, m := range eventsLost.FindAllSubmatch(text, -1) {
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		lost += n
	}
	return int64(bytes.Count(text, []byte(`"allowed":true`))), lost, nil
}

var (
	wrkLatency = regexp.MustCompile(`(?m)^\s*(50|99)%\s+([0-9.]+)(us|ms|s)$`)
	wrkRead    = regexp.MustCompile(`(?m)^\s*\d+ requests in [0-9.]+m?s, ([0-9.]+)([KMG]?)B read$`)
)

// parseLatency reads the 50th and the 99th percentile, in milliseconds.
func parseLatency(out []byte) (p50, p99 float64, err error) {
	for _, m := range wrkLatency.FindAllSubmatch(out, -1) {
		d, err := time.ParseDuration(string(m[2]) + string(m[3]))
		if err != nil {
			return 0, 0, err
		}
		if string(m[1]) == "50" {
			p50 = d.Seconds() * 1e3
		} else {
			p99 = d.Seconds() * 1e3
		}
	}
	if p50 == 0 || p99 == 0 {
		return 0, 0, fmt.Errorf("wrk says nothing of its latency: %q", bytes.TrimSpace(out))
	}
	return p50, p99, nil
}

// parseRead reads how many bytes came.
func parseRead(out []byte) (float64, error) {
	m := wrkRead.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk does not say what it read: %q", bytes.TrimSpace(out))
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	return n * map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[string(m[2])], err
}

// tlsJudgement says of each way to read TLS whether it takes less CPU than the man in the middle: it must with each load.
func tlsJudgement(figures []figure) (notes []string) {
	for _, side := range []string{tlsInspect, tlsDeferred} {
		var ratios []float64
		less := 0
		for _, f := range figures {
			if _, what, _ := strings.Cut(f.Name, ": "); what != tlsCPU {
				continue
			}
			for _, r := range f.Ratios {
				if r.Of == side && r.To == tlsMiddle {
					ratios = append(ratios, r.Median)
					if r.Median < 1 {
						less++
					}
				}
			}
		}
		if len(ratios) == 0 {
			continue
		}
		s := spreadOf(ratios)
		is := fmt.Sprintf("median %s, %s to %s", times(s.Median), times(s.Min), times(s.Max))
		head := fmt.Sprintf("target: HTTPS, less CPU of sidecar and relay than the %s: %s ", tlsMiddle, side)
		if less == len(ratios) {
			notes = append(notes, head+fmt.Sprintf("REACHED with all of %d loads: %s", len(ratios), is))
		} else {
			notes = append(notes, head+fmt.Sprintf("MISSED with %d of %d loads: %s", len(ratios)-less, len(ratios), is))
		}
	}
	return notes
}

// close ends what the traffic does not know of. Its pods are among the traffic's.
func (b *tlsBench) close() error {
	var errs []error
	if b.relay != nil {
		b.relay.stop()
	}
	if b.cgroup != "" {
		errs = append(errs, rmcgroup(b.cgroup))
	}
	b.client.CloseIdleConnections()
	if b.site != nil {
		b.site.stop()
	}
	if b.hosts {
		errs = append(errs, os.NewSyscallError("unmount /etc/hosts", unix.Unmount("/etc/hosts", unix.MNT_DETACH)))
	}
	return errors.Join(errs...)
}
