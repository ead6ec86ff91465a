// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHas(t *testing.T) {
	var ours []string
	for _, v := range Variables() {
		ours = append(ours, v.String())
	}
	for name, tt := range map[string]struct {
		environ, destinations []string
		has                   bool
		why                   []string
	}{
		"nothing":            {environ: []string{"PATH=/bin", "OPENSSL_CONFIG=x", "X"}, destinations: []string{"/proc", "/run", "/run/sidegate", "/run/sidegate/ktls2"}},
		"all":                {environ: append([]string{"A=b"}, ours...), destinations: []string{"/run", Dir}, has: true},
		"a slash more":       {environ: ours, destinations: []string{"/run/./sidegate/ktls/"}, has: true},
		"twice":              {environ: append(ours, ours...), destinations: []string{Dir, Dir}, has: true},
		"another file":       {environ: []string{"OPENSSL_CONF=/etc/my.cnf"}, why: []string{`OPENSSL_CONF="/etc/my.cnf" already`, "take the variable away", "sidegate/ktls=off"}},
		"empty":              {environ: []string{"GNUTLS_SYSTEM_PRIORITY_FILE="}, why: []string{`GNUTLS_SYSTEM_PRIORITY_FILE="" already`}},
		"both":               {environ: []string{"OPENSSL_CONF=a", "GNUTLS_SYSTEM_PRIORITY_FILE=b"}, why: []string{`OPENSSL_CONF="a"`, `GNUTLS_SYSTEM_PRIORITY_FILE="b"`}},
		"ours and another":   {environ: append(ours, "OPENSSL_CONF=/x"), destinations: []string{Dir}, why: []string{`OPENSSL_CONF="/x"`}},
		"a mount of theirs":  {destinations: []string{Dir}, why: []string{"a mount at /run/sidegate/ktls already"}},
		"one of the two":     {environ: ours[:1], destinations: []string{Dir}, why: []string{"a mount at /run/sidegate/ktls already"}},
		"below":              {destinations: []string{Dir + "/openssl.cnf"}, why: []string{`a mount at "/run/sidegate/ktls/openssl.cnf", which would be hidden`}},
		"variables alone":    {environ: ours, destinations: []string{"/proc"}, why: []string{"nothing is mounted there: take OPENSSL_CONF and GNUTLS_SYSTEM_PRIORITY_FILE away"}},
		"one variable alone": {environ: ours[1:], why: []string{"nothing is mounted there"}},
	} {
		has, err := Has(tt.environ, tt.destinations)
		if has != tt.has || (err != nil) != (tt.why != nil) {
			t.Errorf("%s: %v, %v", name, has, err)
		}
		for _, want := range tt.why {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		if tt.why == nil && !tt.has { // then it can be had
			if has, err := Has(append(tt.environ, ours...), append(tt.destinations, Dir)); !has || err != nil {
				t.Errorf("%s, with it: %v, %v", name, has, err)
			}
		}
	}
}

// The files that are shipped are those that are looked for.
func TestCheckHost(t *testing.T) {
	shipped, err := filepath.Abs("../../contrib/ktls")
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckHost(shipped); err != nil {
		t.Error(err)
	}
	root, rel := filepath.Dir(shipped), "/"+filepath.Base(shipped)
	if err := CheckHost(rel, "/nonexistent", root); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(name string, mode os.FileMode) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	want := func(text string) {
		t.Helper()
		if err := CheckHost(dir); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	want("openssl.cnf is not there: install it there (make install), or set SIDEGATE_KTLS_DIR")
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	want(dir + " cannot be read by all users, whom a container may run as: chmod a+rx it")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put("openssl.cnf", 0o600)
	want("openssl.cnf cannot be read by all users")
	put("openssl.cnf", 0o644)
	want("gnutls.conf is not there")
	if err := os.Mkdir(filepath.Join(dir, "gnutls.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	want("gnutls.conf is no file")
	if err := CheckHost("share"); err == nil || !strings.Contains(err.Error(), `SIDEGATE_KTLS_DIR: "share" is no absolute path`) {
		t.Error(err)
	}
}

func TestHostDir(t *testing.T) {
	t.Setenv(HostDirEnv, "")
	if got := HostDir(); got != defaultHostDir {
		t.Error(got)
	}
	t.Setenv(HostDirEnv, "/opt/x")
	if got := HostDir(); got != "/opt/x" {
		t.Error(got)
	}
}

func TestMounted(t *testing.T) {
	const others = "22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a\n23 22 0:22 /run/sidegate/ktls /mnt rw - tmpfs tmpfs rw\n"
	for text, want := range map[string]bool{
		others: false, others + "24 22 8:1 /usr/local/share/sidegate/ktls /run/sidegate/ktls ro,nosuid - ext4 /dev/sda1 rw\n": true, "": false, "24 22\n": false,
	} {
		if got, err := mountedIn(strings.NewReader(text)); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := Mounted(os.Getpid()); got || err != nil {
		t.Errorf("this process: %v, %v", got, err)
	}
	if _, err := Mounted(1 << 30); err == nil {
		t.Error("no such process: no error")
	}
}
