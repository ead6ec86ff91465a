// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidegate/tests/lab"
	"sidegate/tests/vm"
	"sidegate/tests/vm/tls"
)

// tlsModules are TLS in the kernel with all of its algorithms, those that others ask for
// first, and the devices of a pod.
var tlsModules = []string{
	"crc32c_generic", "veth", "cls_bpf", "sch_ingress", "inet_diag", "tcp_diag", "udp_diag",
	"cryptd", "aesni_intel", "ghash_generic", "ctr", "gcm", "ccm", "chacha_generic", "poly1305_generic", "chacha20poly1305", "tls",
}

// TestTLS runs the tests of the TLS relay in a VM with the newest kernel, or one per kernel, with TLS in the kernel:
// HAProxy as the sidecar, and clients that hand over their keys. SIDEGATE_VM_RUN is
// given to them as -test.run.
func TestTLS(t *testing.T) {
	t.Parallel()
	kernels := oneOf(kernels(t), true)
	programs, err := vm.HostPrograms("haproxy", "openssl", "gnutls-cli", "/usr/bin/wget")
	if err != nil {
		t.Fatalf("%v: run 'make deps'", err)
	}
	imports, _, _ := strings.Cut(tls.Fetch, "\n")
	python, err := vm.PythonFiles(t.Context(), imports)
	if err != nil {
		t.Fatalf("%v: run 'make deps'", err)
	}
	files := append(slices.Concat(programs, python), opensslFiles(t)...)
	dir := t.TempDir()
	tests, err := vm.BuildTests(t.Context(), dir, []string{"vmguest"}, "sidegate/tests/vm/tls")
	if err != nil {
		t.Fatal(err)
	}
	files = append(append(files, tests[0].Files...),
		buildProgram(t, dir, "sidegate/cmd/sidegate-tls", tls.RelayPath),
		vm.File{Path: tls.HAProxyConfig, Data: []byte(lab.HAProxyConfig)})
	var args []string
	if run := os.Getenv("SIDEGATE_VM_RUN"); run != "" {
		args = append(args, "-test.run="+run)
	}
	for _, kernel := range kernels {
		t.Run(kernel.Release, func(t *testing.T) {
			t.Parallel()
			result := bootVM(t, bootLimit, vm.Config{
				Kernel:   kernel,
				Cmdline:  []string{bpfLSM},
				Modules:  tlsModules,
				Files:    files,
				Commands: []vm.Command{tests[0].Command(testLimit, args...)},
			})
			vm.CheckTests(t, result.Commands[0])
		})
	}
}

// opensslFiles is Debian 13's OpenSSL, which has its own C library.
func opensslFiles(t *testing.T) []vm.File {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../../scripts/vm-openssl.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fetch OpenSSL: %v", err)
	}
	host := strings.TrimSpace(string(out))
	files := []vm.File{{Path: path.Join(tls.OpenSSLDir, "openssl"), Host: filepath.Join(host, "usr/bin/openssl")}}
	for _, name := range []string{"ld-linux-x86-64.so.2", "libc.so.6", "libssl.so.3", "libcrypto.so.3", "libzstd.so.1", "libz.so.1"} {
		files = append(files, vm.File{Path: path.Join(tls.OpenSSLDir, name), Host: filepath.Join(host, "usr/lib/x86_64-linux-gnu", name), Mode: 0o755})
	}
	return files
}
