// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"flag"

	"golang.org/x/sys/unix"
)

// An option to ask for. The values of volatile ones are left out, so that two reports can be compared.
type option struct {
	name     string
	level    int
	number   int
	lengths  []int // what to claim that the buffer holds
	volatile bool
}

var options = []option{
	{"SO_TYPE", unix.SOL_SOCKET, unix.SO_TYPE, []int{4, 1, 0, 64}, false},
	{"SO_ERROR", unix.SOL_SOCKET, unix.SO_ERROR, []int{4}, false},
	{"SO_DOMAIN", unix.SOL_SOCKET, unix.SO_DOMAIN, []int{4, 4096, 8192, 70000}, false},
	{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, []int{4}, false},
	{"SO_RCVTIMEO", unix.SOL_SOCKET, unix.SO_RCVTIMEO, []int{16, 8}, false},
	{"SO_LINGER", unix.SOL_SOCKET, unix.SO_LINGER, []int{8, 4}, false},
	{"SO_PEERCRED", unix.SOL_SOCKET, unix.SO_PEERCRED, []int{12}, false},
	{"SO_COOKIE", unix.SOL_SOCKET, unix.SO_COOKIE, []int{8, 4}, true},
	{"SO_80", unix.SOL_SOCKET, 80, []int{16}, false},
	{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, []int{4, 1}, false},
	{"TCP_MAXSEG", unix.IPPROTO_TCP, unix.TCP_MAXSEG, []int{4}, true},
	{"TCP_INFO", unix.IPPROTO_TCP, unix.TCP_INFO, []int{104, 8, 4096, 5000}, true},
	{"TCP_CONGESTION", unix.IPPROTO_TCP, unix.TCP_CONGESTION, []int{16, 4}, false},
	{"TCP_80", unix.IPPROTO_TCP, 80, []int{16}, false},
	{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, []int{4, 1}, false},
	{"IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, []int{4, 1}, false},
	{"IP_OPTIONS", unix.IPPROTO_IP, unix.IP_OPTIONS, []int{40}, false},
	{"IP_MTU", unix.IPPROTO_IP, unix.IP_MTU, []int{4}, true},
	// Where the pod has conntrack, as Docker's name server makes it, that is asked for an app's own connection.
	{"SO_ORIGINAL_DST", unix.IPPROTO_IP, soOriginalDst, []int{16, 15, 28, 4096}, true},
	{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, []int{4}, false},
	{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, []int{4}, false},
	{"IP6T_SO_ORIGINAL_DST", unix.IPPROTO_IPV6, ip6tSoOriginalDst, []int{28, 16, 4096}, true},
	{"SOL_TLS 1", 282, 1, []int{40}, false},
	{"level 65535", 65535, 1, []int{4}, false},
}

// runSockopt connects and then asks for every option with every length.
func runSockopt(_ context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("sockopt", flag.ContinueOnError)
	d.flags(fs)
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	res := newResult()
	c, _, err := d.dial(nil)
	if err != nil {
		return res, err
	}
	defer c.Close()
	type answer struct {
		Name   string `json:"name"`
		Length int    `json:"length"`
		Answer int    `json:"answer"`
		Errno  string `json:"errno,omitempty"`
		Value  string `json:"value,omitempty"`
	}
	var answers []answer
	for _, o := range options {
		for _, length := range o.lengths {
			b := make([]byte, length)
			n, err := getsockopt(c.fd, o.level, o.number, b, length)
			a := answer{Name: o.name, Length: length, Answer: n, Errno: newResult().withError(err).Errno}
			if err == nil && !o.volatile {
				a.Value = hex.EncodeToString(b[:min(max(n, 0), len(b))])
			}
			answers = append(answers, a)
		}
	}
	res.Data["options"] = answers
	return res, nil
}
