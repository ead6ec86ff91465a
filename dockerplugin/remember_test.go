// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// What is remembered of a network is all of it; what is damaged is an error, and no network.
func TestMemory(t *testing.T) {
	m := memory(filepath.Join(t.TempDir(), "a", "b"))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(ids ...string) {
		t.Helper()
		if got, err := m.all(); err != nil || !reflect.DeepEqual(got, ids) {
			t.Errorf("it remembers %v, %v, want %v", got, err, ids)
		}
	}
	n := newNetwork(7)
	n.mtu, n.internal = 1400, true
	want()
	if got, err := m.recall(n.id); err != nil || got != nil {
		t.Errorf("of nothing: %v, %v", got, err)
	}
	must(m.forget(n.id))
	must(m.remember(n))
	must(m.remember(n))
	want(n.id)
	if got, err := m.recall(n.id); err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("it recalls %+v, %v, want %+v", got, err, n)
	}
	whole, err := os.ReadFile(m.path(n.id))
	must(err)
	for _, damaged := range []string{"", "x", string(whole[:40]), aliasNetwork + " id=~other\n"} {
		must(os.WriteFile(m.path(n.id), []byte(damaged), 0o644))
		if got, err := m.recall(n.id); err == nil || got != nil {
			t.Errorf("of %q: %v, %v", damaged, got, err)
		}
	}
	must(m.remember(n)) // repaired
	if got, err := m.recall(n.id); err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("then it recalls %+v, %v", got, err)
	}
	must(m.forget(n.id))
	must(m.forget("../../" + n.id))
	want()
}
