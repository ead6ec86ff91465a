// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const outsideNetns = "/run/netns/outside"

// Outside is a network namespace with servers, one hop away from the node.
type Outside struct {
	*Sink
	lab   *Lab
	nginx *nginx
}

// newOutside makes the namespace, its link to the node, and its servers.
func newOutside(ctx context.Context, l *Lab) (*Outside, error) {
	o := &Outside{lab: l}
	if err := o.link(); err != nil {
		return nil, errors.Join(err, o.close())
	}
	var err error
	if o.nginx, err = startNginx(l, filepath.Join(l.Dir, "nginx")); err != nil {
		return nil, errors.Join(err, o.close())
	}
	if o.Sink, err = startSink(l, "sink", outsideNetns, "eth0", EchoPort, DNSPort); err == nil {
		err = o.nginx.ready(ctx, o)
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// link makes the namespace and the veth pair. Neighbours are static and no address waits for duplicate detection.
func (o *Outside) link() error {
	const nodeMAC, outsideMAC = "02:53:47:00:00:01", "02:53:47:00:00:80"
	if err := ip(
		"netns add outside",
		"link add out0 address "+nodeMAC+" type veth peer name eth0 address "+outsideMAC+" netns outside",
		"addr add "+NodeV4.String()+"/24 dev out0",
		"addr add "+NodeV6.String()+"/64 dev out0 nodad",
		"link set out0 up",
		"neigh replace "+OutsideV4.String()+" lladdr "+outsideMAC+" nud permanent dev out0",
		"neigh replace "+OutsideV6.String()+" lladdr "+outsideMAC+" nud permanent dev out0",
	); err != nil {
		return err
	}
	if err := inNetns(outsideNetns, func() error {
		for name, value := range map[string]string{
			"net.ipv6.conf.all.accept_dad":     "0",
			"net.ipv6.conf.default.accept_dad": "0",
			"net.ipv6.conf.eth0.accept_dad":    "0",
			// TCP Fast Open for any listener.
			"net.ipv4.tcp_fastopen": "1027",
			// As open as a host can be: it takes packets that choose their way.
			"net.ipv4.conf.all.accept_source_route":  "1",
			"net.ipv4.conf.eth0.accept_source_route": "1",
		} {
			if err := setSysctl(name, value); err != nil {
				return err
			}
		}
		return ip(
			"link set lo up",
			"addr add "+OutsideV4.String()+"/24 dev eth0",
			"addr add "+OutsideV6.String()+"/64 dev eth0 nodad",
			"link set eth0 up",
			"neigh replace "+NodeV4.String()+" lladdr "+nodeMAC+" nud permanent dev eth0",
			"neigh replace "+NodeV6.String()+" lladdr "+nodeMAC+" nud permanent dev eth0",
			"route add "+PodsV4.String()+" via "+NodeV4.String(),
			"route add "+PodsV6.String()+" via "+NodeV6.String(),
		)
	}); err != nil {
		return err
	}
	return nil
}

// close stops the servers and removes the namespace, as far as they exist.
func (o *Outside) close() error {
	var errs []error
	if o.nginx != nil {
		errs = append(errs, o.nginx.daemon.stop())
	}
	if o.Sink != nil {
		errs = append(errs, o.Sink.Close())
	}
	// The link first: a namespace is taken down some time after its name.
	if _, err := net.InterfaceByName("out0"); err == nil {
		errs = append(errs, ip("link del out0"))
	}
	if _, err := os.Stat(outsideNetns); err == nil {
		errs = append(errs, ip("netns del outside"))
	}
	return errors.Join(errs...)
}

// HTTP returns nginx's address in the family of v6.
func (o *Outside) HTTP(v6 bool) netip.AddrPort { return netip.AddrPortFrom(o.Addr(v6), HTTPPort) }

// Echo returns the TCP and UDP echo servers' address in the family of v6.
func (o *Outside) Echo(v6 bool) netip.AddrPort { return netip.AddrPortFrom(o.Addr(v6), EchoPort) }

// DNS returns the address of more echo servers, where a name server would be, in the family of v6.
func (o *Outside) DNS(v6 bool) netip.AddrPort { return netip.AddrPortFrom(o.Addr(v6), DNSPort) }

// Addr returns the outside's address in the family of v6.
func (o *Outside) Addr(v6 bool) netip.Addr {
	if v6 {
		return OutsideV6
	}
	return OutsideV4
}

// StartProbe starts a prober in the outside's namespace that prints several results.
func (o *Outside) StartProbe(ctx context.Context, args ...string) (*Probing, error) {
	return startProbing(o.lab, o.command(ctx, append([]string{o.lab.Prober}, args...)...))
}

// Deaf lets the outside hear nothing of what comes by TCP from a port of addr, until the returned function is called.
func (o *Outside) Deaf(ctx context.Context, addr netip.Addr, port uint16) (hear func() error, err error) {
	rule := func(ctx context.Context, how string) error {
		out, err := o.command(ctx, "iptables", "-w", "5", how, "INPUT", "-s", addr.String(), "-p", "tcp", "--sport", fmt.Sprint(port), "-j", "DROP").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("iptables: %w: %s", err, out)
		}
		return err
	}
	return func() error { return rule(context.WithoutCancel(ctx), "-D") }, rule(ctx, "-I")
}

// command is one in the outside's namespace.
func (o *Outside) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + outsideNetns, "--"}, args...)...)
}

// Requests returns the entries of nginx's access log whose request contains nonce.
func (o *Outside) Requests(nonce string) ([]Request, error) { return o.nginx.requests(nonce) }

// Probe runs the prober in the outside's namespace.
func (o *Outside) Probe(ctx context.Context, args ...string) (Result, error) {
	return probe(ctx, o.lab, o.command(ctx, append([]string{o.lab.Prober}, args...)...))
}

// inNetns runs f on a thread that is in the network namespace at path. What f starts is in there as well.
func inNetns(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	return onOwnThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", path, err)
		}
		return f()
	})
}

// Listen listens in the outside's namespace.
func (o *Outside) Listen(network, address string) (l net.Listener, err error) {
	err = inNetns(outsideNetns, func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}
