// SPDX-License-Identifier: Apache-2.0

package transparency

import (
	"bufio"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/tests/lab"
	"sidegate/tests/prober/hands"
)

// captureLine is a TCP packet as tcpdump -t -n prints it: IP 127.0.0.1.40000 > 127.0.0.1.15001: Flags [S], ..., length 0
var captureLine = regexp.MustCompile(`^IP6? \S+\.(\d+) > \S+\.(\d+): Flags \[([^]]*)\].* length (\d+)`)

// capture is a tcpdump in a pod.
type capture struct {
	lines chan string
	stop  func()
}

// startCapture starts tcpdump on the pod's loopback device, in a container that Sidegate leaves alone, and waits until it sees packets.
func startCapture(t *testing.T, watcher *lab.Container, port string) *capture {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := watcher.Command(ctx, "/usr/bin/tcpdump", "-Z", "root", "-i", "lo", "-n", "-t", "-l", "--immediate-mode", "tcp port "+port)
	out, err := cmd.StdoutPipe()
	must(t, err)
	errOut, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &capture{lines: make(chan string, 1<<12)}
	c.stop = func() { cancel(); _ = cmd.Wait() }
	for ready := bufio.NewScanner(errOut); ready.Scan(); {
		if strings.HasPrefix(ready.Text(), "listening on ") {
			go func() { // it is never in tcpdump's way
				for ready.Scan() {
				}
			}()
			go func() {
				defer close(c.lines)
				for s := bufio.NewScanner(out); s.Scan(); {
					c.lines <- s.Text()
				}
			}()
			return c
		}
	}
	t.Fatalf("tcpdump does not listen: %v", cmd.Wait())
	return nil
}

// connection reads what a connection's packets say, until both ends have closed it, or one has reset it: what begins and ends it, by end,
// and how many bytes went through TCP.
func (c *capture) connection(t *testing.T, port string) (events []string, bytes int) {
	t.Helper()
	ends := map[string]bool{}
	for len(ends) < 2 {
		line, ok := <-c.lines
		if !ok {
			t.Fatalf("tcpdump ended after %v", events)
		}
		m := captureLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("tcpdump says %q", line)
		}
		end := "server"
		if m[2] == port {
			end = "client"
		}
		n, err := strconv.Atoi(m[4])
		must(t, err)
		bytes += n
		for _, flag := range []string{"S", "F", "R"} {
			if strings.Contains(m[3], flag) {
				events = append(events, end+" "+flag)
			}
		}
		if strings.Contains(m[3], "F") {
			ends[end] = true
		}
		if strings.Contains(m[3], "R") {
			break
		}
	}
	return events, bytes
}

// TestCapture has tcpdump watch connections begin and end: it sees the same packets do so, and bytes on plain ones only.
func TestCapture(t *testing.T) {
	needAcceleration(t)
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	watchers := map[*scene]*lab.Container{}
	for _, s := range []*scene{world.plain, world.fast} {
		var err error
		watchers[s], err = s.pod.Run(ctx, "watcher", lab.AppImage, lab.ContainerOptions{
			Annotations: map[string]string{"sidegate/role": "none", "sidegate/policy": s.name},
			CapAdd:      []string{"NET_RAW", "NET_ADMIN"},
			Args:        []string{"/bin/sleep", "1000"},
			Flags:       containerFlags(),
		})
		must(t, err)
		t.Cleanup(func() { must(t, watchers[s].Remove(context.WithoutCancel(ctx))) })
	}
	const text = "hello"
	for _, ending := range []struct {
		name string
		play func(client, server *end)
	}{
		{"client closes", func(client, server *end) {
			client.close()
			server.recv(1)
			server.close()
		}},
		{"server closes", func(client, server *end) {
			server.close()
			client.recv(1)
			client.close()
		}},
		{"half-close", func(client, server *end) {
			client.shutdown(unix.SHUT_WR)
			server.recv(1)
			server.send(text)
			client.recv(len(text))
			server.close()
			client.recv(1)
			client.close()
		}},
		{"reset", func(client, server *end) {
			client.linger(0)
			client.close()
			server.poll(unix.POLLIN|unix.POLLRDHUP, within)
		}},
	} {
		for _, k := range kinds {
			t.Run(ending.name+"/"+k.name, func(t *testing.T) {
				port := k.on[strings.LastIndexByte(k.on, ':')+1:]
				told := map[*scene]string{}
				for s, watcher := range watchers {
					c := startCapture(t, watcher, port)
					st := &stage{t: t, s: s, kind: k}
					st.open(nil)
					st.a.must(hands.Order{Op: "send", Data: []byte(text)})
					st.b.recv(len(text))
					ending.play(st.a, st.b)
					st.close()
					events, bytes := c.connection(t, port)
					c.stop()
					told[s] = fmt.Sprint(events, "\n", strings.Join(st.told, "\n"))
					if !slices.Equal(events[:min(2, len(events))], []string{"client S", "server S"}) || len(events) < 3 {
						t.Errorf("%s: the packets say %v", s.name, events)
					}
					if s == world.fast && bytes > 0 || s == world.plain && bytes < len(text) {
						t.Errorf("%s: the packets have %d bytes", s.name, bytes)
					}
				}
				if told[world.plain] != told[world.fast] {
					t.Errorf("plain:\n%s\naccelerated:\n%s", told[world.plain], told[world.fast])
				}
				t.Log(told[world.plain])
			})
		}
	}
}
