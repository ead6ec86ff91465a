// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// TestHonest is about a library that nobody has here: it hands over both directions in TLS 1.3 too, as OpenSSL does from
// 3.2 on. So it is told why a request is denied.
func TestHonest(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	for _, version := range []string{"-13=false", "-13"} {
		w := p.watch(t)
		got := p.lie(ctx, t, "honest", version, "GET /v1/a", "POST /v1/b", "GET /secret")
		all := w.ended(1)
		w.askedFor("GET api.example/v1/a", "POST api.example/v1/b")
		if len(got) != 3 || got[0].Body != "hello /v1/a\n" || got[1].Status != 200 || got[2].Err != "remote error: tls: access denied" {
			t.Errorf("%s: %+v", version, got)
		}
		hs := find(t, all, "the handshake", func(e *event) bool { return e.Kind == "tls" })
		if !hs.ClientKeys || !hs.ServerKeys {
			t.Errorf("%s: %+v", version, hs)
		}
		var statuses []int
		for _, e := range all {
			if e.HTTP != nil && e.HTTP.Kind == "response" {
				statuses = append(statuses, e.HTTP.Status)
			}
		}
		if len(statuses) != 2 || statuses[0] != 200 {
			t.Errorf("%s: statuses %v", version, statuses)
		}
	}
}

// TestLiars: what cannot be read ends, and the site never sees a byte of it.
func TestLiars(t *testing.T) {
	ctx := begin(t)
	p, free := sharedPod(ctx, t, "inspect"), sharedPod(ctx, t, "free")
	for _, c := range []struct {
		how, reason string
		n           int // connections
	}{
		{"none", "has not handed over its keys", 1},
		{"wrong", "do not open what it sends", 1},
		{"wrongfirst", "do not open what it sends", 1},
		{"cipher", "do not open what it sends", 1},
		{"version", "the app has handed over", 1},
		{"number", "do not open what it sends", 1},
		{"other", "do not open what it sends", 2},
		{"late", "has not handed over its keys", 1},
		{"many", "hands over more keys than it uses", 1},
		{"short", "has not handed over its keys", 1},
	} {
		t.Run(c.how, func(t *testing.T) {
			for _, version := range []string{"-13=false", "-13"} {
				if got := free.lie(ctx, t, c.how, version, "GET /v1/a"); len(got) != 1 || got[0].Status != 200 {
					t.Fatalf("%s: without rules: %+v", version, got)
				}
				w := p.watch(t)
				// In TLS 1.2 the Finished is the first record under these keys, so that there is no handshake.
				got := p.lie(ctx, t, c.how, version, "GET /v1/a")
				all := w.ended(c.n)
				w.askedFor()
				if len(got) != 1 || got[0].Err == "" {
					t.Errorf("%s: %+v", version, got)
				}
				find(t, all, "the reason: "+c.reason, func(e *event) bool { return strings.Contains(e.Reason, c.reason) })
				for _, n := range w.sealed(version == "-13") {
					if n != 0 {
						t.Errorf("%s: the site got %d records", version, n)
					}
				}
			}
		})
	}
	t.Run("twice", func(t *testing.T) { // it is no lie
		for _, version := range []string{"-13=false", "-13"} {
			w := p.watch(t)
			got := p.lie(ctx, t, "twice", version, "GET /v1/a", "GET /secret")
			w.ended(1)
			w.askedFor("GET api.example/v1/a")
			if len(got) != 2 || got[0].Status != 200 || got[1].Err == "" {
				t.Errorf("%s: %+v", version, got)
			}
		}
	})
	t.Run("beside others", func(t *testing.T) {
		// A container that hands over as fast as it can is another's neighbour, in its pod and in another one.
		other := newPod(ctx, t, "inspect")
		flood := p.app.Command(ctx, "/sidegate/liar", "-13", "-how=many", "-n=-1", "GET /v1/flood")
		hold, err := flood.StdinPipe()
		must(t, err)
		logged, err := world.relay.Log()
		must(t, err)
		must(t, flood.Start())
		end := sync.OnceValue(func() error {
			hold.Close()
			return flood.Wait()
		})
		defer func() { _ = end() }()
		w := other.watch(t)
		const ask = talk + `
for i in range(12):
    try: got, end = say(connect(["TLSv1_2", "TLSv1_3"][i % 2]), req("/v1/%s-%d" % (sys.argv[1], i), close))
    except Exception as e: got, end = "", repr(e)
    if not hellos(got): print(i, end)
print("done")
`
		if lines := other.python(ctx, t, ask, "beside"); len(lines) != 1 {
			t.Errorf("in another pod: %q", lines)
		}
		w.ended(12)
		// In its own pod it may be that there is no room for keys. Then a connection ends, and never passes unread.
		lines := p.python(ctx, t, ask, "within")
		t.Logf("within the pod %d of 12 ended", len(lines)-1)
		must(t, end())
		w.settled()
		if n := len(w.requests()); n != 12+13-len(lines) {
			t.Errorf("the site was asked %d times", n)
		}
		if lines := p.python(ctx, t, ask, "after"); len(lines) != 1 {
			t.Errorf("after it: %q", lines)
		}
		log, err := world.relay.Log()
		must(t, err)
		if n := strings.Count(log[len(logged):], "which is no connection here"); n > 60 {
			t.Errorf("the flood made the relay log %d lines", n)
		}
	})
}

// TestNeighbours: another container of the pod that lies does not get in the way of an honest one.
func TestNeighbours(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	second, err := p.startApp(ctx, "second", 8081)
	must(t, err)
	t.Cleanup(func() { must(t, second.Remove(context.WithoutCancel(ctx))) })
	w := p.watch(t)
	for _, version := range []string{"-13=false", "-13"} {
		for range 3 {
			if got := lieIn(ctx, t, second, "wrong", version, "GET /v1/a"); got[0].Err == "" {
				t.Errorf("%+v", got)
			}
			if got := p.lie(ctx, t, "honest", version, "GET /v1/honest"); got[0].Status != 200 {
				t.Errorf("%+v", got)
			}
		}
	}
	all := w.ended(12)
	for _, r := range w.requests() {
		if r.Path != "/v1/honest" {
			t.Errorf("the site was asked %s", r)
		}
	}
	for _, e := range all {
		if e.Kind == "refused" && e.Container != fmt.Sprintf("%s-second", p.Name) {
			t.Errorf("%+v", e)
		}
	}
}
