// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// TestNginx: nginx asks an HTTPS upstream for its own clients.
func TestNginx(t *testing.T) {
	ctx := begin(t)
	const script = `
import os, socket, subprocess, sys, time, urllib.request
conf = """
user root; daemon off; master_process off; pid /tmp/n/pid; error_log stderr warn;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/n/a; proxy_temp_path /tmp/n/b; fastcgi_temp_path /tmp/n/c; uwsgi_temp_path /tmp/n/d; scgi_temp_path /tmp/n/e;
  server {
    listen 127.0.0.1:9000;
    location / {
      proxy_pass https://api.example;
      proxy_http_version 1.1;
      proxy_ssl_server_name on;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate /site/ca.pem;
      proxy_ssl_protocols %s;
      proxy_ssl_conf_command Options KTLS;
    }
  }
}
"""
os.makedirs("/tmp/n", exist_ok=True)
open("/etc/group", "w").write("root:x:0:\n")
for version in ["TLSv1.2", "TLSv1.3"]:
    open("/tmp/n/conf", "w").write(conf % version)
    n = subprocess.Popen(["/usr/sbin/nginx", "-c", "/tmp/n/conf", "-e", "stderr"], stderr=subprocess.PIPE)
    while True:
        try: socket.create_connection(("127.0.0.1", 9000)).close(); break
        except OSError:
            if n.poll() is not None: sys.exit(n.stderr.read().decode())
            time.sleep(0.01)
    for path in ["/v1/nginx", "/secret/nginx"]:
        try:
            with urllib.request.urlopen("http://127.0.0.1:9000" + path, timeout=10) as r: print(r.status, r.read().decode().strip())
        except Exception as e: print(getattr(e, "code", repr(e)))
    n.terminate(); n.wait()
`
	free := sharedPod(ctx, t, "free")
	if lines := free.python(ctx, t, script); strings.Join(lines, ",") != "200 hello /v1/nginx,200 hello /secret/nginx,200 hello /v1/nginx,200 hello /secret/nginx" {
		t.Fatalf("without rules: %q", lines)
	}
	p := sharedPod(ctx, t, "inspect")
	w := p.watch(t)
	if lines := p.python(ctx, t, script); strings.Join(lines, ",") != "200 hello /v1/nginx,502,200 hello /v1/nginx,502" {
		t.Errorf("nginx's clients get %q", lines)
	}
	w.ended(4)
	w.askedFor("GET api.example/v1/nginx", "GET api.example/v1/nginx")
}

// TestWithoutKeys: curl has its own BIO for OpenSSL, and wget GnuTLS: nobody hands over keys.
func TestWithoutKeys(t *testing.T) {
	ctx := begin(t)
	const script = `
for url in https://api.example/v1/a https://api.example/secret https://denied.example/v1/a; do
	/usr/bin/curl -sS --max-time 10 --cacert /site/ca.pem $url 2>&1 || echo "curl failed: $?"
	/usr/bin/wget -q -O - --timeout=10 --tries=1 --ca-certificate=/site/ca.pem $url 2>&1 || echo "wget failed: $?"
done
`
	count := func(out, what string) int { return strings.Count(out, what) }
	if out := sharedPod(ctx, t, "free").shell(ctx, t, script); count(out, "hello") != 6 {
		t.Fatalf("without rules: %q", out)
	}
	p := sharedPod(ctx, t, "inspect")
	w := p.watch(t)
	if out := p.shell(ctx, t, script); count(out, "hello") != 0 || count(out, "curl failed") != 3 || count(out, "wget failed") != 3 {
		t.Errorf("where keys are required: %q", out)
	}
	because(t, w.ended(6), "refused", "has not handed over its keys")
	w.askedFor()
	for i, n := range w.sealed(true) {
		if n != 0 {
			t.Errorf("the site got %d records of connection %d", n, i)
		}
	}
	p = sharedPod(ctx, t, "lenient")
	w = p.watch(t)
	if out := p.shell(ctx, t, script); count(out, "hello") != 4 || count(out, "curl failed") != 1 || count(out, "wget failed") != 1 {
		t.Errorf("where they are not: %q", out)
	}
	all := w.ended(6)
	because(t, all, "opaque", "has not handed over its keys")
	because(t, all, "denied", `rule "names" denies it`)
	w.askedFor("GET api.example/v1/a", "GET api.example/v1/a", "GET api.example/secret", "GET api.example/secret")
	// Who hands them over is judged in that pod too.
	w = p.watch(t)
	if got := p.python(ctx, t, once, "TLSv1_2", "/secret/keys")[0]; strings.Contains(got, "hello") {
		t.Errorf("python says %q", got)
	}
	w.ended(1)
	w.askedFor()
}

// TestServer: an app that is a TLS server itself, with kTLS, is none of the relay's.
func TestServer(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	w := p.watch(t)
	for name, start := range map[string]struct {
		script string
		port   uint16
	}{
		"openssl": {`cd /tmp && head -c 4000000 /dev/urandom >page && exec openssl s_server -accept 9443 -cert /site/cert.pem -key /site/key.pem -WWW -naccept 2 2>&1`, 9443},
		"nginx":   {"echo root:x:0: >/etc/group; cat >/tmp/n.conf <<'EOF'\n" + servingNginx + "EOF\nhead -c 4000000 /dev/urandom >/tmp/page; exec /usr/sbin/nginx -c /tmp/n.conf -e stderr 2>&1", 9444},
	} {
		t.Run(name, func(t *testing.T) {
			server := p.app.Command(ctx, "/bin/sh", "-c", withOptIn, "sh", "/bin/sh", "-c", start.script)
			var said bytes.Buffer
			server.Stdout, server.Stderr = &said, &said
			must(t, server.Start())
			if err := p.app.WaitListening(ctx, start.port); err != nil {
				_ = server.Wait()
				t.Fatalf("%v: %s", err, &said)
			}
			for _, version := range []string{"-tls1_2", "-tls1_3"} {
				client := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/outside", "openssl", "s_client", version, "-quiet", "-CAfile", world.site.ca,
					"-servername", "api.example", "-connect", fmt.Sprintf("%s:%d", p.V4, start.port))
				client.Stdin = strings.NewReader("GET /page HTTP/1.0\r\n\r\n")
				out, err := client.Output()
				_, body, _ := bytes.Cut(out, []byte("\r\n\r\n"))
				sum := sha256.Sum256(body)
				if want := p.shell(ctx, t, "sha256sum /tmp/page"); len(body) != 4_000_000 || !strings.HasPrefix(want, hex.EncodeToString(sum[:])) {
					t.Errorf("%s: %d bytes came, which are not the page: %v", version, len(body), err)
				}
			}
			p.shell(ctx, t, "test ! -e /tmp/n.pid || kill $(cat /tmp/n.pid); rm -f /tmp/n.pid")
			_ = server.Wait()
		})
	}
	if all := w.seen(""); len(all) != 0 {
		t.Errorf("the relay saw it: %s", show(all))
	}
}

// servingNginx sends files by sendfile(2), and asks for TLS in the kernel.
const servingNginx = `user root;
daemon off;
master_process off;
pid /tmp/n.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    sendfile on;
    client_body_temp_path /tmp/n1; proxy_temp_path /tmp/n2; fastcgi_temp_path /tmp/n3; uwsgi_temp_path /tmp/n4; scgi_temp_path /tmp/n5;
    server {
        listen 9444 ssl;
        ssl_certificate /site/cert.pem;
        ssl_certificate_key /site/key.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_conf_command Options KTLS;
        root /tmp;
    }
}
`
