// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"
)

var (
	// ErrNotTLS says that a stream does not begin as a TLS connection does.
	ErrNotTLS = errors.New("not TLS")

	// ErrNotOpened says that a record is not one of these keys and this record number.
	ErrNotOpened = errors.New("record does not open with these keys")

	errWiped     = errors.New("keys were wiped")
	errExhausted = errors.New("record numbers are used up")
)

// ProtocolError is a breach of TLS by one of the ends.
type ProtocolError struct {
	Alert  Alert  // what an endpoint answers
	Reason string // what is wrong; names from the peer are quoted
}

func (e *ProtocolError) Error() string { return e.Reason }

func violation(a Alert, format string, args ...any) error {
	return &ProtocolError{a, fmt.Sprintf(format, args...)}
}
