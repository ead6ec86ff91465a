// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sidegate/tests/lab"
)

const (
	outsideIP = "192.0.2.80"
	httpPort  = 80
	echoPort  = 7  // UDP: comes back
	sinkPort  = 9  // TCP and UDP: is read or dropped
	callPort  = 13 // TCP: is closed at once
)

// An outside is where the pods' traffic goes and comes from: a network namespace behind the node, and an agent in it.
type outside struct {
	w      *world
	netns  string
	cgroup string
	agent  *proc
}

func newOutside(ctx context.Context, w *world) (*outside, error) {
	o := &outside{w: w, netns: "/run/netns/outside"}
	if err := o.make(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("outside: %w", err), o.close(ctx))
	}
	return o, nil
}

func (o *outside) make(ctx context.Context) (err error) {
	if err := ip(ctx, "", "netns add outside", "link add out0 type veth peer name eth0 netns outside", "addr add 192.0.2.1/24 dev out0", "link set out0 up"); err != nil {
		return err
	}
	if err := ip(ctx, o.netns, "link set lo up", "addr add "+outsideIP+"/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.1"); err != nil {
		return err
	}
	if err := sysctls(ctx, o.netns); err != nil {
		return err
	}
	if o.cgroup, err = o.w.mkcgroup("outside"); err != nil {
		return err
	}
	if o.agent, err = o.w.agent(o.cgroup, o.netns, 0); err != nil {
		return err
	}
	_, err = o.agent.do(order{Op: "serve", Addr: at(outsideIP, sinkPort)})
	return err
}

// close waits for the end of whatever else was started in the outside's cgroup.
func (o *outside) close(ctx context.Context) error {
	var errs []error
	if o.agent != nil {
		o.agent.stop()
	}
	if o.cgroup != "" {
		errs = append(errs, lab.WaitFor(5*time.Second, "the outside's end", func() (bool, error) {
			b, err := os.ReadFile(filepath.Join(o.cgroup, "cgroup.procs"))
			return len(b) == 0, err
		}), rmcgroup(o.cgroup))
	}
	return errors.Join(append(errs, delNetns(ctx, o.netns, "out0"))...)
}

// podNet makes the network namespace of pod n:
//
//	outside 192.0.2.80 ---- 192.0.2.1 node 198.51.100.(4n+1) ---- 198.51.100.(4n+2) pod n
func podNet(ctx context.Context, n int) (netns, addr string, err error) {
	name, dev := "pod"+strconv.Itoa(n), podDev(n)
	netns = "/run/netns/" + name
	host, own := fmt.Sprintf("198.51.100.%d", 4*n+1), fmt.Sprintf("198.51.100.%d", 4*n+2)
	if err := ip(ctx, "", "netns add "+name, "link add "+dev+" type veth peer name eth0 netns "+name, "addr add "+host+"/30 dev "+dev, "link set "+dev+" up"); err != nil {
		return netns, own, err
	}
	return netns, own, ip(ctx, netns, "link set lo up", "addr add "+own+"/30 dev eth0", "link set eth0 up", "route add default via "+host)
}

// podDev is the node's end of pod n's pair.
func podDev(n int) string { return "veth" + strconv.Itoa(n) }

// delNetns removes a named network namespace, if there is one, and at once the pair that dev is an end of: the namespace itself goes
// away some time later.
func delNetns(ctx context.Context, netns, dev string) error {
	if _, err := os.Stat(netns); err != nil {
		return nil //nolint:nilerr // there is none
	}
	return ip(ctx, "", "link del "+dev, "netns del "+filepath.Base(netns))
}

// sysctls lets a namespace take many short connections.
func sysctls(ctx context.Context, netns string) error {
	_, err := command(ctx, "nsenter", "--net="+netns, "--", "/bin/busybox", "sysctl", "-q", "-w",
		"net.ipv4.ip_local_port_range=20000 65000", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=4096")
	return err
}

// at gives an address and a port as an order has them.
func at(ip string, port int) string { return ip + ":" + strconv.Itoa(port) }
