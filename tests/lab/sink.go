// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Sink is a recorder of what comes to a device, with TCP and UDP echo servers in its namespace.
type Sink struct {
	daemon  *daemon
	control string
}

// NewSink starts one on a device of the node. The caller owns it.
func (l *Lab) NewSink(dev string) (*Sink, error) {
	return startSink(l, "sink-"+dev, nodeNetns, dev, EchoPort)
}

func startSink(l *Lab, name, netns, dev string, ports ...uint16) (*Sink, error) {
	s := &Sink{control: filepath.Join(l.Dir, name+".sock")}
	var list []string
	for _, port := range ports {
		list = append(list, fmt.Sprint(port))
	}
	// One of the same name may have been there before.
	err := os.Remove(s.control)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if s.daemon, err = startDaemon(l.Dir, name, "nsenter", "--net="+netns, "--", l.Prober, "sink",
		"--port", strings.Join(list, ","), "--dev", dev, "--control", s.control); err != nil {
		return nil, err
	}
	err = WaitFor(Patience, "the "+name, func() (bool, error) {
		if err := s.daemon.alive(); err != nil {
			return false, err
		}
		_, err := os.Stat(s.control)
		return err == nil, nil
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends it.
func (s *Sink) Close() error { return s.daemon.stop() }

// A Sighting is something that a sink saw.
type Sighting struct {
	How   string         `json:"how"`   // "tcp" for a connection that the echo server accepted, "packet" for a packet on the wire
	Proto int            `json:"proto"` // IP protocol
	Src   netip.AddrPort `json:"-"`     // port 0 for packets
	MPTCP bool           `json:"mptcp"`
}

// Seen returns what carried nonce there: packets that start something, and connections to the TCP echo server.
func (s *Sink) Seen(nonce string) ([]Sighting, error) {
	var raw []struct {
		Sighting
		Src string `json:"src"`
	}
	if err := s.ask("find "+nonce, &raw); err != nil {
		return nil, err
	}
	seen := make([]Sighting, 0, len(raw))
	for _, r := range raw {
		one := r.Sighting
		if ap, err := netip.ParseAddrPort(r.Src); err == nil {
			one.Src = ap
		} else if addr, err := netip.ParseAddr(r.Src); err == nil {
			one.Src = netip.AddrPortFrom(addr, 0)
		} else {
			return nil, fmt.Errorf("sink: source %q", r.Src)
		}
		seen = append(seen, one)
	}
	return seen, nil
}

// Counts returns how many things of each kind reached the sink, by "source address/IP protocol".
func (s *Sink) Counts() (map[string]int, error) {
	counts := map[string]int{}
	return counts, s.ask("counts", &counts)
}

// ask sends one request to the sink.
func (s *Sink) ask(request string, answer any) error {
	c, err := net.DialTimeout("unix", s.control, Patience)
	if err != nil {
		return errors.Join(fmt.Errorf("sink: %w", err), s.daemon.alive())
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(Patience))
	if _, err := fmt.Fprintln(c, request); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	if err := json.NewDecoder(bufio.NewReader(c)).Decode(answer); err != nil {
		return fmt.Errorf("sink: answer to %q: %w", strings.Fields(request)[0], err)
	}
	return nil
}
