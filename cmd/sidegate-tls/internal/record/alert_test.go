// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
)

func TestAlert(t *testing.T) {
	for a, want := range map[Alert]string{
		CloseNotify:      "\x15\x03\x03\x00\x02\x01\x00 close notify",
		UserCanceled:     "\x15\x03\x03\x00\x02\x01\x5a user canceled",
		NoRenegotiation:  "\x15\x03\x03\x00\x02\x01\x64 no renegotiation",
		AccessDenied:     "\x15\x03\x03\x00\x02\x02\x31 access denied",
		UnrecognizedName: "\x15\x03\x03\x00\x02\x02\x70 unrecognized name",
		Alert(255):       "\x15\x03\x03\x00\x02\x02\xff alert(255)",
	} {
		if got := string(a.Record()) + " " + a.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		back, isFatal, err := ParseAlert(a.Record().Body())
		if err != nil || back != a || isFatal != (want[5] == 2) {
			t.Errorf("%v: parsed as %v, %v, %v", a, back, isFatal, err)
		}
	}
	for _, wrong := range []string{"", "\x02", "\x02\x00\x02", "\x01\x00\x01\x00", "\x00\x00", "\x03\x00", "\xff\x00"} {
		if _, _, err := ParseAlert([]byte(wrong)); err == nil {
			t.Errorf("%q is an alert", wrong)
		} else {
			alertOf(t, err)
		}
	}
}

// Before there are keys a client is told too, in words that it shows its user.
func TestAlertInTheClear(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client, relay := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := NewReader(relay).Next()
			if err == nil {
				_, err = relay.Write(AccessDenied.Record())
			}
			done <- err
			relay.Close()
		}()
		err := tls.Client(client, &tls.Config{ServerName: "sidegate.test", MaxVersion: version}).Handshake()
		if err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		client.Close()
	}
}
