// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
)

// TestPinsAndMaps: all that is pinned is listed and shown, but for what has secrets,
// while another process holds the lock.
func TestPinsAndMaps(t *testing.T) {
	m, _ := newTLSPod(t, tlsInspect)
	s, err := cgroups.Open(m.state)
	must(t, err)
	defer s.Close()
	pins, err := cgroups.ReadPins(context.Background(), m.state)
	must(t, err)
	kinds := map[string]int{}
	for _, p := range pins {
		kinds[p.Kind]++
		switch {
		case p.ID == 0 || p.Type == "":
			t.Errorf("%s is %+v", p.Path, p)
		case p.Kind == "link" && (p.Link.Program == 0 || p.Link.Target == ""):
			t.Errorf("%s is attached to %+v", p.Path, p.Link)
		case p.Kind == "program" && len(p.Program.Tag) != 16:
			t.Errorf("%s is %+v", p.Path, p.Program)
		case strings.HasSuffix(p.Path, "maps/containers") && (p.Map.Entries != 2 || p.Map.Capacity < 1000):
			t.Errorf("%s is %+v", p.Path, p.Map)
		case strings.HasSuffix(p.Path, "maps/tls_rings") && p.Map.Entries != -1:
			t.Errorf("tls_rings was read: %+v", p.Map)
		}
	}
	if kinds["map"] < len(bpf.MapNames()) || kinds["program"] < 20 || kinds["link"] < 20 {
		t.Errorf("there are %v", kinds)
	}
	dumps := map[string]string{}
	must(t, cgroups.DumpMaps(context.Background(), m.state, func(d cgroups.Dump) error {
		b, err := json.Marshal(d)
		dumps[d.Map] = string(b)
		return err
	}))
	for name, want := range map[string]string{
		"container_info": `"name":"app"`,
		"pod_addrs":      `"addr":"` + pod4 + `"`,
		"pods":           fmt.Sprintf(`"key":%d`, m.att.Cookie),
		"policy_info":    `"nrules":`,
	} {
		if !strings.Contains(dumps[name], want) {
			t.Errorf("nothing of %s in %s: %s", want, name, dumps[name])
		}
	}
	names := append(bpf.MapNames(), "endpoints", "endpoint_counters")
	out := cgroups.LeftOut()
	for _, name := range names {
		_, shown := dumps[name]
		if why, left := out[name]; left == shown && !strings.HasPrefix(name, "endpoint") || left && why == "" {
			t.Errorf("map %s: shown %v, left out %q", name, shown, why)
		}
	}
}

// TestKeysAreNotDumped: they are in the ring, and in nothing that is listed.
func TestKeysAreNotDumped(t *testing.T) {
	m, r := newTLSPod(t, tlsInspect)
	id := m.open(m.app, outside4+":80")
	key := keysOption(0x0304, 51, 40, 'K')
	m.app.Do(t, agent.Request{Op: "setsockopt", ID: id, Level: 282, Opt: 1, Data: key})
	var b strings.Builder
	pins, err := cgroups.ReadPins(context.Background(), m.state)
	must(t, err)
	must(t, json.NewEncoder(&b).Encode(pins))
	must(t, cgroups.DumpMaps(context.Background(), m.state, func(d cgroups.Dump) error { return json.NewEncoder(&b).Encode(d) }))
	if strings.Contains(b.String(), "KKKK") || strings.Contains(b.String(), "75,75,75,75") {
		t.Error("a key is in what is listed")
	}
	if !strings.Contains(b.String(), "container_info") {
		t.Errorf("nothing is listed: %s", b.String())
	}
	r.mu.Lock()
	ring := r.listeners[m.att.Cookie].Keys
	r.mu.Unlock()
	found := ""
	ring.Take(func(h cgroups.HandedOver) { found = string(h.Bytes) })
	if found != key {
		t.Errorf("the ring has %q: the key was never there", found)
	}
}

// TestNothingToList: neither pins nor maps, and no error.
func TestNothingToList(t *testing.T) {
	state := newWorld(t).state
	pins, err := cgroups.ReadPins(context.Background(), state+"-none")
	if err != nil || len(pins) != 0 {
		t.Errorf("pins: %v, %v", pins, err)
	}
	err = cgroups.DumpMaps(context.Background(), state+"-none", func(d cgroups.Dump) error { return fmt.Errorf("map %s", d.Map) })
	if err != nil {
		t.Errorf("maps: %v", err)
	}
}
