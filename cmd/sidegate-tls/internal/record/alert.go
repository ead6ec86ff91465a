// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/tls"
	"strings"
)

// Alert is an alert's description (RFC 8446 6).
type Alert uint8

// Alerts that this package answers with, or treats as special. AccessDenied is for a policy that says no.
const (
	CloseNotify       Alert = 0
	UnexpectedMessage Alert = 10
	RecordOverflow    Alert = 22
	IllegalParameter  Alert = 47
	AccessDenied      Alert = 49
	DecodeError       Alert = 50
	ProtocolVersion   Alert = 70
	InternalError     Alert = 80
	UserCanceled      Alert = 90
	NoRenegotiation   Alert = 100
	UnrecognizedName  Alert = 112
)

const (
	warning = 1
	fatal   = 2
)

// String is the alert's name.
func (a Alert) String() string { return strings.TrimPrefix(tls.AlertError(a).Error(), "tls: ") }

// Ends tells whether nothing follows it: all but two do, whatever their level (RFC 8446 6, RFC 5246 7.2.2).
func (a Alert) Ends() bool { return a != UserCanceled && a != NoRenegotiation }

// content is the alert as it is sent.
func (a Alert) content() []byte {
	level := byte(fatal)
	if a == CloseNotify || !a.Ends() {
		level = warning
	}
	return []byte{level, byte(a)}
}

// Record is the alert in the clear, for a connection that has no keys yet.
func (a Alert) Record() Record {
	content := a.content()
	return append(Record{byte(TypeAlert), tls.VersionTLS12 >> 8, tls.VersionTLS12 & 0xff, 0, byte(len(content))}, content...)
}

// ParseAlert reads an alert's content, and whether its level is fatal, which TLS 1.3 ignores. An alert that is split over
// records, or two in one, is a *ProtocolError: no implementation in use sends them, and TLS 1.3 forbids both.
func ParseAlert(content []byte) (a Alert, isFatal bool, err error) {
	if len(content) != 2 {
		return 0, false, violation(DecodeError, "alert of %d bytes", len(content))
	}
	if content[0] != warning && content[0] != fatal {
		return 0, false, violation(IllegalParameter, "alert of level %d", content[0])
	}
	return Alert(content[1]), content[0] == fatal, nil
}
