// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"path/filepath"
	"testing"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// What the relay sees is among all that is observed, in order, and of whom it is.
func TestObserve(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	o, err := lab.Observe(ctx, nil, filepath.Join(world.bin, "sidegate"), "--names=false")
	must(t, err)
	w := p.watch(t)
	p.python(ctx, t, urlopen, "TLSv1_2", "GET https://api.example/v1/observed", "GET https://api.example/secret/<&>")
	all := w.ended(2)
	var last lab.Observed
	for _, want := range []struct {
		what  string
		match func(v *lab.Observed) bool
	}{
		{"the connection", func(v *lab.Observed) bool { return v.Kind == "connect" && v.Verdict == cgroups.Redirected }},
		{"the handshake", func(v *lab.Observed) bool {
			return v.Kind == "tls" && v.TLS.Kind == "tls" && v.TLS.SNI == "api.example" && v.TLS.Version == "TLS 1.2"
		}},
		{"the request", func(v *lab.Observed) bool {
			return v.Kind == "http" && v.Verdict == cgroups.Allowed && v.Rule == "api" && v.TLS.HTTP.Kind == "request" && v.TLS.HTTP.Method == "GET" && v.TLS.HTTP.Path == "/v1/observed"
		}},
		{"the answer", func(v *lab.Observed) bool {
			return v.Kind == "http" && v.TLS.HTTP.Kind == "response" && v.TLS.HTTP.Status == 200
		}},
		{"the denial", func(v *lab.Observed) bool {
			return v.Kind == "http" && v.Verdict == cgroups.Denied && v.Rule == "secrets" && v.TLS.HTTP.Path == "/secret/<&>" && v.Text != ""
		}},
	} {
		v, err := o.Wait(want.what, want.match)
		must(t, err)
		if v.Time.Before(last.Time) || v.Container != all[0].Container || v.Pod != all[0].Pod || v.Address.Port() != 443 || v.PID == 0 {
			t.Errorf("%s is %+v", want.what, v.Event)
		}
		last = v
	}
	// Each of the relay's own events was told.
	told := 0
	must(t, lab.WaitFor(lab.Patience, "all of the relay's events", func() (bool, error) {
		told = 0
		for _, v := range o.All() {
			if v.TLS != nil {
				told++
			}
		}
		return told >= len(all), nil
	}))
	if told != len(all) {
		t.Errorf("%d events were told of %d", told, len(all))
	}
	must(t, o.Close())
}
