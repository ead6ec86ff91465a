// SPDX-License-Identifier: Apache-2.0

// Package relay is the engine of one connection between an app and a server: it opens the app's TLS records by the keys that
// the app's library has handed over, has the requests within judged, and lets each record go on unchanged, or not at all. It
// does I/O on the two connections that it is given, and knows nothing of where they and the keys come from.
//
// # What is held, and until when
//
// The ClientHello goes on once its server name was judged. Of what follows in the clear there is only what a handshake
// has; of TLS 1.3's encrypted handshake one record of a Finished's size, or of an alert's. Every later record has to open, in sequence,
// and goes on when all of its bytes have been judged: a record that has half a request's head waits for the rest. After a
// denied request nothing goes on, and the app gets the alert access_denied, sealed if the server's keys were handed over.
// Without these, in TLS 1.3, there is only a FIN.
//
// Whether there are keys is asked when the first record is here that needs them: the library has handed them over before it
// sent that. Where there are none, the policy decides: the end, or all that follows passes unread, for ever.
//
// What the server sends goes on at once, by whole records. A copy is opened for events, and to know whether it has agreed
// to an upgrade. Where that fails, answers are bytes.
//
// # Keys that are a lie
//
// The app is not trusted, and could hand over other keys than it uses. An AEAD does not commit to its key: with GCM and
// ChaCha20-Poly1305 a record can be made that opens with two keys, to two plaintexts whose difference is fixed by the keys. From the
// first record on, one pair of keys would have to make two valid heads of requests, byte by byte: out of reach in practice, not in theory.
// But it is easy where both plaintexts may be anything, in the midst of a body: so where requests are judged, an app's KeyUpdate ends the
// connection. No key but the first one is ever tried.
//
// # Deferred
//
// With Conn.Deferred the handshake passes as above, and then the sidecar works on what is within: the app's requests are opened,
// judged, and written to the sidecar in the clear; what it sends on by connections of its own is sealed for the server. So are
// the server's answers opened for these connections, and the sidecar's sealed for the app.
//
// Both keys are needed before the app's first record, and no others come: key updates end the connection. From the server nothing is
// let through between the app's Finished (in TLS 1.2: its own) and that first record, since it may be an answer for the sidecar. A ticket is
// sealed anew for the app: it resumes the session with the server, and is bound to no record. TLS 1.2's HelloRequest is dropped.
//
// The sidecar's connections are served one at a time. The next one is, if the former has nothing under way: in HTTP/1.1,
// every request was whole and had all of its answer. Else that answer could become another request's, and the server's side is over: what
// the sidecar tells the app then is its own matter. In HTTP/2 there is one connection only. An end without close_notify is passed
// on as a RST, since an answer may be cut short.
//
// # One number, one record, deferred
//
// Package record says why a record number must not be seen with two plaintexts. Here, for each direction, the Sealer begins with the
// first number that was not passed, and from then on Pass is an error: what one end has encrypted does not reach the other
// one. Nothing is held when it begins: after the app's Finished nothing of either side was passed. Who
// sees both records of a number is who listens between app and relay and on the relay's other side at once: within the node,
// not in the world. With TLS 1.2 and AES the two have different nonces. Where they have the same and the plaintext is the same too, the
// records are equal, which says nothing.
//
// # Memory
//
// Two buffers to read, which grow from 4 to 64 KiB with what is sent, and one of 64 KiB to write; two of a record; up to 64 KiB of
// the server's records that wait for keys; up to 256 KiB of records that are held, and what the judge keeps. None has more than
// 1 MiB with HTTP/1.1. Deferred needs 70 KiB more, and holds up to 256 KiB of plaintext instead of records.
package relay
