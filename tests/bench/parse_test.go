// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseWrk(t *testing.T) {
	const good = `Running 1s test @ http://192.0.2.80:80/keep/64
  1 threads and 50 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.53ms    1.21ms  20.63ms   90.22%
    Req/Sec    20.10k     1.88k   23.41k    72.73%
  21991 requests in 1.10s, 6.23MB read
Requests/sec:  19991.82
Transfer/sec:      5.66MB
`
	a, err := parseWrk([]byte(good))
	if err != nil || a.Done != 21991 || a.Took != 1.1 {
		t.Errorf("answer is %+v, %v", a, err)
	}
	if a, err := parseWrk([]byte(strings.Replace(good, "1.10s", "998.50ms", 1))); err != nil || a.Took != 0.9985 {
		t.Errorf("in milliseconds: %+v, %v", a, err)
	}
	for name, bad := range map[string]string{
		"errors":     good + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
		"not found":  good + "  Non-2xx or 3xx responses: 21991\n",
		"nothing":    "unable to connect to 192.0.2.80:80 Connection refused\n",
		"no request": strings.Replace(good, "21991 requests", "0 requests", 1),
	} {
		if a, err := parseWrk([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestDeviceBytes(t *testing.T) {
	const listing = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1234       10    0    0    0     0          0         0     1234      10    0    0    0     0       0          0
  eth0:99 1    0    0    0     0          0         0     1234      10    0    0    0     0       0          0
`
	for dev, want := range map[string]int64{"lo": 1234, "eth0": 99} {
		if got, err := deviceBytes(listing, dev); err != nil || got != want {
			t.Errorf("%s: %d, %v", dev, got, err)
		}
	}
	if got, err := deviceBytes(listing, "eth"); err == nil {
		t.Errorf("a device that is not there has %d", got)
	}
}

func TestUsedMemory(t *testing.T) {
	const listing = "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 600 kB\nBuffers: 50 kB\nCached: 200 kB\nSReclaimable: 50 kB\nHugePages_Total: 0\n"
	if got, err := usedMemory(listing); err != nil || got != 400*1024 {
		t.Errorf("used are %v, %v", got, err)
	}
	if got, err := usedMemory("MemTotal: 1000 kB\n"); err == nil {
		t.Errorf("used are %v of half a listing", got)
	}
}

func TestParseTarget(t *testing.T) {
	if sa, family, err := parseTarget("192.0.2.80:7000"); err != nil || family != unix.AF_INET ||
		*sa.(*unix.SockaddrInet4) != (unix.SockaddrInet4{Port: 7000, Addr: [4]byte{192, 0, 2, 80}}) {
		t.Errorf("%+v, %d, %v", sa, family, err)
	}
	if sa, family, err := parseTarget(relayUnix); err != nil || family != unix.AF_UNIX || sa.(*unix.SockaddrUnix).Name != relayUnix {
		t.Errorf("%+v, %d, %v", sa, family, err)
	}
	for _, bad := range []string{"", "192.0.2.80", "[::1]:1", "host:1"} {
		if sa, _, err := parseTarget(bad); err == nil {
			t.Errorf("%q is %+v", bad, sa)
		}
	}
}

// What the hook is told of the filter has to be what lets it accelerate.
func TestConfinement(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env, argv, err := confined("/bin/true")
	if err != nil || argv[0] != exe {
		t.Fatalf("command is %q, %v", argv, err)
	}
	cmd := exec.Command(argv[0], "/bin/sh", "-c", "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "NoNewPrivs:\t1\nSeccomp:\t2\n" {
		t.Errorf("a confined program has %q, %v", out, err)
	}
}
