// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
)

// Dump is a map's content, as JSON has it.
type Dump struct {
	Map     string      `json:"map"`
	More    bool        `json:"more"` // there are entries besides
	Entries []DumpEntry `json:"entries"`
}

// DumpEntry has numbers as they are, and texts and addresses as people read them.
type DumpEntry struct {
	Key   any `json:"key"`
	Value any `json:"value"`
}

// maxDumped is how many entries of a map are shown.
const maxDumped = 2000

// dumpers are the maps that may be shown to others: these, and no map that is new.
var dumpers = map[string]func(*ebpf.Map, *Dump) error{
	"accel_counters":    dumpSum[uint64, bpf.AccelCounters],
	"accel_info":        dumpAll[uint32, bpf.AccelInfo],
	"agents":            dumpAll[uint64, uint8],
	"attach_times":      dumpAll[uint32, bpf.AttachTimes],
	"container_info":    dumpAll[uint64, bpf.ContainerInfo],
	"containers":        dumpAll[uint64, bpf.Container],
	"counters":          dumpSum[uint64, bpf.Counters],
	"endpoint_counters": dumpSum[uint32, bpf.EndpointCounters],
	"endpoints":         dumpAll[uint32, bpf.Endpoint],
	"event_control":     dumpAll[uint32, bpf.EventControl],
	"executables":       dumpAll[bpf.Executable, uint32],
	"flows":             dumpAll[bpf.Seen, bpf.SeenCount],
	"host_addrs":        dumpAll[bpf.Addr, uint8],
	"node_addrs":        dumpAll[bpf.Addr, uint8],
	"origdst":           dumpAll[bpf.Tuple, bpf.Route],
	"pending":           dumpAll[uint64, uint64],
	"pod_addrs":         dumpAll[bpf.PodAddr, uint8],
	"pod_counters":      dumpSum[uint64, bpf.Counters],
	"pod_info":          dumpAll[uint64, bpf.PodInfo],
	"pods":              dumpAll[uint64, bpf.Pod],
	"policies":          dumpAll[uint32, bpf.Policy],
	"policy_info":       dumpAll[uint32, bpf.PolicyInfo],
	"prefixes":          dumpAll[bpf.PrefixKey, uint32],
	"rule_info":         dumpAll[bpf.RuleInfoKey, bpf.RuleInfo],
	"rules":             dumpAll[bpf.RuleKey, uint32],
	"seen":              dumpAll[bpf.Seen, bpf.SeenCount],
	"seen_unix":         dumpAll[bpf.SeenUnix, bpf.SeenCount],
	"subjects":          dumpAll[bpf.SubjectKey, uint32],
}

// secretMaps are not opened for more than what they are made of.
var secretMaps = map[string]string{
	"tls_rings":   "has the traffic keys that apps hand over",
	"tls_targets": "has the ports by which sidecars get at sessions",
	"pod_slots":   "has the tokens by which a pod's packets are told from others'",
}

// notDumped are the other maps that are left out, and why.
var notDumped = map[string]string{
	"tls_policies":  "has what policies say about paths and headers; their files are there without secrets",
	"unix_rules":    "has patterns as automata; the policies' files have them as text",
	"policy_slots":  "is in policy_info",
	"device_progs":  "has programs, which are among the pins",
	"event_rings":   "has what passes by while somebody reads it",
	"event_budgets": "changes with each event",
	"conns":         "has connections that end at any time",
	"ends":          "has sockets", "links": "has sockets", "listeners": "has sockets", "socks": "has sockets",
	"identity": "is in containers",
}

// LeftOut returns the maps that [DumpMaps] does not show, and why.
func LeftOut() map[string]string {
	all := map[string]string{}
	for _, list := range []map[string]string{secretMaps, notDumped} {
		for name, why := range list {
			all[name] = why
		}
	}
	return all
}

// DumpMaps calls f with each of the maps of the state that have no secrets. It takes no
// lock, and changes nothing. What cannot be read is in the error, and does not end it;
// an error of f's does.
func DumpMaps(ctx context.Context, state string, f func(Dump) error) error {
	var errs []error
	paths, err := filepath.Glob(filepath.Join(VersionDir(state), "*", "*"))
	if err != nil {
		return fmt.Errorf("list maps: %w", err)
	}
	for _, path := range paths {
		d := Dump{Map: filepath.Base(path), Entries: []DumpEntry{}}
		dumper := dumpers[d.Map]
		if sub := filepath.Base(filepath.Dir(path)); dumper == nil || sub != "maps" && sub != "endpoints" {
			continue
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			errs = append(errs, fmt.Errorf("open map %s: %w", d.Map, err))
			continue
		}
		if err := errors.Join(dumper(m, &d), m.Close()); err != nil {
			errs = append(errs, fmt.Errorf("read map %s: %w", d.Map, err))
			d.More = true
		}
		if err := f(d); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

func dumpAll[K, V any](m *ebpf.Map, d *Dump) error {
	var k K
	var v V
	iter := m.Iterate()
	for iter.Next(&k, &v) {
		if !d.add(plain(k), plain(v)) {
			return nil
		}
	}
	return iter.Err()
}

// dumpSum adds up what each CPU has counted: structs of one array.
func dumpSum[K any, V bpf.AccelCounters | bpf.Counters | bpf.EndpointCounters](m *ebpf.Map, d *Dump) error {
	var k K
	var perCPU []V
	iter := m.Iterate()
	for iter.Next(&k, &perCPU) {
		var sum []uint64
		for i := range perCPU {
			counts := reflect.ValueOf(perCPU[i]).FieldByName("V")
			for j := range counts.Len() {
				if i == 0 {
					sum = append(sum, 0)
				}
				sum[j] += counts.Index(j).Uint()
			}
		}
		if !d.add(plain(k), sum) {
			return nil
		}
	}
	return iter.Err()
}

func (d *Dump) add(k, v any) bool {
	d.More = len(d.Entries) == maxDumped
	if !d.More {
		d.Entries = append(d.Entries, DumpEntry{k, v})
	}
	return !d.More
}

// textLen is how long an array of bytes is that has text.
const textLen = 16

// plain makes of a struct of abi.h what people can read: text must not be numbers, in
// which nobody finds what it has to hide.
func plain(v any) any {
	if a, ok := v.(bpf.Addr); ok {
		return netip.AddrFrom16(a.B).Unmap()
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Struct:
		if a := r.FieldByName("B"); r.NumField() == 2 && a.IsValid() && a.Len() == 16 { // an object's own type of address
			return netip.AddrFrom16(a.Interface().([16]byte)).Unmap()
		}
		fields := map[string]any{}
		for i := range r.NumField() {
			f := r.Type().Field(i)
			padding := f.Name == "Unused" || f.Name == "Reserved" && f.Type != reflect.TypeFor[[bpf.MaxReserved]bpf.Ports]()
			if f.IsExported() && !padding {
				fields[strings.ToLower(f.Name[:1])+f.Name[1:]] = plain(r.Field(i).Interface())
			}
		}
		return fields
	case reflect.Array:
		if r.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, r.Len())
			reflect.Copy(reflect.ValueOf(b), r)
			if len(b) == 6 {
				return net.HardwareAddr(b).String()
			}
			if len(b) >= textLen {
				return bpf.CString(b)
			}
		}
		list := make([]any, r.Len())
		for i := range list {
			list[i] = plain(r.Index(i).Interface())
		}
		return list
	}
	return v
}
