// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net/http"
	"testing"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// Keys that are handed over as GnuTLS does in TLS 1.2: after the handshake, for the records from number 1 on.
func TestLateKeys(t *testing.T) {
	server := httpServer(t)
	for _, suite := range tlstest.Suites() {
		if suite.SupportedVersions[len(suite.SupportedVersions)-1] == tls.VersionTLS13 {
			continue
		}
		t.Run(suite.Name, func(t *testing.T) {
			r := start(t, server, strict(t), func(r *rig) {
				r.library.alter = func(side Side, _ int, b []byte) []byte {
					if side == Client && r.library.asked[Client] == 1 {
						return nil // the app has not come to it yet
					}
					if b != nil {
						binary.BigEndian.PutUint64(b[len(b)-8:], 1)
					}
					return b
				}
			})
			c := r.client(func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{suite.ID} })
			in := bufio.NewReader(c)
			for range 3 {
				_, _ = io.WriteString(c, allowed)
				answer, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, answer.Body)
			}
			_, _ = io.WriteString(c, forbidden)
			alerted(t, in, "access denied")
			c.Close()
			r.refusedBy("no rule allows it")
			if e := r.find(KindTLS); e == nil || !e.ClientKeys || !e.ServerKeys {
				t.Errorf("the handshake is %+v", e)
			}
			if answers := r.http(judge.KindResponse); len(answers) != 3 || answers[2].Status != http.StatusOK {
				t.Errorf("the answers are %+v", answers)
			}
		})
	}
}

// Who never hands any over gets no further than that.
func TestLateKeysThatDoNotCome(t *testing.T) {
	a := new(answering)
	r := start(t, tlsServer(t, nil, a.handle), strict(t), func(r *rig) { r.library.never[Client] = true })
	c := r.client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, allowed)
	_, _ = io.ReadAll(c)
	c.Close()
	r.refusedBy("has not handed over its keys")
	if a.text() != "" {
		t.Errorf("the server got %q", a.text())
	}
}
