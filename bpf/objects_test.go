// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"sidegate/bpf/verdicts"
)

func nodeSpec(t testing.TB) *ebpf.CollectionSpec { return parse(t, loadNode) }
func podSpec(t testing.TB) *ebpf.CollectionSpec  { return parse(t, loadPod) }

func parse(t testing.TB, load func() (*ebpf.CollectionSpec, error)) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func names[V any](m map[string]V) []string {
	var all []string
	for name := range m {
		if !strings.HasPrefix(name, ".") { // .rodata and such
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// The fixture is the proof that all programs load; this, that it has all.
func TestProgramsLoad(t *testing.T) {
	f := loaded(t)
	if got, want := f.node.ProgramNames(), names(nodeSpec(t).Programs); !slices.Equal(got, want) {
		t.Errorf("the node has the programs %q, its object %q", got, want)
	}
	fields := f.pod.Fields()
	if got, want := names(fields), names(podSpec(t).Programs); !slices.Equal(got, want) {
		t.Errorf("a pod has the programs %q, its object %q", got, want)
	}
	for name, p := range fields {
		if *p == nil || (*p).FD() < 0 {
			t.Errorf("program %s is not loaded", name)
		}
	}
	for i, name := range []string{nodeProgSgDevice, nodeProgSgLoopback, nodeProgSgLoopbackOut} { // enum sg_device_prog
		p, err := f.node.Programs[name].Info()
		if err != nil {
			t.Fatal(err)
		}
		want, _ := p.ID()
		var got uint32
		if err := f.maps.DeviceProgs.Lookup(uint32(i), &got); err != nil {
			t.Errorf("look up device program %d: %v", i, err)
		} else if got != uint32(want) {
			t.Errorf("device program %d is program %d, want %s, which is %d", i, got, name, want)
		}
	}
}

// A map that LoadPod does not replace would be the pod's own, and empty.
func TestPodProgramsUseTheNodesMaps(t *testing.T) {
	f := loaded(t)
	var shared []ebpf.MapID
	for name, m := range f.node.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		shared = append(shared, id)
	}
	for name, p := range f.pod.Fields() {
		info, err := (*p).Info()
		if err != nil {
			t.Fatal(err)
		}
		ids, _ := info.MapIDs()
		var own []string
		for _, id := range ids {
			if slices.Contains(shared, id) {
				continue
			}
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				t.Fatal(err)
			}
			own = append(own, m.String())
			m.Close()
		}
		// The slot's number is in .rodata.
		if len(own) != 1 || !strings.Contains(own[0], ".rodata") {
			t.Errorf("program %s has maps of its own: %q", name, own)
		}
	}
}

func TestPodProgramsOfManySlots(t *testing.T) {
	f := loaded(t)
	for _, slot := range []uint32{0, 1, f.maps.PodSlots.MaxEntries() - 1} {
		p, err := LoadPod(f.maps, slot)
		if err != nil {
			t.Fatalf("slot %d: %v", slot, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	a, b := NewSlot(1), NewSlot(1)
	if a.NetnsCookie != 1 || a.Token == 0 || b.Token == 0 || a.Token == b.Token {
		t.Errorf("slots are %+v and %+v", a, b)
	}
}

// A slot beyond the map is nobody's: nothing passes its devices.
func TestPodProgramsOfNoSlot(t *testing.T) {
	f := loaded(t)
	p, err := LoadPod(f.maps, f.maps.PodSlots.MaxEntries())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for name, prog := range map[string]*ebpf.Program{"device": p.Device, "loopback": p.Loopback, "loopback out": p.LoopbackOut, "host": p.Host} {
		if got := runSkb(t, prog, arp(pod4)); got != devDrop {
			t.Errorf("%s returns %d, want drop", name, got)
		}
	}
	if got := lookup(t, p.Lookup, &skLookup{Family: 2, Protocol: 6, LocalPort: 80}); got != skDrop {
		t.Errorf("lookup returns %d, want drop", got)
	}
}

func TestMapNames(t *testing.T) {
	got := MapNames()
	if !slices.IsSorted(got) {
		t.Errorf("not sorted: %q", got)
	}
	spec := nodeSpec(t)
	if want := names(spec.Maps); !slices.Equal(got, want) {
		t.Errorf("MapNames is %q, the object has %q", got, want)
	}
	// The maps that a pod's programs are given are the node's.
	for name, m := range podSpec(t).Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		n, ok := spec.Maps[name]
		if !ok {
			t.Errorf("map %s of the pod object is not in the node object", name)
			continue
		}
		if m.Type != n.Type || m.KeySize != n.KeySize || m.ValueSize != n.ValueSize || m.MaxEntries != n.MaxEntries || m.Flags != n.Flags {
			t.Errorf("map %s is %v in the pod object and %v in the node object", name, m, n)
		}
	}
}

func TestMaps(t *testing.T) {
	f := loaded(t)
	fields := f.maps.fields()
	if n := reflect.TypeFor[Maps]().NumField(); len(fields) != n {
		t.Errorf("%d of %d maps are opened", len(fields), n)
	}
	for name, m := range fields {
		if !slices.Contains(MapNames(), name) {
			t.Errorf("%s is no map", name)
		}
		if *m == nil {
			t.Errorf("map %s is not open", name)
		}
	}
	// The error names the map, and what was open is closed: see TestMain.
	_, err := OpenMaps(func(name string) (*ebpf.Map, error) {
		if name == nodeMapRules {
			return nil, ebpf.ErrKeyNotExist
		}
		return f.node.Maps[name].Clone()
	})
	if err == nil || !strings.Contains(err.Error(), nodeMapRules) {
		t.Errorf("the error is %v", err)
	}
}

func TestHooks(t *testing.T) {
	spec := nodeSpec(t)
	hooks := slices.Concat(AllContainerHooks(), GuardHooks(), RelayHooks())
	seen := []string{nodeProgSgDevice, nodeProgSgLoopback, nodeProgSgLoopbackOut, EmitProgram}
	for _, h := range hooks {
		p, ok := spec.Programs[h.Program]
		if !ok {
			t.Errorf("there is no program %s", h.Program)
			continue
		}
		if p.AttachType != h.Attach {
			t.Errorf("program %s is for %v, its hook is %v", h.Program, p.AttachType, h.Attach)
		}
		if slices.Contains(seen, h.Program) {
			t.Errorf("program %s is there twice", h.Program)
		}
		seen = append(seen, h.Program)
	}
	slices.Sort(seen)
	if want := names(spec.Programs); !slices.Equal(seen, want) {
		t.Errorf("hooks and devices have %q, the object has %q", seen, want)
	}
	var attach []ebpf.AttachType
	for _, h := range AllContainerHooks() {
		if h.Program == nodeProgSgHold || h.Program == nodeProgSgTlsSetsockopt { // beside others
			continue
		}
		if slices.Contains(attach, h.Attach) {
			t.Errorf("a container has two programs for %v", h.Attach)
		}
		attach = append(attach, h.Attach)
	}
	for _, h := range GuardHooks() {
		if !slices.Contains(attach, h.Attach) && h.Attach != ebpf.AttachCGroupInetSockCreate {
			t.Errorf("the guard is on %v, which no container's program is on", h.Attach)
		}
	}
	for name, want := range map[string]ebpf.AttachType{podProgSgPodLookup: ebpf.AttachSkLookup} {
		if got := podSpec(t).Programs[name].AttachType; got != want {
			t.Errorf("program %s is for %v, want %v", name, got, want)
		}
	}
}

// Whom a policy binds has the hooks that enforce it, and nobody has more, since
// each has its cost.
func TestHooksOfRoles(t *testing.T) {
	bind := []string{"sg_bind4", "sg_bind6", "sg_post_bind4", "sg_post_bind6"}
	judge := []string{"sg_connect4", "sg_connect6", "sg_sendmsg4", "sg_sendmsg6", "sg_egress", "sg_ingress"}
	names := []string{"sg_getpeername4", "sg_getpeername6"}
	dns := []string{"sg_recvmsg4", "sg_recvmsg6"}
	accelerate := []string{"sg_setsockopt", "sg_hold"}
	sockName := []string{"sg_getsockname4", "sg_getsockname6"}
	for _, c := range []struct {
		name   string
		roles  []Role
		policy Policy
		want   [][]string
	}{
		{"app", []Role{RoleApp, RoleDenied, RoleDead, unknownRole}, Policy{}, [][]string{{"sg_sockops"}, bind, judge, names}},
		{"app, DNS", []Role{RoleApp, RoleDenied, RoleDead, unknownRole}, Policy{Dns: 15053}, [][]string{{"sg_sockops"}, bind, judge, names, dns}},
		{"app, rules", []Role{RoleApp, RoleDenied}, Policy{Flags: PolicyRuled}, [][]string{{"sg_sockops"}, bind, judge, names}},
		{"sidecar", []Role{RoleSidecar}, Policy{Dns: 15053}, [][]string{{"sg_sockops", "sg_getsockopt"}}},
		{"sidecar, getsockname", []Role{RoleSidecar}, Policy{Flags: PolicySockName}, [][]string{{"sg_sockops", "sg_getsockopt"}, sockName}},
		{"sidecar, rules", []Role{RoleSidecar}, Policy{Flags: PolicyRuled}, [][]string{{"sg_sockops", "sg_getsockopt"}, judge}},
		{"sidecar, all", []Role{RoleSidecar}, Policy{Flags: PolicySockName | PolicyRuled, Dns: 15053}, [][]string{{"sg_sockops", "sg_getsockopt"}, sockName, judge}},
		{"sidecar, audit", []Role{RoleSidecar}, Policy{Flags: PolicyAudit}, [][]string{{"sg_sockops", "sg_getsockopt"}, judge}},
		{"app, accelerated", []Role{RoleApp}, Policy{Flags: PolicyAccelerate}, [][]string{{"sg_sockops"}, bind, judge, names, accelerate}},
		{"sidecar, accelerated", []Role{RoleSidecar}, Policy{Flags: PolicyAccelerate}, [][]string{{"sg_sockops", "sg_getsockopt"}, accelerate}},
		{"exempt, accelerated", []Role{RoleExempt}, Policy{Flags: PolicyAccelerate}, [][]string{bind}},
		{"exempt, audit", []Role{RoleExempt}, Policy{Flags: PolicyAudit}, [][]string{bind, judge}},
		{"exempt", []Role{RoleExempt}, Policy{Dns: 15053, Flags: PolicySockName}, [][]string{bind}},
		{"exempt, rules", []Role{RoleExempt}, Policy{Flags: PolicyRuled}, [][]string{bind, judge}},
	} {
		for _, role := range c.roles {
			// What decides nothing of this.
			for _, flags := range []uint32{0, PolicyNonTCP | PolicyNames | PolicyPrefixes | PolicyWorld} {
				policy := c.policy
				policy.Flags |= flags
				var got []string
				for _, h := range ContainerHooks(role, policy) {
					if !slices.Contains(AllContainerHooks(), h) {
						t.Errorf("%s: hook %v is not in AllContainerHooks", c.name, h)
					}
					got = append(got, h.Program)
				}
				want := append([]string{"sg_sock_create"}, slices.Concat(c.want...)...)
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%s, role %d, flags %d: the programs are %q, want %q", c.name, role, policy.Flags, got, want)
				}
			}
		}
	}
}

// goName is a C name as Go's generator writes it.
func goName(c string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(c, "_") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}

// wantLayout checks that Go's type has the size and offsets of C's.
func wantLayout(t *testing.T, where string, c btf.Type, g reflect.Type) {
	t.Helper()
	c = btf.UnderlyingType(c)
	size, err := btf.Sizeof(c)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	if uintptr(size) != g.Size() {
		t.Errorf("%s has %d bytes in C and %d in Go", where, size, g.Size())
	}
	switch c := c.(type) {
	case *btf.Struct:
		fields := map[string]reflect.StructField{}
		for i := range g.NumField() {
			if f := g.Field(i); f.Name != "_" {
				fields[f.Name] = f
			}
		}
		if len(fields) != len(c.Members) {
			t.Errorf("%s has %d members in C and %d in Go", where, len(c.Members), len(fields))
		}
		for _, m := range c.Members {
			f, ok := fields[goName(m.Name)]
			if !ok {
				t.Errorf("%s has no member %s in Go", where, m.Name)
				continue
			}
			if uintptr(m.Offset.Bytes()) != f.Offset {
				t.Errorf("%s.%s is at %d in C and at %d in Go", where, m.Name, m.Offset.Bytes(), f.Offset)
			}
			wantLayout(t, where+"."+m.Name, m.Type, f.Type)
		}
	case *btf.Array:
		if g.Kind() != reflect.Array || int(c.Nelems) != g.Len() {
			t.Errorf("%s is an array of %d in C and %v in Go", where, c.Nelems, g)
			return
		}
		wantLayout(t, where+"[]", c.Type, g.Elem())
	case *btf.Int:
		if signed := g.Kind() >= reflect.Int && g.Kind() <= reflect.Int64; signed != (c.Encoding == btf.Signed) {
			t.Errorf("%s is %v in C and %v in Go", where, c, g)
		}
	case *btf.Enum:
		if g.Kind() != reflect.Uint32 {
			t.Errorf("%s is an enum in C and %v in Go", where, g)
		}
	default:
		t.Errorf("%s is %v in C, which this test does not know", where, c)
	}
}

// Every struct that maps hold has one layout in C and Go, in both objects.
func TestLayouts(t *testing.T) {
	types := map[string]reflect.Type{
		"sg_addr":           reflect.TypeFor[Addr](),
		"sg_attach_times":   reflect.TypeFor[AttachTimes](),
		"sg_container":      reflect.TypeFor[Container](),
		"sg_container_info": reflect.TypeFor[ContainerInfo](),
		"sg_counters":       reflect.TypeFor[Counters](),
		"sg_event":          reflect.TypeFor[Event](),
		"sg_event_budget":   reflect.TypeFor[EventBudget](),
		"sg_event_control":  reflect.TypeFor[EventControl](),
		"sg_event_source":   reflect.TypeFor[EventSource](),
		"sg_event_text":     reflect.TypeFor[EventText](),
		"sg_emit_args":      reflect.TypeFor[EmitArgs](),
		"sg_executable":     reflect.TypeFor[Executable](),
		"sg_listener_key":   reflect.TypeFor[ListenerKey](),
		"sg_orig":           reflect.TypeFor[nodeSgOrig](),
		"sg_pod":            reflect.TypeFor[Pod](),
		"sg_pod_addr":       reflect.TypeFor[PodAddr](),
		"sg_pod_info":       reflect.TypeFor[PodInfo](),
		"sg_policy":         reflect.TypeFor[Policy](),
		"sg_policy_info":    reflect.TypeFor[PolicyInfo](),
		"sg_ports":          reflect.TypeFor[Ports](),
		"sg_prefix_key":     reflect.TypeFor[PrefixKey](),
		"sg_route":          reflect.TypeFor[Route](),
		"sg_rule_info":      reflect.TypeFor[RuleInfo](),
		"sg_rule_info_key":  reflect.TypeFor[RuleInfoKey](),
		"sg_rule_key":       reflect.TypeFor[RuleKey](),
		"sg_seen":           reflect.TypeFor[Seen](),
		"sg_seen_count":     reflect.TypeFor[SeenCount](),
		"sg_seen_unix":      reflect.TypeFor[SeenUnix](),
		"sg_accel_counters": reflect.TypeFor[AccelCounters](),
		"sg_accel_info":     reflect.TypeFor[AccelInfo](),
		"sg_conn_key":       reflect.TypeFor[ConnKey](),
		"sg_slot":           reflect.TypeFor[Slot](),
		"sg_sock":           reflect.TypeFor[nodeSgSock](),
		"sg_subject_key":    reflect.TypeFor[SubjectKey](),
		"sg_tls_keys":       reflect.TypeFor[TLSKeys](),
		"sg_tls_policy":     reflect.TypeFor[TLSPolicy](),
		"sg_tls_policy_key": reflect.TypeFor[TLSPolicyKey](),
		"sg_tls_ring":       reflect.TypeFor[TLSRing](),
		"sg_tls_target":     reflect.TypeFor[TLSTarget](),
		"sg_tuple":          reflect.TypeFor[nodeSgTuple](),
		"sg_unix_key":       reflect.TypeFor[UnixKey](),
		"sg_unix_rule":      reflect.TypeFor[UnixRule](),
	}
	node, pod := nodeSpec(t), podSpec(t)
	for name, g := range types {
		var c *btf.Struct
		if err := node.Types.TypeByName(name, &c); err != nil {
			t.Errorf("node object: %v", err)
			continue
		}
		wantLayout(t, name, c, g)
		if err := pod.Types.TypeByName(name, &c); err == nil {
			wantLayout(t, "pod object: "+name, c, g)
		}
	}
	types["sg_conn"] = nil // user space never looks into it
	// No map holds a struct that is not checked.
	for name, m := range node.Maps {
		for _, of := range []btf.Type{m.Key, m.Value} {
			if s, ok := of.(*btf.Struct); ok {
				if _, checked := types[s.Name]; checked {
					continue
				}
				t.Errorf("map %s holds struct %s, which has no type in Go", name, s.Name)
			}
		}
	}
}

func enumValues(t *testing.T, spec *ebpf.CollectionSpec, name string) map[string]uint64 {
	t.Helper()
	var e *btf.Enum
	if err := spec.Types.TypeByName(name, &e); err != nil {
		t.Fatal(err)
	}
	values := map[string]uint64{}
	for _, v := range e.Values {
		values[v.Name] = v.Value
	}
	return values
}

func TestEnums(t *testing.T) {
	spec := nodeSpec(t)
	roles := map[string]uint64{
		"SG_ROLE_DEAD": uint64(RoleDead), "SG_ROLE_APP": uint64(RoleApp), "SG_ROLE_SIDECAR": uint64(RoleSidecar),
		"SG_ROLE_EXEMPT": uint64(RoleExempt), "SG_ROLE_DENIED": uint64(RoleDenied), "SG_ROLE_RELAY": uint64(RoleRelay),
	}
	if got := enumValues(t, spec, "sg_role"); !reflect.DeepEqual(got, roles) {
		t.Errorf("enum sg_role is %v in C, %v in Go", got, roles)
	}
	// Those that no map holds, and numbers that are in no enum.
	for name, want := range map[string]map[string]uint64{
		"sg_dir": {"SG_DIR_EGRESS": dirEgress, "SG_DIR_INGRESS": dirIngress},
		"sg_subject_id": {
			"SG_SUBJECT_POD": subjectPod, "SG_SUBJECT_APP": subjectApp, "SG_SUBJECT_SIDECAR": subjectSidecar,
			"SG_SUBJECT_INIT": subjectInit, "SG_SUBJECT_NONE": subjectNone, "SG_SUBJECT_ROLES": uint64(len(Policy{}.Subjects)),
			"SG_PEER_WORLD": peerWorld, "SG_PEER_HOST": peerHost, "SG_CLASS_FIRST": classFirst,
		},
		"sg_subject_flags": {
			"SG_SUBJECT_RULED": uint64(SubjectRuled), "SG_SUBJECT_ICMP": uint64(SubjectICMP), "SG_SUBJECT_ICMPV6": uint64(SubjectICMPv6),
			"SG_SUBJECT_SCTP": uint64(SubjectSCTP), "SG_SUBJECT_PROCESSES": uint64(SubjectProcesses), "SG_SUBJECT_UNIX": uint64(SubjectUnix),
		},
		"sg_policy_flags": {
			"SG_POLICY_NON_TCP": uint64(PolicyNonTCP), "SG_POLICY_SOCKNAME": uint64(PolicySockName), "SG_POLICY_AUDIT": uint64(PolicyAudit),
			"SG_POLICY_RULED": uint64(PolicyRuled), "SG_POLICY_NAMES": uint64(PolicyNames), "SG_POLICY_PREFIXES": uint64(PolicyPrefixes),
			"SG_POLICY_WORLD": uint64(PolicyWorld), "SG_POLICY_FILES": uint64(PolicyFiles), "SG_POLICY_ADMIN": uint64(PolicyAdmin),
			"SG_POLICY_ACCELERATE": uint64(PolicyAccelerate), "SG_POLICY_ACCELERATE_NODE": uint64(PolicyAccelerateNode),
			"SG_POLICY_ACCELERATE_UNSEEN": uint64(PolicyAccelerateUnseen), "SG_POLICY_TLS_DEFERRED": uint64(PolicyTLSDeferred),
		},
		"sg_container_flags": {
			"SG_CONTAINER_ACCELERATE": uint64(ContainerAccelerate), "SG_CONTAINER_KTLS": uint64(ContainerKTLS),
			"SG_CONTAINER_IOURING": uint64(ContainerIOUring),
		},
		"sg_sock_flags": {
			"SG_SOCK_REDIRECTED": uint64(SockRedirected), "SG_SOCK_DNS": uint64(SockDNS), "SG_SOCK_PASSIVE": uint64(SockPassive),
			"SG_SOCK_ORIGDST": uint64(SockOrigdst), "SG_SOCK_RELAYED": uint64(SockRelayed), "SG_SOCK_SENT": sockSent, "SG_SOCK_CALLED": sockCalled, "SG_SOCK_AGENT": sockAgent, "SG_SOCK_PLAIN": sockPlain,
		},
		"sg_device_prog": {
			"SG_DEVICE_EGRESS": 0, "SG_DEVICE_LOOPBACK": 1, "SG_DEVICE_LOOPBACK_OUT": 2,
			"SG_DEVICE_PROGS": uint64(spec.Maps[nodeMapDeviceProgs].MaxEntries),
		},
		"sg_limits": {
			"SG_LIMIT_ABI": ABI, "SG_LIMIT_PENDING": MaxPending, "SG_LIMIT_RESERVED": uint64(MaxReserved),
			"SG_LIMIT_LISTENER_SLOTS": ListenerSlots, "SG_LIMIT_NAME": uint64(NameLen),
			"SG_LIMIT_PREFIX_BITS": prefixBits, "SG_LIMIT_RULE_BITS": ruleBits, "SG_LIMIT_RULE_PROTO_BITS": ruleProtoBits,
		},
	} {
		got, err := verdicts.Enum(name)
		if err != nil {
			t.Error(err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("enum %s is %v in C, %v in Go", name, got, want)
		}
	}
	if RoleDead != 0 {
		t.Error("zeroed memory is not dead")
	}
	max := func(name string) uint32 { return spec.Maps[name].MaxEntries }
	pods := max(nodeMapPods)
	if got := max(nodeMapListeners); got != pods*4*ListenerSlots {
		t.Errorf("there are %d listeners of %d pods, which is not %d of each of four ports", got, pods, ListenerSlots)
	}
	if got := max(nodeMapPodSlots); got != pods {
		t.Errorf("there are %d slots, and %d pods", got, pods)
	}
	// A revision is written before the one that it replaces goes.
	if slots, got := max(nodeMapPolicySlots), max(nodeMapPolicies); got < 2*slots {
		t.Errorf("there are %d policies at a time, and %d revisions", slots, got)
	}
	if got := spec.Maps[nodeMapPolicySlots].Flags; got&unix.BPF_F_MMAPABLE == 0 {
		t.Errorf("user space cannot map the policies' slots: flags %#x", got)
	}
	// A name and a role are never one number, nor a class and a kind of peer.
	if subjectName <= uint64(classFirst)+uint64(max(nodeMapPrefixes)) {
		t.Error("a class may be a name")
	}
}

func TestCounterInfos(t *testing.T) {
	values := enumValues(t, nodeSpec(t), "sg_counter")
	first, size := values["SG_DROP_FIRST"], values["SG_COUNTERS"]
	if first == 0 || size != uint64(len(Counters{}.V)) {
		t.Fatalf("the first drop is %d, there are %d counters", first, size)
	}
	infos := map[Counter]CounterInfo{}
	names := map[string]bool{}
	texts := map[string]bool{}
	last := -1
	for _, i := range CounterInfos() {
		if int(i.Counter) <= last {
			t.Errorf("%s is out of order", i.Name)
		}
		last = int(i.Counter)
		infos[i.Counter] = i
		if names[i.Name] || texts[i.Text] || i.Text == "" {
			t.Errorf("name or text of counter %d, %q, is not unique", i.Counter, i.Name)
		}
		names[i.Name], texts[i.Text] = true, true
		if i.Name == "" || strings.Trim(i.Name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("counter %d has the name %q", i.Counter, i.Name)
		}
		if i.Drop != (uint64(i.Counter) >= first) {
			t.Errorf("%s says drop: %v", i.Name, i.Drop)
		}
		if i.Counter.String() != i.Name {
			t.Errorf("%s prints as %s", i.Name, i.Counter)
		}
	}
	for name, v := range values {
		if name == "SG_DROP_FIRST" || name == "SG_COUNTERS" {
			continue
		}
		i, ok := infos[Counter(v)]
		if !ok {
			t.Errorf("%s has no CounterInfo", name)
		}
		if drop := strings.HasPrefix(name, "SG_DROP_"); drop != i.Drop {
			t.Errorf("%s has Drop: %v", name, i.Drop)
		}
		if v >= size {
			t.Errorf("%s is %d, which is beyond the counters", name, v)
		}
		delete(infos, Counter(v))
	}
	for c := range infos {
		t.Errorf("counter %d is not in the enum", c)
	}
	if got := Counter(size).String(); got != fmt.Sprint("counter_", size) {
		t.Errorf("a counter without a name prints as %s", got)
	}
}

func TestAccelCounterInfos(t *testing.T) {
	values := enumValues(t, nodeSpec(t), "sg_accel_counter")
	first, size := values["SG_ACCEL_PLAIN_FIRST"], values["SG_ACCEL_COUNTERS"]
	infos := AccelCounterInfos()
	if size != uint64(len(AccelCounters{}.V)) || size != uint64(len(infos)) {
		t.Fatalf("there are %d counters, room for %d, and words for %d", size, len(AccelCounters{}.V), len(infos))
	}
	for name, v := range values {
		word, plain := strings.CutPrefix(name, "SG_ACCEL_PLAIN_")
		if !plain {
			word = strings.TrimPrefix(name, "SG_ACCEL_")
		}
		if word == "FIRST" || word == "COUNTERS" {
			continue
		}
		if i := infos[v]; i.Name != strings.ToLower(word) || i.Plain != plain || i.Plain != (v >= first) || i.Help == "" {
			t.Errorf("%s is described as %+v", name, i)
		}
	}
}
