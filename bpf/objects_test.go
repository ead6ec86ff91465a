// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
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
	for i, name := range []string{nodeProgSgDevice, nodeProgSgLoopback} { // enum sg_device_prog
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
	for name, prog := range map[string]*ebpf.Program{"device": p.Device, "loopback": p.Loopback, "host": p.Host} {
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
	hooks := append(AllContainerHooks(), GuardHooks()...)
	seen := []string{nodeProgSgDevice, nodeProgSgLoopback}
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

// Whom a role's rules bind has the hooks that enforce them.
func TestHooksOfRoles(t *testing.T) {
	programs := func(role Role, pod Pod) []string {
		var all []string
		for _, h := range ContainerHooks(role, pod) {
			if !slices.Contains(AllContainerHooks(), h) {
				t.Errorf("hook %v is not in AllContainerHooks", h)
			}
			if slices.Contains(all, h.Program) {
				t.Errorf("role %d has program %s twice", role, h.Program)
			}
			all = append(all, h.Program)
		}
		return all
	}
	full := Pod{Dns: 15053, Flags: PodSockName | PodNonTCP}
	enforce := []string{
		"sg_sock_create", "sg_connect4", "sg_connect6", "sg_sendmsg4", "sg_sendmsg6", "sg_bind4", "sg_bind6",
		"sg_post_bind4", "sg_post_bind6", "sg_egress", "sg_ingress", "sg_sockops",
	}
	for _, role := range []Role{RoleApp, RoleDenied, RoleDead, unknownRole} {
		for _, pod := range []Pod{{}, full} {
			got := programs(role, pod)
			for _, name := range enforce {
				if !slices.Contains(got, name) {
					t.Errorf("role %d has no %s", role, name)
				}
			}
			for _, name := range []string{"sg_recvmsg4", "sg_recvmsg6"} {
				if slices.Contains(got, name) != (pod.Dns != 0) {
					t.Errorf("role %d, DNS port %d: %s is there: %v", role, pod.Dns, name, pod.Dns == 0)
				}
			}
			if slices.Contains(got, "sg_getsockopt") {
				t.Errorf("role %d has sg_getsockopt, which is the sidecar's", role)
			}
		}
	}
	for _, pod := range []Pod{{}, full} {
		got := programs(RoleSidecar, pod)
		for _, name := range []string{"sg_sock_create", "sg_sockops", "sg_getsockopt"} {
			if !slices.Contains(got, name) {
				t.Errorf("a sidecar has no %s", name)
			}
		}
		for _, name := range []string{"sg_getsockname4", "sg_getsockname6"} {
			if slices.Contains(got, name) != (pod.Flags&PodSockName != 0) {
				t.Errorf("a sidecar, flags %d: %s is there: %v", pod.Flags, name, pod.Flags&PodSockName == 0)
			}
		}
		for _, name := range []string{"sg_sock_create", "sg_bind4", "sg_bind6", "sg_post_bind4", "sg_post_bind6"} {
			if !slices.Contains(programs(RoleExempt, pod), name) {
				t.Errorf("an exempt container has no %s", name)
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
		"sg_container":      reflect.TypeFor[Container](),
		"sg_container_info": reflect.TypeFor[ContainerInfo](),
		"sg_counters":       reflect.TypeFor[Counters](),
		"sg_listener_key":   reflect.TypeFor[ListenerKey](),
		"sg_orig":           reflect.TypeFor[nodeSgOrig](),
		"sg_pod":            reflect.TypeFor[Pod](),
		"sg_pod_addr":       reflect.TypeFor[PodAddr](),
		"sg_pod_info":       reflect.TypeFor[PodInfo](),
		"sg_ports":          reflect.TypeFor[Ports](),
		"sg_rule":           reflect.TypeFor[Rule](),
		"sg_rule_key":       reflect.TypeFor[RuleKey](),
		"sg_rule_port":      reflect.TypeFor[RulePort](),
		"sg_slot":           reflect.TypeFor[Slot](),
		"sg_sock":           reflect.TypeFor[nodeSgSock](),
		"sg_tuple":          reflect.TypeFor[nodeSgTuple](),
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
	// No map holds a struct that is not checked.
	for name, m := range node.Maps {
		for _, of := range []btf.Type{m.Key, m.Value} {
			if s, ok := of.(*btf.Struct); ok && types[s.Name] == nil {
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
	for name, want := range map[string]map[string]uint64{
		"sg_role": {
			"SG_ROLE_DEAD": uint64(RoleDead), "SG_ROLE_APP": uint64(RoleApp), "SG_ROLE_SIDECAR": uint64(RoleSidecar),
			"SG_ROLE_EXEMPT": uint64(RoleExempt), "SG_ROLE_DENIED": uint64(RoleDenied),
		},
		"sg_proto": {"SG_PROTO_ANY": uint64(ProtoAny), "SG_PROTO_TCP": uint64(ProtoTCP), "SG_PROTO_UDP": uint64(ProtoUDP)},
		"sg_dir":   {"SG_DIR_EGRESS": uint64(DirEgress), "SG_DIR_INGRESS": uint64(DirIngress), "SG_DIR_V4": uint64(nodeSgDirSG_DIR_V4)},
	} {
		got := enumValues(t, spec, name)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("enum %s is %v in C, %v in Go", name, got, want)
		}
	}
	if RoleDead != 0 {
		t.Error("zeroed memory is not dead")
	}
	if pods, all := spec.Maps[nodeMapPods].MaxEntries, spec.Maps[nodeMapListeners].MaxEntries; all != pods*2*ListenerSlots {
		t.Errorf("there are %d listeners of %d pods, which is not %d each way", all, pods, ListenerSlots)
	}
	if got := spec.Maps[nodeMapPodSlots].MaxEntries; got != spec.Maps[nodeMapPods].MaxEntries {
		t.Errorf("there are %d slots, and %d pods", got, spec.Maps[nodeMapPods].MaxEntries)
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
	if got := Counter(31).String(); got != "counter_31" {
		t.Errorf("a counter without a name prints as %s", got)
	}
}
