// SPDX-License-Identifier: Apache-2.0

// Package tls has tests of the TLS relay inside a test VM, where the kernel has TLS
// (tls.ko) and encrypts by itself what an app sends; TestTLS of the package above
// boots it. The clients are Debian's: OpenSSL's s_client, python3, gnutls-cli, wget.
// The tests are built with the tag vmguest alone, since they change the machine they
// run on.
package tls

// OpenSSLDir has Debian 13's OpenSSL in the guest, with its libraries and its loader.
const OpenSSLDir = "/opt/openssl"

// HAProxyConfig is where the tests find the sidecar's configuration in the guest.
const HAProxyConfig = "/etc/haproxy/haproxy.cfg"

// RelayPath is where the tests find sidegate-tls in the guest.
const RelayPath = "/usr/local/bin/sidegate-tls"

// Fetch is the program of the client that is python3: it takes the TLS version (12 or
// 13), a URL, and perhaps a file to send. It prints the answer's status, and then its body.
const Fetch = `import ssl, sys, urllib.request
c = ssl.create_default_context(cafile="/tmp/site/ca.pem")
c.minimum_version = c.maximum_version = {"12": ssl.TLSVersion.TLSv1_2, "13": ssl.TLSVersion.TLSv1_3}[sys.argv[1]]
data = open(sys.argv[3], "rb").read() if len(sys.argv) > 3 else None
with urllib.request.urlopen(urllib.request.Request(sys.argv[2], data), context=c, timeout=60) as r:
    sys.stdout.buffer.write(b"%d\n" % r.status + r.read())
`
