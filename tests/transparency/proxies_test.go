// SPDX-License-Identifier: Apache-2.0

package transparency

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/cgroups"
	"sidegate/tests/lab"
	"sidegate/tests/prober/hands"
)

// What the sidecars are configured with. Each goes from its port to portServer, or, for TLS, is gone through by the app itself.
const (
	haproxyConfig = `global
    maxconn 400
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen proxy
    bind 127.0.0.1:%[1]d
    bind [::1]:%[1]d
    server app 127.0.0.1:%[2]d
listen tls
    bind 127.0.0.1:%[3]d
    server app 127.0.0.1:%[4]d
`
	nginxConfig = `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
worker_processes 2;
pid /tmp/nginx.pid;
error_log stderr;
events { worker_connections 512; }
stream {
    server {
        listen 127.0.0.1:%[1]d;
        listen [::1]:%[1]d;
        proxy_pass 127.0.0.1:%[2]d;
        proxy_timeout 60s;
        proxy_half_close on;
    }
}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000;
    server {
        listen 127.0.0.1:%[3]d;
        root /shared/www;
    }
}
`
	pythonProxy = `import asyncio, sys

async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()

# A loop refers weakly to its tasks, and a stream to its reader: Python 3.11 may collect both while they wait.
kept = set()

async def proxy(reader, writer):
    task = asyncio.current_task()
    kept.add(task)
    task.add_done_callback(kept.discard)
    r, w = await asyncio.open_connection('127.0.0.1', int(sys.argv[2]))
    await asyncio.gather(carry(reader, w), carry(r, writer))
    for x in w, writer:
        x.close()

async def main():
    server = await asyncio.start_server(proxy, '127.0.0.1', int(sys.argv[1]))
    async with server:
        await server.serve_forever()

asyncio.run(main())
`
	portProxyTLS = portLast // by HAProxy, to portTLS
	bulk         = 64 << 20
)

// writeShared fills the directory that all containers have.
func writeShared() error {
	www := filepath.Join(world.shared, "www")
	if err := os.MkdirAll(www, 0o755); err != nil {
		return err
	}
	cert, err := certificate()
	if err != nil {
		return err
	}
	big := make([]byte, bulk)
	hands.Fill(big, 0, 0)
	var errs []error
	for name, b := range map[string][]byte{
		"haproxy.cfg": fmt.Appendf(nil, haproxyConfig, portHAProxy, portServer, portProxyTLS, portTLS),
		"nginx.conf":  fmt.Appendf(nil, nginxConfig, portStream, portServer, portHTTP),
		"proxy.py":    []byte(pythonProxy),
		"cert.pem":    cert,
		"group":       []byte("root:x:0:\n"), // nginx looks for it
		"www/page":    []byte("a small page\n"),
		"www/big":     big,
	} {
		errs = append(errs, os.WriteFile(filepath.Join(world.shared, name), b, 0o644))
	}
	return errors.Join(errs...)
}

// certificate makes one for openssl, with its key.
func certificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...), nil
}

// startPrograms starts what the sidecar and the app run, and waits until all listen.
func (s *scene) startPrograms(ctx context.Context) error {
	type program struct {
		in   *lab.Container
		argv []string
	}
	server := fmt.Sprintf("127.0.0.1:%d", portServer)
	for _, p := range []program{
		{s.sidecar, []string{"/bin/prober", "relay", "--on", fmt.Sprintf("127.0.0.1:%d", portRelay), "--to", server}},
		{s.sidecar, []string{"/usr/sbin/haproxy", "-db", "-f", shared + "/haproxy.cfg"}},
		{s.sidecar, []string{"/usr/sbin/nginx", "-p", "/tmp/", "-c", shared + "/nginx.conf", "-e", "stderr"}},
		{s.sidecar, []string{"/usr/bin/python3", "-I", shared + "/proxy.py", fmt.Sprint(portPython), fmt.Sprint(portServer)}},
		{s.sidecar, []string{"/usr/bin/iperf3", "-s", "-B", "127.0.0.1", "-p", fmt.Sprint(portIperf)}},
		{s.app, []string{"/bin/env", "OPENSSL_CONF=/dev/null", "/bin/sh", "-c",
			fmt.Sprintf("cd %s/www && exec /usr/bin/openssl s_server -quiet -WWW -accept 127.0.0.1:%d -cert ../cert.pem", shared, portTLS)}},
	} {
		cmd := p.in.Command(context.Background(), p.argv...) // ends with the lab
		out, err := os.Create(filepath.Join(world.Dir, s.name+"-"+filepath.Base(p.argv[0])+".log"))
		if err != nil {
			return err
		}
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }()
	}
	if a := order(s.inApp, hands.Order{Op: "serve", Addr: fmt.Sprintf(":%d", portServer)}); a.Err != "" {
		return errors.New(a.Err)
	}
	err := s.app.WaitListening(ctx, portRelay, portHAProxy, portStream, portHTTP, portPython, portIperf, portProxyTLS, portTLS, portServer)
	if err == nil {
		return nil
	}
	logs, _ := filepath.Glob(filepath.Join(world.Dir, s.name+"-*.log"))
	for _, l := range logs {
		b, _ := os.ReadFile(l)
		err = fmt.Errorf("%w\n%s: %s", err, filepath.Base(l), b)
	}
	return err
}

// programs starts those of both scenes, once.
var programs = sync.OnceValue(func() error {
	return errors.Join(world.plain.startPrograms(context.Background()), world.fast.startPrograms(context.Background()))
})

// order gives an order outside of tests.
func order(w *worker, o hands.Order) hands.Answer {
	select {
	case a := <-w.start(o):
		return a
	case <-time.After(hands.Patience):
		return hands.Answer{Err: "no answer"}
	}
}

// A trial is what a client in the app does by way of a sidecar.
type trial struct {
	name string
	play func(t *testing.T, s *scene) string
}

// talks are those that any proxy has to carry, of at most so many bytes.
func talks(port, most int) []trial {
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	talk := func(name string, o hands.Order) trial {
		o.Op, o.Addr = "talk", addr
		if o.Size > most || strings.HasPrefix(o.Mode, "send") && most < bulk {
			return trial{name, func(t *testing.T, s *scene) string {
				if slices.Contains(world.known, "FIONREAD after TCP") {
					t.Skip("kernel: nginx takes what FIONREAD says for the end of what there is")
				}
				return s.inApp.do(t, o).Told()
			}}
		}
		return trial{name, func(t *testing.T, s *scene) string { return s.inApp.do(t, o).Told() }}
	}
	all := []trial{
		talk("64 MiB up", hands.Order{Mode: "sum 0", Size: bulk}),
		talk("64 MiB down", hands.Order{Mode: fmt.Sprintf("send %d", bulk)}),
		talk("64 MiB down, half-closed late", hands.Order{Mode: fmt.Sprintf("send %d", bulk), Flags: 1}),
		talk("echo of 16 MiB", hands.Order{Mode: "echo", Size: 16 << 20}),
		talk("small writes", hands.Order{Mode: "echo", Size: 50_000, Chunk: 11}),
		talk("slow reader", hands.Order{Mode: "sum 1ms", Size: 6 << 20}),
		{"reset", func(t *testing.T, s *scene) string {
			a := s.inApp.do(t, hands.Order{Op: "talk", Addr: addr, Mode: "reset", Size: 0})
			return fmt.Sprint(a.N, a.Data) // how a proxy hands it on is its own affair, and depends on what comes first
		}},
		{"200 connections", func(t *testing.T, s *scene) string {
			return s.inApp.do(t, hands.Order{Op: "crowd", Addr: addr, Size: 200}).Told()
		}},
		{"40 at once", func(t *testing.T, s *scene) string {
			var calls []<-chan hands.Answer
			for range 40 {
				calls = append(calls, s.inApp.start(hands.Order{Op: "talk", Addr: addr, Mode: "echo", Size: 100_000}))
			}
			told := map[string]int{}
			for _, c := range calls {
				told[s.inApp.wait(t, c).Told()]++
			}
			return fmt.Sprint(told)
		}},
	}
	for _, size := range []int{0, 1, 1000, 65537, 1 << 20} {
		all = append(all, talk(fmt.Sprintf("echo of %d", size), hands.Order{Mode: "echo", Size: size}))
	}
	return all
}

// command is a program that runs in the app. Its output is compared without what clean takes away.
func command(name string, clean func(*testing.T, string) string, argv ...string) trial {
	return trial{name, func(t *testing.T, s *scene) string {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var stderr bytes.Buffer
		cmd := s.app.Command(ctx, argv...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Sprintf("%v: %s%s", err, &stderr, out)
		}
		if clean == nil {
			return string(out)
		}
		return clean(t, string(out))
	}}
}

// bodySum is what openssl's client prints of the big file, without its header.
func bodySum() string {
	b := make([]byte, bulk)
	hands.Fill(b, 0, 0)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestSidecars(t *testing.T) {
	needAcceleration(t)
	must(t, programs())
	url := fmt.Sprintf("http://127.0.0.1:%d", portHTTP)
	get := func(name, path string, times int) trial {
		return trial{name, func(t *testing.T, s *scene) string {
			return s.inApp.do(t, hands.Order{Op: "get", Addr: url + path, Size: times}).Told()
		}}
	}
	noErrors := regexp.MustCompile(`(?m)^\s*(Socket errors|Non-2xx).*`)
	for _, sidecar := range []struct {
		name   string
		trials []trial
	}{
		{"io.Copy", talks(portRelay, bulk)},
		{"HAProxy", talks(portHAProxy, bulk)},
		{"nginx stream", talks(portStream, 1<<17)},
		{"asyncio", talks(portPython, bulk)},
		{"nginx http", []trial{
			get("keep-alive", "/page", 900),
			get("sendfile", "/big", 2),
			command("wrk", func(t *testing.T, out string) string {
				if !strings.Contains(out, "requests in") || strings.Contains(out, " 0 requests in") {
					t.Errorf("no requests: %s", out)
				}
				return strings.Join(noErrors.FindAllString(out, -1), "\n")
			}, "/usr/bin/wrk", "-t", "1", "-c", "16", "-d", "1s", url+"/page"),
		}},
		{"iperf3", []trial{
			iperf("up"), iperf("down", "-R"), iperf("both ways", "--bidir"), iperf("sendfile", "-Z"), iperf("four", "-P", "4"),
		}},
		{"openssl", []trial{
			command("s_client", func(t *testing.T, out string) string {
				if sum := strings.Fields(out); len(sum) == 0 || sum[0] != bodySum() {
					t.Errorf("other bytes: %s", out)
				}
				return out
			}, "/bin/sh", "-c", fmt.Sprintf(`printf 'GET /big HTTP/1.0\r\n\r\n' | `+
				`OPENSSL_CONF=/dev/null /usr/bin/openssl s_client -quiet -connect 127.0.0.1:%d 2>/dev/null | `+
				`/bin/busybox tail -c %d | /bin/busybox sha256sum`, portProxyTLS, bulk)),
		}},
	} {
		t.Run(sidecar.name, func(t *testing.T) {
			before := [2]uint64{world.plain.messages(t), world.fast.messages(t)}
			for _, tr := range sidecar.trials {
				t.Run(tr.name, func(t *testing.T) {
					plain, fast := tr.play(t, world.plain), tr.play(t, world.fast)
					if plain != fast {
						t.Errorf("plain:\n%s\naccelerated:\n%s", plain, fast)
					}
					t.Log(plain)
				})
			}
			if now := world.plain.messages(t); now > 0 {
				t.Errorf("plain: %d messages are accelerated", now)
			}
			if now := world.fast.messages(t); now == before[1] {
				t.Errorf("nothing of what went through %s was accelerated", sidecar.name)
			}
		})
	}
}

// messages is how many have passed TCP by, from any end.
func (s *scene) messages(t *testing.T) (n uint64) {
	for _, a := range s.acceleration(t) {
		n += a.Messages
	}
	return n
}

// iperf moves 32 MiB, a thread or more at each end. It ends when all is written: what was read by then is chance.
func iperf(name string, flags ...string) trial {
	argv := append([]string{"/usr/bin/iperf3", "-c", "127.0.0.1", "-p", fmt.Sprint(portIperf), "-n", "32M", "-J"}, flags...)
	return command(name, func(t *testing.T, out string) string {
		var r struct {
			Error string
			End   struct {
				Received struct{ Bytes int } `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.Error != "" || r.End.Received.Bytes == 0 {
			return fmt.Sprintf("%v %s %+v", err, r.Error, r.End)
		}
		return "no error"
	}, argv...)
}

// TestNoLeak opens and closes thousands of connections, half of them by resets, and looks what the kernel keeps of them.
func TestNoLeak(t *testing.T) {
	needAcceleration(t)
	must(t, programs())
	// What earlier tests left open to time out stays.
	had := map[string]int{}
	for _, name := range []string{"ends", "conns"} {
		n, err := entries(name)
		must(t, err)
		had[name] = n
	}
	before := world.fast.acceleration(t)["app"].Connections
	addr := fmt.Sprintf("127.0.0.1:%d", portRelay)
	for _, mode := range []string{"", "reset"} {
		if a := world.fast.inApp.do(t, hands.Order{Op: "crowd", Addr: addr, Size: 2500, Mode: mode}); a.N != 2500 {
			t.Errorf("%s", a.Told())
		}
	}
	if n := world.fast.acceleration(t)["app"].Connections - before; n < 5000 {
		t.Errorf("%d of 5000 connections were accelerated", n)
	}
	for name, had := range had {
		must(t, lab.WaitFor(lab.Patience, "the end of all its entries in "+name, func() (bool, error) {
			n, err := entries(name)
			return n <= had, err
		}))
	}
}

// entries counts those of a map.
func entries(name string) (n int, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(cgroups.DefaultState), "maps", name), nil)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	var last any
	for {
		key, err := m.NextKeyBytes(last)
		if err != nil || key == nil || n > 1<<17 {
			return n, err
		}
		last = key
		n++
	}
}

// TestStatus wants the command to say which of the pods was accelerated, after all that went before.
func TestStatus(t *testing.T) {
	needAcceleration(t)
	for _, s := range []*scene{world.plain, world.fast} {
		scripts[0].perform(t, s, kinds[0])
	}
	st := status(t)
	for role, a := range world.plain.accelerationIn(t, st) {
		if a.Connections+a.Messages+a.Bytes > 0 || a.Off == "" {
			t.Errorf("plain %s: %+v", role, a)
		}
	}
	for role, a := range world.fast.accelerationIn(t, st) {
		if a.Connections == 0 || a.Messages == 0 || a.Bytes == 0 || a.Off != "" {
			t.Errorf("accelerated %s: %+v", role, a)
		}
		t.Logf("%s: %+v", role, a)
	}
}
