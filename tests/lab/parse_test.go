// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseCarried(t *testing.T) {
	log := `2026-01-02T03:04:05.000000000+00:00 stderr F [NOTICE]   (1) : New worker (8) forked
2026-01-02T03:04:05.000000000+00:00 stdout F {"frontend":"outbound4","client":"127.0.0.1","client_port":"45064","dst":"192.0.2.80","dst_port":"80","source":"198.51.100.2","source_port":"38616","server":"192.0.2.80","server_port":"80","bytes":"300","state":"--"}
2026-01-02T03:04:05.000000000+00:00 stdout F {"frontend":"inbound","client":"::ffff:192.0.2.80","client_port":"1","dst":"::1","dst_port":"2","source":"-","source_port":"-","state":"SC"}
2026-01-02T03:04:05.000000000+00:00 stdout F {"frontend":
`
	want := []Carried{
		{"outbound4", netip.MustParseAddrPort("127.0.0.1:45064"), netip.MustParseAddrPort("192.0.2.80:80"), netip.MustParseAddrPort("198.51.100.2:38616"), "--"},
		{"inbound", netip.MustParseAddrPort("192.0.2.80:1"), netip.MustParseAddrPort("[::1]:2"), netip.AddrPort{}, "SC"},
	}
	if got := parseCarried([]byte(log)); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestParseRequest(t *testing.T) {
	got, err := parseRequest([]byte(`{"client":"2001:db8:2::2","client_port":"1","server":"192.0.2.80","server_port":"80","uri":"/page?n","status":"200","bytes":"23"}`))
	want := Request{netip.MustParseAddrPort("[2001:db8:2::2]:1"), netip.MustParseAddrPort("192.0.2.80:80"), "/page?n", "200"}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "{}", `{"client":"1.2.3.4","client_port":"x"}`} {
		if _, err := parseRequest([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParseListeners(t *testing.T) {
	listing := `  sl  local_address                         remote_address                        st tx_queue
   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:3A9A 0100007F:0001 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   2: 00000000000000000000000001000000:3A99 00000000000000000000000000000000:0000 0A 00000000:00000000
`
	want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:15001"), netip.MustParseAddrPort("[::1]:15001")}
	if got, err := parseListeners(listing); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseListeners("0: 01:0001 00000000:0000 0A\n"); err == nil {
		t.Error("a short address is no error")
	}
}

func TestAddressReady(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8:2::2")
	for listing, want := range map[string]bool{
		"20010db8000200000000000000000002 02 40 00 80     eth0\n": true,
		"20010db8000200000000000000000002 02 40 00 c0     eth0\n": false, // tentative
		"20010db8000200000000000000000003 02 40 00 80     eth0\n": false,
		"": false,
	} {
		if got := addressReady(listing, addr); got != want {
			t.Errorf("%q: %t", listing, got)
		}
	}
}

func TestLastResult(t *testing.T) {
	r, err := lastResult([]byte("{\"ok\":true}\n{\"ok\":false,\"err\":\"bind: busy\",\"errno\":\"EADDRINUSE\",\"data\":{\"local\":\"[::ffff:192.0.2.1]:5\"}}\n"))
	if err != nil || r.OK || r.Errno != "EADDRINUSE" || r.Addr("local") != netip.MustParseAddrPort("192.0.2.1:5") || r.Addr("none").IsValid() {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := lastResult([]byte("panic: no\n")); err == nil {
		t.Error("no error")
	}
}

func TestImage(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, []byte("contents"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := &image{}
	i.file("/usr/bin/program", source)
	i.symlink("/usr/bin/alias", "program")
	i.text("/etc/passwd", "root\n")
	i.dir("/tmp", 0o1777)
	var b bytes.Buffer
	if err := i.write(&b); err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(tr)
		got = append(got, strings.Join([]string{h.Name, h.Linkname, string(text)}, "|"))
	}
	want := []string{"usr/||", "usr/bin/||", "usr/bin/program||contents", "usr/bin/alias|program|", "etc/||", "etc/passwd||root\n", "tmp/||"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	i.file("/missing", source+".not")
	if err := i.write(io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing source: %v", err)
	}
}

// A dynamic program of this machine: itself, if it is one, else the shell.
func TestSharedObjects(t *testing.T) {
	program, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Skip(err)
	}
	found, err := sharedObjects(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if needed, err := neededBy(program); err != nil || len(found) < len(needed) {
		t.Errorf("%s needs %q, found %q, %v", program, needed, found, err)
	}
	if _, err := findLibrary("libnothing.so.1", []string{t.TempDir()}); err == nil {
		t.Error("found what is not there")
	}
}

func TestWriteHooks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hooks")
	if err := WriteHooks(dir, "/opt/bin/sidegate-oci-hook", []string{"A=b"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "sidegate-poststop.json"))
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		t.Fatal(err)
	}
	want := `{"version":"1.0.0","hook":{"path":"/opt/bin/sidegate-oci-hook","args":["sidegate-oci-hook","poststop"],"env":["GOMAXPROCS=1","A=b"]},"when":{"always":true},"stages":["poststop"]}`
	if compact.String() != want {
		t.Errorf("got %s", &compact)
	}
}

func TestCRILog(t *testing.T) {
	got, err := criLog([]byte(`{"log":"a \"line\"\n","stream":"stdout","time":"2026-01-02T03:04:05.6Z"}
{"log":"part","stream":"stderr","time":"2026-01-02T03:04:06Z"}
{"log":"unfini`))
	want := "2026-01-02T03:04:05.6Z stdout F a \"line\"\n2026-01-02T03:04:06Z stderr P part\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := criLog([]byte("no\n")); err == nil {
		t.Error("no error")
	}
}

func TestWaitFor(t *testing.T) {
	n := 0
	if err := WaitFor(time.Second, "three", func() (bool, error) { n++; return n == 3, nil }); err != nil || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
	if err := WaitFor(time.Millisecond, "nothing", func() (bool, error) { return false, nil }); err == nil {
		t.Error("no error at the deadline")
	}
	if err := WaitFor(time.Hour, "error", func() (bool, error) { return false, io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestWriteArchive(t *testing.T) {
	i := &image{command: []string{"/program"}}
	i.text("/program", "contents")
	file := filepath.Join(t.TempDir(), "images.tar")
	if err := writeArchive(file, map[string]*image{"localhost/a:latest": i}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parts := map[string][]byte{}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if parts[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := string(parts["manifest.json"]), `[{"Config":"0.json","RepoTags":["localhost/a:latest"],"Layers":["0.tar"]}]`; got != want {
		t.Errorf("manifest %s", got)
	}
	if sum := fmt.Sprintf(`"diff_ids":["sha256:%x"]`, sha256.Sum256(parts["0.tar"])); !strings.Contains(string(parts["0.json"]), sum) {
		t.Errorf("configuration %s has no %s", parts["0.json"], sum)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}
