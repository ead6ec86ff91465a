// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// dnsQuery asks for the address of nonce.example. (RFC 1035, 4.1).
func dnsQuery(nonce string) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0x5347)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired; one question
	for _, label := range []string{nonce, "example"} {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1) // the root, A, IN
}

// runDNS sends a query to port 53, whose name is the nonce.
func runDNS(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("dns", flag.ContinueOnError)
	var to netip.Addr
	fs.TextVar(&to, "to", netip.Addr{}, "`address` of the server")
	proto := fs.String("proto", "udp", "udp or tcp")
	uid := fs.Int("uid", -1, "become this user first")
	nonce := fs.String("nonce", defaultNonce(), "name to ask for")
	timeout := fs.Duration("timeout", 500*time.Millisecond, "how long to wait for anything")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !to.IsValid() || len(*nonce) > 63 {
		return nil, &usageError{errors.New("--to is missing, or --nonce too long for a label")}
	}
	query, server := dnsQuery(*nonce), netip.AddrPortFrom(to, 53)
	res := newResult()
	if *proto == "tcp" {
		d := dialer{to: server, proto: "tcp", uid: *uid, gid: -1, timeout: *timeout}
		c, _, err := d.dial(nil)
		if err != nil {
			return res, err
		}
		defer c.Close()
		c.report(res)
		if _, err := c.Write(slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query)); err != nil {
			return res, err
		}
		n, err := c.Read(make([]byte, 512))
		if err != nil {
			return res, fmt.Errorf("answer: %w", err)
		}
		res.Data["bytes"] = n
		return res, nil
	}
	d := datagram{to: server, how: "sendto", uid: *uid}
	fd, err := d.socket()
	if err != nil {
		return res, err
	}
	c := &conn{fd: fd}
	defer c.Close()
	if err := d.send(fd, query); err != nil {
		return res, err
	}
	n, _, err := receive(fd, make([]byte, 512), *timeout)
	if err != nil {
		return res, fmt.Errorf("answer: %w", err)
	}
	res.Data["bytes"] = n
	return res, nil
}
