// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const outsideNetns = "/run/netns/outside"

// Outside is a network namespace with servers, one hop away from the node.
type Outside struct {
	lab   *Lab
	nginx *nginx
	sink  *daemon
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
	if o.sink, err = startDaemon(l.Dir, "sink", "nsenter", "--net="+outsideNetns, "--", l.Prober, "sink",
		"--port", fmt.Sprint(EchoPort), "--dev", "eth0", "--control", o.control()); err != nil {
		return nil, errors.Join(err, o.close())
	}
	err = WaitFor(5*time.Second, "the sink", func() (bool, error) {
		if err := o.sink.alive(); err != nil {
			return false, err
		}
		_, err := os.Stat(o.control())
		return err == nil, nil
	})
	if err == nil {
		err = o.nginx.ready(ctx, o)
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *Outside) control() string { return filepath.Join(o.lab.Dir, "sink.sock") }

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
	if o.sink != nil {
		errs = append(errs, o.sink.stop())
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

// Addr returns the outside's address in the family of v6.
func (o *Outside) Addr(v6 bool) netip.Addr {
	if v6 {
		return OutsideV6
	}
	return OutsideV4
}

// Requests returns the entries of nginx's access log whose request contains nonce.
func (o *Outside) Requests(nonce string) ([]Request, error) { return o.nginx.requests(nonce) }

// Probe runs the prober in the outside's namespace.
func (o *Outside) Probe(ctx context.Context, args ...string) (Result, error) {
	return probe(ctx, o.lab, exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + outsideNetns, "--", o.lab.Prober}, args...)...))
}

// A Sighting is something that the outside saw.
type Sighting struct {
	How   string         `json:"how"`   // "tcp" for a connection that the echo server accepted, "packet" for a packet on the wire
	Proto int            `json:"proto"` // IP protocol
	Src   netip.AddrPort `json:"-"`     // port 0 for packets
	MPTCP bool           `json:"mptcp"`
}

// Seen returns what carried nonce to the outside: packets that start something, and connections to the TCP echo server.
func (o *Outside) Seen(nonce string) ([]Sighting, error) {
	var raw []struct {
		Sighting
		Src string `json:"src"`
	}
	if err := o.ask("find "+nonce, &raw); err != nil {
		return nil, err
	}
	seen := make([]Sighting, 0, len(raw))
	for _, r := range raw {
		s := r.Sighting
		if ap, err := netip.ParseAddrPort(r.Src); err == nil {
			s.Src = ap
		} else if addr, err := netip.ParseAddr(r.Src); err == nil {
			s.Src = netip.AddrPortFrom(addr, 0)
		} else {
			return nil, fmt.Errorf("sink: source %q", r.Src)
		}
		seen = append(seen, s)
	}
	return seen, nil
}

// Counts returns how many things of each kind reached the outside, by "source address/IP protocol".
func (o *Outside) Counts() (map[string]int, error) {
	counts := map[string]int{}
	return counts, o.ask("counts", &counts)
}

// ask sends one request to the sink.
func (o *Outside) ask(request string, answer any) error {
	c, err := net.DialTimeout("unix", o.control(), 2*time.Second)
	if err != nil {
		return errors.Join(fmt.Errorf("sink: %w", err), o.sink.alive())
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(c, request); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	if err := json.NewDecoder(bufio.NewReader(c)).Decode(answer); err != nil {
		return fmt.Errorf("sink: answer to %q: %w", strings.Fields(request)[0], err)
	}
	return nil
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
