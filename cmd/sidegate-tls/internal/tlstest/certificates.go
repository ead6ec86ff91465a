// SPDX-License-Identifier: Apache-2.0

package tlstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"sync"
	"time"
)

// Name is whom the certificates are for.
const Name = "sidegate.test"

// Certificates are one of ECDSA and one of RSA.
var Certificates = sync.OnceValue(func() []tls.Certificate {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	var list []tls.Certificate
	for _, key := range []crypto.Signer{ec, r} {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{Name}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			panic(err)
		}
		list = append(list, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	}
	return list
})

// Suites are all of crypto/tls that have an AEAD.
func Suites() (list []*tls.CipherSuite) {
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if c, _ := CipherOf(s.ID); c != 0 {
			list = append(list, s)
		}
	}
	return list
}
