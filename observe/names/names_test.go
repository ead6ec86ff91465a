// SPDX-License-Identifier: Apache-2.0

package names_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"sidegate/observe/names"
)

var one, two, three = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::3")

// The first source that knows an address has the word, one that fails takes nothing from the others, and what is not known is asked for again.
func TestNames(t *testing.T) {
	var asked atomic.Int32
	first := names.Source{List: func(context.Context) (names.Known, error) {
		known := names.Known{Addresses: map[netip.Addr]string{one: "first"}, Pods: map[string]string{"id": "shop"}}
		if asked.Add(1) > 1 {
			known.Addresses[three] = "late"
		}
		return known, nil
	}}
	fails := names.Source{List: func(context.Context) (names.Known, error) {
		return names.Known{Addresses: map[netip.Addr]string{two: "nonsense"}}, errors.New("there is nobody")
	}}
	second := names.Source{List: func(context.Context) (names.Known, error) {
		return names.Known{Addresses: map[netip.Addr]string{one: "second", two: "second"}}, nil
	}}
	n := names.New(t.Context(), []names.Source{first, fails, second})
	for addr, want := range map[netip.Addr]string{one: "first", two: "second", netip.MustParseAddr("::ffff:192.0.2.2"): "second"} {
		if got := n.Of(addr); got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}
	if got := n.Pod("id"); got != "shop" {
		t.Errorf("the pod is %q", got)
	}
	for deadline := time.Now().Add(time.Minute); n.Of(three) != "late"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not known after %d questions", three, asked.Load())
		}
	}
	if got := asked.Load(); got != 2 {
		t.Errorf("it was asked %d times", got)
	}
}

// A source that does not answer holds up nobody.
func TestNamesPatience(t *testing.T) {
	stuck := names.Source{List: func(ctx context.Context) (names.Known, error) {
		<-ctx.Done()
		return names.Known{}, ctx.Err()
	}}
	known := names.Source{List: func(context.Context) (names.Known, error) {
		return names.Known{Addresses: map[netip.Addr]string{one: "one"}}, nil
	}}
	if got := names.New(t.Context(), []names.Source{stuck, known}).Of(one); got != "one" {
		t.Errorf("%s is %q", one, got)
	}
}

func TestNobodyToAsk(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	if known, err := names.Docker(t.Context(), socket); err == nil {
		t.Errorf("Docker says %v", known)
	}
	if known, err := names.CRI(t.Context(), socket); err == nil {
		t.Errorf("CRI says %v", known)
	}
}
