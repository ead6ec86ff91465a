// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidegate/tests/lab"
)

// Sides of the measurements of traffic: what brings an app's connections to the sidecar.
const (
	sideNone     = "no redirect"
	sideIptables = "iptables"
	sideSidegate = "Sidegate"
	// Not where there is no acceleration.
	sideAccelerated = "Sidegate, accelerated"
)

// policyOf is the policy of sides that Sidegate redirects.
var policyOf = map[string]string{
	sideSidegate: redirectName, sideAccelerated: acceleratedName,
	tlsPass: redirectName, tlsMiddle: redirectName, tlsInspect: tlsInspectName, tlsDeferred: tlsDeferredName,
}

var trafficSides = []string{sideNone, sideIptables, sideSidegate}

const (
	outboundTo  = 15001 // the sidecar's listener for redirected connections
	inboundTo   = 15006
	directTo    = 15002 // the sidecar's listener for an app that knows of it
	sidecarUser = 1337  // whom the iptables rules of a mesh exempt
	bulkPath    = "/bulk"
	bulkSize    = 256 << 20
)

// proxyConfig has one thread, so that the proxy's CPU time says more than that it spun. A server 0.0.0.0:0 is where the client meant
// to go.
const proxyConfig = `global
    maxconn 400
    nbthread 1
    uid 1337
    gid 1337
    stats socket %s mode 600 level operator

defaults
    mode tcp
    timeout connect 3s
    timeout client 30s
    timeout server 30s

frontend outbound
    bind 127.0.0.1:15001
    bind [::1]:15001
    tcp-request connection reject if { dst_port 15001 }
    default_backend original

frontend inbound
    bind 127.0.0.1:15006
    bind [::1]:15006
    default_backend app

frontend direct
    bind 127.0.0.1:15002
    default_backend fixed

backend original
    server original 0.0.0.0:0

backend app
    server app 127.0.0.1:0

backend fixed
    server fixed 192.0.2.80:80
`

const nginxConfig = `daemon off;
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
    sendfile on;
    keepalive_timeout 0;
    server {
        listen 80 backlog=4096;
        location = / { return 200 "ok\n"; }
        location = ` + bulkPath + ` { root www; }
        location /keep/ { root www; keepalive_timeout 60s; keepalive_requests 1000000000; open_file_cache max=10; }
    }
}
`

// A traffic is the pods and the outside. Each pod has an app, a sidecar, an address and a cgroup. Those whose sidecar is HAProxy have
// their side for a name.
type traffic struct {
	w        *world
	pods     map[string]*pod
	out      *outside
	nginx    *proc
	upstream *proc  // of the pods that have a relay
	iptables string // which one wrote the rules
}

type pod struct {
	name      string
	side      string
	netns     string
	dev       string // the node's end of its pair
	cgroup    string // holds those of the app and the sidecar
	app       *proc  // agents
	sidecar   *proc
	haproxy   *proc
	stats     string // HAProxy's control socket
	ids       []string
	cgroups   []string
	appTarget string // where an app connects to for the outside's web server

	appCgroup, sidecarCgroup string
}

func newTraffic(ctx context.Context, w *world) (_ *traffic, err error) {
	t := &traffic{w: w, pods: map[string]*pod{}}
	if t.out, err = newOutside(ctx, w); err != nil {
		return nil, err
	}
	if err := w.writePolicy(redirectName, redirectPolicy()); err != nil {
		return nil, errors.Join(err, t.close(ctx))
	}
	if err := t.web(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("nginx: %w", err), t.close(ctx))
	}
	for _, side := range trafficSides {
		if err := t.haproxy(ctx, side); err != nil {
			return nil, errors.Join(fmt.Errorf("pod of side %s: %w", side, err), t.close(ctx))
		}
	}
	return t, nil
}

// web starts nginx outside.
func (t *traffic) web(ctx context.Context) (err error) {
	dir := filepath.Join(t.w.dir, "nginx")
	for _, d := range []string{"www/keep", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	bulk := filepath.Join(dir, "www", bulkPath)
	if err := os.WriteFile(bulk, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(bulk, bulkSize); err != nil { // zeros that take no disk
		return err
	}
	for _, size := range wrkSizes {
		if err := os.WriteFile(filepath.Join(dir, "www", wrkPath(size)), make([]byte, size), 0o644); err != nil {
			return err
		}
	}
	config := strings.ReplaceAll(nginxConfig, "root www", "root "+filepath.Join(dir, "www"))
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o644); err != nil {
		return err
	}
	t.nginx, err = t.w.spawn(t.out.cgroup, t.out.netns, nil, "nginx", "-p", dir+"/", "-c", "nginx.conf", "-e", "error.log")
	if err != nil {
		return err
	}
	return t.waitAccepting(ctx, t.nginx, t.out.netns, at(outsideIP, httpPort))
}

// waitAccepting waits until there is a TCP listener at addr in the namespace.
func (t *traffic) waitAccepting(ctx context.Context, p *proc, netns, addr string) error {
	return lab.WaitFor(10*time.Second, p.name+" on "+addr, func() (bool, error) {
		if err := p.alive(); err != nil {
			return false, err
		}
		out, err := command(ctx, "nsenter", "--net="+netns, "--", "ss", "-Hltn")
		return listens(string(out), addr), err
	})
}

// listens tells whether addr is a local address in a listing of ss -Hltn; nginx's wildcard counts for any.
func listens(listing, addr string) bool {
	_, port, _ := net.SplitHostPort(addr)
	for line := range strings.Lines(listing) {
		if f := strings.Fields(line); len(f) > 3 && (f[3] == addr || f[3] == "0.0.0.0:"+port) {
			return true
		}
	}
	return false
}

// haproxy starts a pod of a side with HAProxy as its sidecar, and checks it.
func (t *traffic) haproxy(ctx context.Context, side string) error {
	p, err := t.startHAProxy(ctx, side, proxyConfig)
	if err != nil {
		return err
	}
	return t.check(p)
}

// startHAProxy starts one whose HAProxy has a configuration, in which %s is its control socket.
func (t *traffic) startHAProxy(ctx context.Context, side, text string) (*pod, error) {
	p, err := t.pod(ctx, side, side)
	if err != nil {
		return nil, err
	}
	p.stats = filepath.Join(t.w.dir, p.name+".sock")
	config := filepath.Join(t.w.dir, p.name+".cfg")
	if err := os.WriteFile(config, []byte(strings.Replace(text, "%s", p.stats, 1)), 0o644); err != nil {
		return nil, err
	}
	env, argv, err := confined("/usr/sbin/haproxy", "-db", "-f", config)
	if err != nil {
		return nil, err
	}
	if p.haproxy, err = t.w.spawn(p.sidecarCgroup, p.netns, env, argv...); err != nil {
		return nil, err
	}
	return p, t.waitAccepting(ctx, p.haproxy, p.netns, fmt.Sprintf("127.0.0.1:%d", outboundTo))
}

// pod starts a pod of a side, all of whose processes are confined, whose sidecar does nothing yet. env is more of the agents' environment.
func (t *traffic) pod(ctx context.Context, name, side string, env ...string) (p *pod, err error) {
	n := len(t.pods)
	p = &pod{name: "pod" + strconv.Itoa(n), side: side, dev: podDev(n), appTarget: at(outsideIP, httpPort)}
	t.pods[name] = p
	if p.netns, _, err = podNet(ctx, n); err != nil {
		return nil, err
	}
	if err := sysctls(ctx, p.netns); err != nil {
		return nil, err
	}
	if p.cgroup, err = t.w.mkcgroup(p.name); err != nil {
		return nil, err
	}
	start := func(role string, uid int) (*proc, string, error) {
		dir := filepath.Join(p.cgroup, role)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, "", err
		}
		p.cgroups = append(p.cgroups, dir)
		a, err := t.w.agent(dir, p.netns, uid, append([]string{confineEnv + "=1"}, env...)...)
		return a, dir, err
	}
	if p.app, p.appCgroup, err = start("app", 0); err != nil {
		return nil, err
	}
	if p.sidecar, p.sidecarCgroup, err = start("sidecar", sidecarUser); err != nil {
		return nil, err
	}
	switch side {
	case sideNone:
		p.appTarget = fmt.Sprintf("127.0.0.1:%d", directTo)
	case sideIptables:
		t.iptables, err = meshRules(ctx, p.netns)
		return p, err
	default:
		wanted, ok := policyOf[side]
		if !ok {
			return nil, errors.New("there is no such side")
		}
		for role, a := range map[string]*proc{"sidecar": p.sidecar, "app": p.app} {
			id := p.name + "-" + role
			p.ids = append(p.ids, id)
			if _, _, err := t.w.runHookFor("createRuntime", id, a.pid(), asks(role, wanted), confinement()); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// check makes a few connections and asks HAProxy whether it carried them: a side that does not do its work is no measurement.
func (t *traffic) check(p *pod) error {
	before, err := p.carried()
	if err != nil {
		return err
	}
	const n = 5
	if _, err := p.app.do(order{Op: "connect", Addr: p.appTarget, Workers: 1, Count: n, For: 10 * time.Second}); err != nil {
		return err
	}
	after, err := p.carried()
	if err != nil {
		return err
	}
	if after-before != n {
		return fmt.Errorf("HAProxy carried %d of %d connections", after-before, n)
	}
	return nil
}

// carried asks HAProxy how many connections of apps it has taken.
func (p *pod) carried() (int64, error) {
	rows, err := p.statistics()
	if err != nil {
		return 0, err
	}
	return sessions(rows)
}

// asked asks HAProxy how many requests of apps it has read, where it reads any.
func (p *pod) asked() (int64, error) {
	rows, err := p.statistics()
	if err != nil {
		return 0, err
	}
	return requests(rows)
}

// statistics are HAProxy's.
func (p *pod) statistics() ([][]string, error) {
	c, err := net.DialTimeout("unix", p.stats, 2*time.Second)
	if err != nil {
		return nil, errors.Join(err, p.haproxy.alive())
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(c, "show stat"); err != nil {
		return nil, err
	}
	r := csv.NewReader(c)
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("HAProxy's statistics: %w", err)
	}
	return rows, nil
}

// requests is how many frontend outbound has read; none, in mode tcp.
func requests(rows [][]string) (int64, error) {
	if len(rows) == 0 {
		return 0, errors.New("HAProxy has no statistics")
	}
	column := slices.Index(rows[0], "req_tot")
	for _, row := range rows {
		if column >= 0 && len(row) > column && row[1] == "FRONTEND" && strings.HasSuffix(row[0], "outbound") {
			if row[column] == "" {
				return 0, nil
			}
			n, err := strconv.ParseInt(row[column], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("HAProxy's statistics: %w", err)
			}
			return n, nil
		}
	}
	return 0, errors.New("HAProxy's statistics say nothing of requests")
}

// sessions adds up the connections that the frontends outbound and direct have taken.
func sessions(rows [][]string) (int64, error) {
	const columnProxy, columnService, columnTotal = 0, 1, 7
	total, found := int64(0), 0
	for _, row := range rows {
		if len(row) <= columnTotal || row[columnService] != "FRONTEND" || row[columnProxy] != "outbound" && row[columnProxy] != "direct" {
			continue
		}
		n, err := strconv.ParseInt(row[columnTotal], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("HAProxy's statistics: %w", err)
		}
		total, found = total+n, found+1
	}
	if found != 2 {
		return 0, fmt.Errorf("HAProxy's statistics have %d of the 2 frontends", found)
	}
	return total, nil
}

// meshRules writes what a mesh's init container writes: all TCP of the pod goes to the sidecar, both ways, but the sidecar's own. It
// returns the tool that could: Debian's iptables works on nf_tables, its iptables-legacy on the older tables.
func meshRules(ctx context.Context, netns string) (tool string, err error) {
	out, in, user := strconv.Itoa(outboundTo), strconv.Itoa(inboundTo), strconv.Itoa(sidecarUser)
	rules := func(loopback string) [][]string {
		return [][]string{
			{"-N", "MESH_OUT"},
			{"-A", "OUTPUT", "-p", "tcp", "-j", "MESH_OUT"},
			{"-A", "MESH_OUT", "-m", "owner", "--uid-owner", user, "-j", "RETURN"},
			{"-A", "MESH_OUT", "-m", "owner", "--gid-owner", user, "-j", "RETURN"},
			{"-A", "MESH_OUT", "-d", loopback, "-j", "RETURN"},
			{"-A", "MESH_OUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", out},
			{"-N", "MESH_IN"},
			{"-A", "PREROUTING", "-p", "tcp", "-j", "MESH_IN"},
			{"-A", "MESH_IN", "-p", "tcp", "-j", "REDIRECT", "--to-ports", in},
		}
	}
	write := func(suffix string) error {
		for command6, loopback := range map[string]string{"iptables" + suffix: "127.0.0.1/32", "ip6tables" + suffix: "::1/128"} {
			for _, r := range rules(loopback) {
				argv := append([]string{"nsenter", "--net=" + netns, "--", command6, "-w", "5", "-t", "nat"}, r...)
				if _, err := command(ctx, argv...); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err = write("")
	if err == nil {
		version, err := command(ctx, "iptables", "--version")
		return strings.TrimSpace(string(version)), err
	}
	if lerr := write("-legacy"); lerr != nil {
		return "", errors.Join(err, lerr)
	}
	return fmt.Sprintf("iptables-legacy (iptables itself: %v)", err), nil
}

func (t *traffic) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, p := range t.pods {
		for _, proc := range []*proc{p.haproxy, p.sidecar, p.app} {
			if proc != nil {
				proc.stop()
			}
		}
		for _, dir := range append(p.cgroups, p.cgroup) {
			if dir != "" {
				errs = append(errs, rmcgroup(dir))
			}
		}
		for _, id := range p.ids {
			_, _, err := t.w.runHook("poststop", id, 0, "app")
			errs = append(errs, err)
		}
		errs = append(errs, delNetns(ctx, p.netns, p.dev))
	}
	for _, p := range []*proc{t.nginx, t.upstream} {
		if p != nil {
			p.stop()
		}
	}
	errs = append(errs, t.out.close(ctx))
	return errors.Join(append(errs, t.w.unload(ctx))...)
}
