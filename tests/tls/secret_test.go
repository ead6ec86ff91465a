// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sidegate/tests/lab"
)

// memory returns how often each needle is in what a process can write to.
func memory(t *testing.T, pid int, needles [][]byte) (counts []int) {
	t.Helper()
	counts = make([]int, len(needles))
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	must(t, err)
	defer mem.Close()
	read := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[:2] != "rw" {
			continue
		}
		const piece, overlap = 1 << 20, 64
		buf := make([]byte, piece+overlap)
		for at := from; at < to; at += piece {
			n, _ := mem.ReadAt(buf[:min(piece+overlap, to-at)], at)
			read += n
			for i, needle := range needles {
				counts[i] += bytes.Count(buf[:n], needle)
			}
		}
	}
	if read < 1<<20 {
		t.Fatalf("read %d bytes of process %d", read, pid)
	}
	return counts
}

func TestSecrets(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	pid := world.relay.PID()
	if kb := relayKB(t, "VmLck"); kb == 0 {
		t.Error("no memory is locked")
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	must(t, err)
	if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0") {
		t.Errorf("the relay may dump core: %s", limits)
	}
	w := p.watch(t)
	k := p.keep(ctx, t, "TLSv1_3", `
s.close()
c = ssl.create_default_context(cafile="/site/ca.pem")
import os
if os.path.exists("/tmp/keys"): os.remove("/tmp/keys")
c.keylog_filename = "/tmp/keys"
s = c.wrap_socket(socket.create_connection(("api.example", 443), 60), server_hostname="api.example")
headers = "Authorization: Bearer s3cr3t-authorization\r\nCookie: c=s3cr3t-cookie\r\nX-Shown: shown-value\r\nX-Hidden: s3cr3t-hidden\r\n"
`)
	out, err := run(ctx, p.app, "", "/sidegate/liar", "-derive=/tmp/keys", "1301")
	must(t, err)
	var needles [][]byte
	for field := range strings.FieldsSeq(out) {
		b, err := hex.DecodeString(field)
		must(t, err)
		if len(b) == 16 {
			needles = append(needles, b)
		}
	}
	if len(needles) != 2 {
		t.Fatalf("keys: %q", out)
	}
	if n := memory(t, pid, needles); n[0] == 0 {
		t.Fatal("the app's key is not where the relay needs it: the search finds nothing")
	}
	k.in.Close()
	all := w.ended(2)
	if n := memory(t, pid, needles); n[0] != 0 || n[1] != 0 {
		t.Errorf("after the end the relay has %d copies of the app's key, %d of the server's", n[0], n[1])
	}
	log, err := world.relay.Log()
	must(t, err)
	events, err := os.ReadFile(world.relay.Events)
	must(t, err)
	for name, text := range map[string]string{"log": log, "events": string(events), "status": sidegate(t, "status", "-o", "json")} {
		for _, b := range needles {
			for _, form := range []string{string(b), hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b)[:20]} {
				if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
					t.Errorf("a key is in the %s", name)
				}
			}
		}
		if strings.Contains(text, "s3cr3t") {
			t.Errorf("the %s has what is not to be shown", name)
		}
	}
	r := find(t, all, "the request", func(e *event) bool { return e.HTTP != nil && e.HTTP.Kind == "request" })
	if got := fmt.Sprint(r.HTTP.Headers); got != "[{x-shown shown-value}]" {
		t.Errorf("headers %s", got)
	}
	if st, err := os.Stat(world.relay.Events); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("events: %v, %v", st.Mode(), err)
	}
}

// TestNoCore: a relay that crashes leaves no core, where another process does.
func TestNoCore(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	control := exec.Command("/bin/sh", "-c", "ulimit -c unlimited; kill -ABRT $$")
	control.Dir = t.TempDir()
	if err := control.Run(); err == nil || err.Error() != "signal: aborted (core dumped)" {
		t.Fatalf("no process of this machine leaves a core: %v", err)
	}
	must(t, world.relay.Stop())
	crashing, err := lab.StartRelay(t.TempDir(), filepath.Join(world.bin, "sidegate-tls"), "GOTRACEBACK=crash")
	must(t, err)
	must(t, crashing.Signal(syscall.SIGABRT))
	err = crashing.Wait()
	if err == nil || err.Error() != "signal: aborted" {
		t.Errorf("the relay ended with %v", err)
	}
	must(t, crashing.Stop())
	must(t, world.relay.Start())
	if got := p.python(ctx, t, once, "TLSv1_3", "/v1/after")[0]; got != "hello /v1/after" {
		t.Errorf("after it: %q", got)
	}
}

func TestEvents(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	id, err := world.Podman.Run(ctx, "inspect", "--format", "{{.Id}}", p.app.Name)
	must(t, err)
	w := p.watch(t)
	lines := p.python(ctx, t, talk+`
import os
print(os.readlink("/proc/self"))
s = connect("TLSv1_2")
print(*hellos(say(s, req("/v1/event?q=1", "User-Agent: test\r\n" + "X-Shown: " + "s" * 300 + "\r\n" + close, "PUT"))[0]))
print(*hellos(say(connect("TLSv1_2"), req("/v1/" + "a" * 1000, close))[0]))
`)
	if lines[1] != "hello /v1/event" {
		t.Fatalf("python says %q", lines)
	}
	all := w.ended(2)
	from := all[0].From
	for _, e := range all {
		if e.Pod == "" || e.Container != p.Name+"-app" || e.ContainerID != strings.TrimSpace(string(id)) || e.PID == 0 || e.Process != "python3" ||
			e.From == "" || e.Destination != lab.OutsideV4.String()+":443" || e.NetnsCookie == 0 || e.SNI != "api.example" || e.Time.IsZero() {
			t.Errorf("whose and where to: %+v", e)
		}
	}
	one := func(what string, match func(e *event) bool) event {
		t.Helper()
		return find(t, all, what, func(e *event) bool { return e.From == from && match(e) })
	}
	hs := one("the handshake", func(e *event) bool { return e.Kind == "tls" })
	if hs.Version != "TLS 1.2" || !strings.HasPrefix(hs.Suite, "TLS_ECDHE_ECDSA_WITH_") || !hs.ClientKeys || !hs.ServerKeys {
		t.Errorf("the handshake: %+v", hs)
	}
	r := one("the request", func(e *event) bool { return e.HTTP != nil && e.HTTP.Kind == "request" }).HTTP
	if r == nil {
		return
	}
	if r.Method != "PUT" || r.Host != "api.example" || r.Path != "/v1/event" || !r.Query || !r.Allowed || r.Rule != "api" || r.Protocol != "http/1.1" || !r.Truncated {
		t.Errorf("the request: %+v", r)
	}
	if len(r.Headers) != 2 || r.Headers[0].Name+r.Headers[0].Value != "user-agenttest" && r.Headers[1].Name+r.Headers[1].Value != "user-agenttest" {
		t.Errorf("headers: %+v", r.Headers)
	}
	a := one("the answer", func(e *event) bool { return e.HTTP != nil && e.HTTP.Kind == "response" }).HTTP
	if a != nil && (a.Status != 200 || a.Duration <= 0) {
		t.Errorf("the answer: %+v", a)
	}
	end := one("the end", func(e *event) bool { return e.Kind == "end" })
	if end.ClientBytes == 0 || end.ServerBytes == 0 || end.Duration <= 0 {
		t.Errorf("the end: %+v", end)
	}
	long := find(t, all, "the long request", func(e *event) bool { return e.HTTP != nil && e.HTTP.Kind == "request" && e.From != from }).HTTP
	if long == nil || !long.Truncated || len(long.Path) > 512 {
		t.Errorf("the long request: %+v", long)
	}
}
