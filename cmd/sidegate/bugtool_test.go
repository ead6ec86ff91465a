// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// A plant is a secret, and beside it a word that has to be in the archive, so that the
// source is known to be read.
type plant struct {
	where, secret, marker string
	source                func() string // as it is on the machine
}

// unpack returns an archive's files by name below its directory.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	must(t, err)
	files := map[string]string{}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		dir, name, ok := strings.Cut(h.Name, "/")
		if !ok || !strings.HasPrefix(dir, "sidegate-bugtool-2") || h.Mode != 0o600 || h.Uname != "" {
			t.Errorf("%s is %+v", h.Name, h)
		}
		files[name] = string(b)
	}
}

// gunzip returns all bytes of an archive.
func gunzip(t *testing.T, archive []byte) string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	must(t, err)
	b, err := io.ReadAll(z)
	must(t, err)
	return string(b)
}

// forms are how a secret may look in something.
func forms(secret string) []string {
	all := []string{secret, hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for before := range 3 { // bytes in front of it
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString([]byte("xxx"[:before] + secret))
			all = append(all, text[(before*8+5)/6:len(text)-1])
		}
	}
	var numbers []string
	for _, b := range []byte(secret) {
		numbers = append(numbers, strconv.Itoa(int(b)))
	}
	return append(all, strings.Join(numbers, ","), strings.Join(numbers, " "), strings.Join(numbers, ",\n"))
}

func (p plant) check(t *testing.T, all string) {
	t.Helper()
	source := p.source()
	if !strings.Contains(source, p.secret) {
		t.Errorf("%s: the secret is not in %q: nothing is tested", p.where, source)
	}
	if p.marker != "" && !strings.Contains(source, p.marker) {
		t.Errorf("%s: the marker is not in %q", p.where, source)
	}
	if p.marker != "" && !strings.Contains(all, p.marker) {
		t.Errorf("%s: the marker %s is not in the archive", p.where, p.marker)
	}
	for _, f := range forms(p.secret) {
		if i := strings.Index(all, f); i >= 0 {
			t.Errorf("%s: the secret is in the archive: ...%q", p.where, all[max(0, i-200):i+len(f)])
		}
	}
}

// script puts a program into the PATH of this test.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755))
}

func contents(path string) func() string {
	return func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
}

const secretPolicy = `# %[1]s, and the password for the old one was %[2]s
# curl -H 'Authorization: Bearer %[3]s' http://admin:%[4]s@mesh.example/
apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: web}
spec:
  nonTCP: deny
  rules:
  - role: app
    egress: [{to: [{role: sidecar}], ports: [8000]}]
    unix:
      allow:
      - {path: "/run/%[5]s.sock", type: stream}
      - {path: "/run/token=%[6]s", type: stream}
`

// TestBugtoolHasNoSecrets: nothing of what is planted in each source is in the archive,
// and what is beside it is.
func TestBugtoolHasNoSecrets(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	const key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANsecretpem0000000000\n-----END PRIVATE KEY-----\n"
	var plants []plant
	add := func(where, secret, marker string, source func() string) {
		plants = append(plants, plant{where, secret, marker, source})
	}

	w.write("web.yaml", fmt.Sprintf(secretPolicy, "markpolicycomment", "secretcomment1", "secretbearer1", "secretuserinfo1", "markunixpath", "secretunixpath1"))
	for _, s := range []string{"secretcomment1", "secretbearer1", "secretuserinfo1"} {
		add("comment of a policy", s, "markpolicycomment", contents(filepath.Join(w.dir, "web.yaml")))
	}
	add("value of a policy", "secretunixpath1", "markunixpath", contents(filepath.Join(w.dir, "web.yaml")))
	w.args = []string{"secretargument3", "--password", "secretargument1", "--token=secretargument2"}
	w.env = []string{"DB_PASSWORD=secretenvironment1", "HARMLESS=secretenvironment2"}
	app := w.start("markpod apikey=secretpodname1", "markcontainer", policy.RoleApp, "web")
	proc := func(name string) func() string { return contents(fmt.Sprintf("/proc/%d/%s", app.pid, name)) }
	add("command line", "secretargument1", "", proc("cmdline"))
	add("command line", "secretargument2", "", proc("cmdline"))
	add("command line that looks harmless", "secretargument3", "", proc("cmdline"))
	add("environment", "secretenvironment1", "", proc("environ"))
	add("environment that looks harmless", "secretenvironment2", "", proc("environ"))
	add("name of a pod", "secretpodname1", "markpod", func() string {
		list, err := cgroups.ReadRegistered(w.state)
		must(t, err)
		return fmt.Sprint(list)
	})
	// One that nothing can parse, later than the start of what is under the other.
	w.write("broken.yaml", "kind: [markbroken\nsecret: |\n  secretbroken1\n"+key)
	add("policy with a mistake", "secretbroken1", "markbroken", contents(filepath.Join(w.dir, "broken.yaml")))
	add("PEM in a policy", "secretpem0000000000", "markbroken", contents(filepath.Join(w.dir, "broken.yaml")))

	add("traffic keys of TLS", "secrettrafficke", `"entries": -1`, func() string { return plantTLSKey(t, w.state, "secrettrafficke") + `"entries": -1` })

	s := sources{hooks: []string{filepath.Join(dir, "hooks.d")}}
	hook := file("hooks.d/a.json", `{"version":"1.0.0","hook":{"path":"/usr/bin/markhook","args":["x","secrethookarg"],"env":["X=secrethookenv"]},"when":{"always":true},"stages":["prestart"]}`)
	add("arguments of a hook", "secrethookarg", "markhook", contents(hook))
	add("environment of a hook", "secrethookenv", "markhook", contents(hook))
	s.config = file("daemon.json", `{"runtimes":{"markdocker":{"path":"/bin/x","runtimeArgs":["secretruntimearg"]}},
"auths":{"r.example":{"auth":"dXNlcjpzZWNyZXRkb2NrZXJhdXRo"}},"proxies":{"http-proxy":"http://user:secretproxy1@proxy.example:3128"}}`)
	for _, secret := range []string{"secretruntimearg", "dXNlcjpzZWNyZXRkb2NrZXJhdXRo", "secretproxy1"} {
		add("daemon.json", secret, "markdocker", contents(s.config))
	}
	s.containerd = file("config.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"markcontainerd\"\n"+
		"[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r.example\".auth]\nusername = \"secretuser1\"\npassword = \"secretpassword1\"\n")
	add("containerd's configuration", "secretuser1", "markcontainerd", contents(s.containerd))
	add("containerd's configuration", "secretpassword1", "markcontainerd", contents(s.containerd))
	s.podman = []string{file("containers.conf", "[containers]\nenv = [\"X=secretpodmanenv\"]\n[engine]\nruntime = \"markpodman\"\n")}
	add("containers.conf", "secretpodmanenv", "markpodman", contents(s.podman[0]))
	s.nriConfig = []string{file("nri.yaml", "hook: /usr/bin/marknri\nunknown: secretnriconf\n")}
	add("configuration of the plugin", "secretnriconf", "marknri", contents(s.nriConfig[0]))

	// Here is no journal: a program of its name says what one would.
	bin := filepath.Join(dir, "bin")
	journal := file("journal", "2026-11-30T10:00:00+0000 sidegate-nri[7]: markjournal\n"+
		`2026-11-30T10:00:00+0000 sidegate-nri[7]: {"level":"error","msg":"pull","authorization":"Basic secretbasicauth"}`+"\n"+
		"2026-11-30T10:00:00+0000 sidegate-nri[7]: Cookie: sid=secretcookie1; b=secretcookie2\n"+
		"2026-11-30T10:00:00+0000 sidegate-nri[7]: token eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.secretjwtsignature\n"+
		"2026-11-30T10:00:00+0000 sidegate-nri[7]: key AKIASECRETSECRETSECR and markjournalend\n")
	must(t, os.MkdirAll(bin, 0o755))
	script(t, bin, "journalctl", "exec cat '"+journal+"'\n")
	for _, secret := range []string{"secretbasicauth", "secretcookie1", "secretcookie2", "secretjwtsignature", "AKIASECRETSECRETSECR"} {
		add("journal", secret, "markjournal", contents(journal))
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	s.docker = filepath.Join(dir, "docker.sock")
	const list = `[{"Id":"a","Names":["/markdockercontainer"],"Command":"x secretdockercommand","Labels":{"sidegate/role":"app","sidegate/policy":"password=secretdockerlabel1","db":"secretdockerlabel2"}}]`
	serveDocker(t, s.docker, list)
	for _, secret := range []string{"secretdockercommand", "secretdockerlabel1", "secretdockerlabel2"} {
		add("containers of Docker", secret, "markdockercontainer", func() string { return list })
	}
	if source := podmanContainer(t, "marklabel"+strconv.Itoa(os.Getpid()), "secretlabel1"); source != nil {
		add("label of a container of podman", "secretlabel1", "marklabel"+strconv.Itoa(os.Getpid()), source)
	}

	var out, errs bytes.Buffer
	code := run(env{stdout: &out, stderr: &errs, args: []string{"bugtool", "-o", "-", "--timeout", "60s"}, state: w.state, policyDir: w.dir, sources: s})
	if code != 0 || errs.Len() > 0 {
		t.Fatalf("%d, %s", code, errs.String())
	}
	all := gunzip(t, out.Bytes())
	for _, p := range plants {
		p.check(t, all)
	}
	files := unpack(t, out.Bytes())
	for _, name := range []string{
		"README", "errors.txt", "version.txt", "doctor.json", "status.json", "pins.json", "maps/containers.json", "maps/container_info.json",
		"policies/web.yaml", "policies/broken.yaml", "kernel.txt", "kernel-config.txt", "runtimes.txt", "config/hooks.json", "journal.txt",
	} {
		if files[name] == "" {
			t.Errorf("%s is not in the archive, or empty; errors: %s", name, files["errors.txt"])
		}
	}
	for name := range files {
		if cgroups.LeftOut()[strings.TrimSuffix(strings.TrimPrefix(name, "maps/"), ".json")] != "" {
			t.Errorf("%s is in the archive", name)
		}
	}
	if host, err := os.Hostname(); err != nil || len(host) > 6 && strings.Contains(all, host) {
		t.Errorf("the name of the machine is in the archive: %q, %v", host, err)
	}
	if pod := files[fmt.Sprintf("pods/netns-%d.txt", w.ns.Ino)]; !strings.Contains(pod, fmt.Sprintf("process %d: ", app.pid)) || !strings.Contains(pod, "tcp sockets") {
		t.Errorf("the pod is %q", pod)
	}
}

// plantTLSKey puts a key into a pod's ring, as the kernel does, and returns what is there.
func plantTLSKey(t *testing.T, state, key string) string {
	t.Helper()
	rings, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(state), "maps", "tls_rings"), nil)
	must(t, err)
	defer rings.Close()
	ring, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "sg_tls_ring", Type: ebpf.Array, Flags: unix.BPF_F_MMAPABLE, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(bpf.TLSRing{})), MaxEntries: 1,
	})
	must(t, err)
	defer ring.Close()
	var value bpf.TLSRing
	value.Slots[0].State, value.Slots[0].Len = 2, uint8(copy(value.Slots[0].Info[:], key))
	must(t, ring.Put(uint32(0), &value))
	must(t, rings.Put(uint64(4711), ring))
	var id uint32
	must(t, rings.Lookup(uint64(4711), &id))
	there, err := ebpf.NewMapFromID(ebpf.MapID(id))
	must(t, err)
	defer there.Close()
	var got bpf.TLSRing
	must(t, there.Lookup(uint32(0), &got))
	return string(got.Slots[0].Info[:])
}

func serveDocker(t *testing.T, socket, list string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/containers/json", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, list) })
	mux.HandleFunc("/plugins", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") })
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { must(t, srv.Close()) })
}

// podmanContainer makes one that never runs, with labels, or returns nil without podman.
func podmanContainer(t *testing.T, name, secret string) (source func() string) {
	t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		t.Log("no podman: no label of a container of its is looked for")
		return nil
	}
	podman := func(args ...string) string {
		out, err := exec.Command("podman", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("podman %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	podman("create", "--rootfs", "--name", name, "--label", "sidegate/role=app", "--label", "db.conf="+secret, "--label", "sidegate/pod=token="+secret,
		"--env", "X="+secret, t.TempDir(), "/bin/true", secret)
	t.Cleanup(func() { podman("rm", name) })
	return func() string { return podman("ps", "--all", "--format", "json") }
}

func TestBugtoolOutput(t *testing.T) {
	state := newState(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir) // no runtime is there
	target := filepath.Join(dir, "target")
	must(t, os.WriteFile(target, []byte("precious"), 0o644))
	must(t, os.Symlink(target, filepath.Join(dir, "link")))
	must(t, os.Symlink(filepath.Join(dir, "nobody"), filepath.Join(dir, "dangling")))
	for _, name := range []string{"target", "link", "dangling", "none/x"} {
		stdout, stderr, code := call(state, "bugtool", "-o", filepath.Join(dir, name))
		if code != cli.ExitFailed || stdout != "" || !strings.Contains(stderr, "archive") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: %d, %q, %q", name, code, stdout, stderr)
		}
	}
	// Nobody is followed who comes while it is written either.
	for _, name := range []string{target, filepath.Join(dir, "nobody")} {
		late := filepath.Join(dir, "late")
		_, err := writeNew(late, func(w io.Writer) (string, error) {
			_, err := io.WriteString(w, "archive")
			return "", errors.Join(err, os.Symlink(name, late))
		})
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("a link to %s that comes late: %v", name, err)
		}
		must(t, os.Remove(late))
	}
	if _, err := writeNew(filepath.Join(dir, "half"), func(w io.Writer) (string, error) {
		_, err := io.WriteString(w, "half")
		return "", errors.Join(err, errors.New("broken"))
	}); err == nil || err.Error() != "broken" {
		t.Errorf("half an archive: %v", err)
	}
	path := filepath.Join(dir, "new.tar.gz")
	if stdout, stderr, code := call(state, "bugtool", "-o", path); code != 0 || !strings.HasPrefix(stdout, path+": ") || stderr != "" {
		t.Errorf("a new file: %d, %q, %q", code, stdout, stderr)
	}
	st, err := os.Lstat(path)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	files := unpack(t, b)
	if st.Mode() != 0o600 || !strings.Contains(files["status.json"], `"loaded": false`) || !strings.Contains(files["runtimes.txt"], "podman: not installed") {
		t.Errorf("mode %s, status %s, runtimes %s", st.Mode(), files["status.json"], files["runtimes.txt"])
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if b, err := os.ReadFile(target); err != nil || string(b) != "precious" || len(entries) != 4 {
		t.Errorf("target is %q, %v, and there are %v", b, err, entries)
	}
}

// TestBugtoolBroken: what hangs is ended, what waits for ever is left behind, and all
// else is there.
func TestBugtoolBroken(t *testing.T) {
	w := newWorld(t)
	w.write("web.yaml", named("web", "  nonTCP: deny\n"))
	w.start("shop", "app", policy.RoleApp, "web")
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	script(t, dir, "podman", "/bin/sleep 1000 &\necho $$ $! >'"+pids+"'\nwait\n")
	script(t, dir, "systemctl", "echo markstderr >&2\nexit 3\n")
	script(t, dir, "journalctl", "exec /bin/yes 2026-11-30T10:00:00+0000 a line of a journal, which is about as long as most lines are\n")
	t.Setenv("PATH", dir)
	lock, err := os.Open(w.state)
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	defer func(most int) { maxCommand = most }(maxCommand)
	maxCommand = 64 << 10
	var out bytes.Buffer
	begin := time.Now()
	fifo := filepath.Join(w.dir, "fifo.yaml")
	must(t, unix.Mkfifo(fifo, 0o600))
	code := run(env{stdout: &out, stderr: &out, args: []string{"bugtool", "-o", "-", "--timeout", "24s"}, state: w.state, policyDir: w.dir})
	took := time.Since(begin)
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	if code != 0 {
		t.Fatalf("exit code %d after %s: %s", code, took, out.String())
	}
	files := unpack(t, out.Bytes())
	for _, want := range []string{"podman: ", "deadline", "status: ", "does not end", "markstderr", "exit status 3", "fifo.yaml: no regular file", "journal: run journalctl: cut off"} {
		if !strings.Contains(files["errors.txt"], want) {
			t.Errorf("nothing of %q in errors.txt: %s", want, files["errors.txt"])
		}
	}
	for _, name := range []string{"pins.json", "maps/pods.json", "policies/web.yaml", "kernel.txt"} {
		if files[name] == "" {
			t.Errorf("%s is not there", name)
		}
	}
	if n := len(files["journal.txt"]); n > maxCommand+100 || !strings.HasSuffix(files["journal.txt"], "[cut off]\n") {
		t.Errorf("the journal has %d bytes", n)
	}
	b, err := os.ReadFile(pids)
	must(t, err)
	for _, word := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(word)
		must(t, err)
		if !ended(pid) {
			t.Errorf("process %d of what hung is still there", pid)
		}
	}
}

// ended tells whether a process ends soon. A zombie has.
func ended(pid int) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return true
		}
	}
	return false
}

func TestCollectorsThatFail(t *testing.T) {
	b := newBundle()
	collect(context.Background(), time.Minute, b, [][]collector{
		{
			{"panics", func(context.Context, *bundle) error { panic("token=secretpanic") }},
			{"fails", func(context.Context, *bundle) error { return errors.New("password: secreterror") }},
			{"huge", func(_ context.Context, b *bundle) error {
				b.text("huge.txt", strings.Repeat("x y\n", maxFile))
				return nil
			}},
			{"works", func(_ context.Context, b *bundle) error {
				b.text("name/password=secretname", "kept")
				return nil
			}},
		},
	})
	files, errs := b.close()
	text := strings.Join(errs, "\n")
	if len(files) != 1 || strings.Contains(fmt.Sprint(files, text), "secret") {
		t.Errorf("files are %v, errors %s", files, text)
	}
	for _, want := range []string{"panics: panic: token=", "fails: password: ", "huge.txt: left out"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing of %q in %s", want, text)
		}
	}
	b.text("late", "x")
	b.fail("late", errors.New("x"))
	if len(b.files) != 1 || len(b.errs) != len(errs) {
		t.Error("what is late is in it")
	}
}

func TestBugtoolUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		must(t, syscall.Seteuid(65534))
		defer func() { must(t, syscall.Seteuid(0)) }()
	}
	stdout, stderr, code := call("/sys/fs/bpf/sidegate", "bugtool", "-o", "-")
	if code != cli.ExitFailed || stdout != "" || !strings.Contains(stderr, "run `sudo sidegate bugtool`") {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
}

func TestProcAddr(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"0100007F":                              "?",
		"xx:1":                                  "?",
	} {
		if got := procAddr(in); got != want { // of a machine whose order is little-endian, as the object is
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}
