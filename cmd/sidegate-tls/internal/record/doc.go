// SPDX-License-Identifier: Apache-2.0

// Package record is the record layer of TLS 1.2 and 1.3 for one who stands between the two ends and was handed their keys,
// and what of the handshake can be read without keys. It does no I/O but through the io.Reader of a Reader, starts no
// goroutine, and logs nothing.
//
//   - Reader cuts a byte stream into records.
//   - Messages puts handshake messages together; ParseClientHello and ParseServerHello read the two that are in the clear.
//   - Keys are what an app's TLS library hands to the kernel, and to us.
//   - Direction opens records with Keys, and lets them pass unchanged, or makes a Sealer, whose records go out instead.
//
// A Reader, a Messages, a Direction and a Sealer are for one direction of one connection, and each for one goroutine at a time.
//
// # Errors
//
// ErrNotTLS: the stream is something else. ErrNotOpened: a record is not one of these keys and this record number; nothing
// has changed, and other keys may open it. A *ProtocolError: it is TLS, and breaks its rules; Alert is what an endpoint would
// answer. All else is a caller's mistake, or of the reader below. No error has bytes of keys or of a sealed plaintext in its text.
package record
