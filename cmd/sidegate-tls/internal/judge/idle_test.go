// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"testing"

	"sidegate/policy/httprule"
)

// anything allows all, tunnels too.
type anything struct{}

func (anything) Decide(*httprule.Request) httprule.Decision {
	return httprule.Decision{Allow: true, Tunnel: true}
}

func TestIdle(t *testing.T) {
	const request, upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
	for _, test := range []struct {
		client, server string
		idle, waits    bool
	}{
		{"", "", true, false},
		{request, "", false, false},
		{request[:5], "", false, false},
		{request, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", false, false},
		{request, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true, false},
		{request, "HTTP/1.1 100 Continue\r\n\r\n", false, false},
		{request + request, "HTTP/1.1 204 No\r\n\r\n", false, false},
		{request + request, "HTTP/1.1 204 No\r\n\r\nHTTP/1.1 204 No\r\n\r\n", true, false},
		{request, "HTTP/1.1 200 OK\r\n\r\nuntil the end", false, false},
		{request, "HTTP/1.1 204 No\r\n\r\nmore", false, false},
		{"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\no", "HTTP/1.1 204 No\r\n\r\n", false, false},
		{upgrade, "", false, true},
		{upgrade, "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n", true, false},
		{upgrade, "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", false, false},
		{preface, "", false, false},
	} {
		j := New(Config{Rules: anything{}, AnyHost: true, Answers: true})
		_, _ = j.Client([]byte(test.client))
		_, _ = j.Server([]byte(test.server))
		if j.Idle() != test.idle || j.Waits() != test.waits {
			t.Errorf("%q, %q: idle %v, waits %v", test.client, test.server, j.Idle(), j.Waits())
		}
	}
}

// Who cannot see whether a server switches, does not let through what follows.
func TestBlind(t *testing.T) {
	const upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
	j := New(Config{Rules: anything{}, AnyHost: true, Answers: true})
	if n, err := j.Client([]byte(upgrade + "more")); n != int64(len(upgrade)) || err != nil {
		t.Fatalf("%d are ready, %v", n, err)
	}
	if n, err := j.Blind("keys are gone"); n != int64(len(upgrade)) || err == nil {
		t.Errorf("%d are ready, %v", n, err)
	}
}
