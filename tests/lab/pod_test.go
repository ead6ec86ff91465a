// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"sidegate/tests/lab"
)

func TestMain(m *testing.M) {
	os.Exit(lab.RunTests("lab", func() (int, error) { return m.Run(), nil }))
}

// A pod is up, and its app reaches the outside by itself: what Sidegate is there to change.
func TestPod(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	pod, err := l.NewPod(ctx, lab.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sidecar, err := pod.StartSidecar(ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := pod.StartApp(ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		nonce := fmt.Sprintf("nonce-%t", v6)
		r, err := app.Probe(ctx, "http", "--to", l.Outside.HTTP(v6).String(), "--path", lab.PagePath+"?"+nonce, "--contains", lab.PageText)
		if err != nil || !r.OK {
			t.Fatalf("v6=%t: %v %v", v6, r, err)
		}
		requests, err := l.Outside.Requests(nonce)
		if err != nil || len(requests) != 1 || requests[0].Client != r.Addr("local") || requests[0].Client.Addr() != pod.Addr(v6) {
			t.Errorf("v6=%t: requests %v from %v, %v", v6, requests, r.Addr("local"), err)
		}
		in, err := l.Outside.Probe(ctx, "http", "--to", netip.AddrPortFrom(pod.Addr(v6), lab.AppPort).String(), "--contains", "hello from the app")
		if err != nil || !in.OK {
			t.Errorf("v6=%t: inbound: %v, %v", v6, in, err)
		}
	}
	if carried, err := sidecar.Carried(); err != nil || len(carried) != 0 {
		t.Errorf("sidecar carried %v, %v", carried, err)
	}
}
