// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// runUnixRule runs the automaton, one state at a time.
func runUnixRule(r UnixRule, name string) bool {
	has := func(s unixSgUnixSet, state int) bool { return s.W[state/64]&(1<<(state%64)) != 0 }
	var states [unixStates]bool
	enter := func(to *[unixStates]bool, state int) {
		to[state] = true
		if has(r.Star, state) || has(r.Deep, state) {
			to[state+1] = true
		}
	}
	enter(&states, 0)
	for i := range len(name) {
		var next [unixStates]bool
		for s, in := range states {
			if !in {
				continue
			}
			if has(r.Deep, s) || has(r.Star, s) && name[i] != '/' {
				enter(&next, s)
			}
			if has(r.Match[name[i]], s) {
				enter(&next, s+1)
			}
		}
		states = next
	}
	for s, in := range states {
		if in && has(r.Accept, s) {
			return true
		}
	}
	return false
}

// globs returns whether a valid pattern matches a name: by its words, and slowly.
func globs(pattern, name string) bool {
	type at struct{ pattern, name int }
	known := map[at]bool{}
	var match func(p, n string) bool
	try := func(p, n string) bool {
		key := at{len(p), len(n)}
		result, ok := known[key]
		if !ok {
			result = match(p, n)
			known[key] = result
		}
		return result
	}
	match = func(p, n string) bool {
		if p == "" {
			return n == ""
		}
		if p[0] == '*' {
			rest := strings.TrimLeft(p, "*")
			deep := len(p)-len(rest) > 1
			return try(rest, n) || n != "" && (deep || n[0] != '/') && try(p, n[1:])
		}
		if n == "" {
			return false
		}
		switch p[0] {
		case '?':
			return n[0] != '/' && try(p[1:], n[1:])
		case '[':
			in, rest := globClass(p[1:], n[0])
			return in && n[0] != '/' && try(rest, n[1:])
		case '\\':
			p = p[1:]
		}
		return p[0] == n[0] && try(p[1:], n[1:])
	}
	return try(pattern, name)
}

func globClass(p string, b byte) (in bool, rest string) {
	p, not := strings.CutPrefix(p, "!")
	next := func() (c byte) {
		if p[0] == '\\' {
			p = p[1:]
		}
		c, p = p[0], p[1:]
		return c
	}
	for p[0] != ']' {
		lo := next()
		hi := lo
		if p[0] == '-' && p[1] != ']' {
			p = p[1:]
			hi = next()
		}
		in = in || lo <= b && b <= hi
	}
	return in != not, p[1:]
}

func newUnixRule(t testing.TB, pattern string, abstract bool) UnixRule {
	t.Helper()
	r, err := NewUnixRule(pattern, abstract, 0, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUnixPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"/run/a.sock", []string{"/run/a.sock"}, []string{"", "/run/a.soc", "/run/a.sock2", "/run/aXsock", "run/a.sock"}},
		{"/run/*.sock", []string{"/run/.sock", "/run/a.sock", "/run/a.sock.sock"}, []string{"/run/a/b.sock", "/run/sock", "/run/a.sockx"}},
		{"/run/**", []string{"/run/", "/run/a", "/run/a/b"}, []string{"/run", "/var/run/a"}},
		{"/run/***/x", []string{"/run//x", "/run/a/b/x"}, []string{"/run/x"}},
		{"**", []string{"", "/", "a/b/\x00"}, nil},
		{"/a*b*c", []string{"/abc", "/aXbXc", "/abbcc"}, []string{"/ac", "/acb", "/a/b/c"}},
		{"/*/s", []string{"//s", "/a/s"}, []string{"/a/b/s", "/s"}},
		{"/a?", []string{"/ab", "/a\xff"}, []string{"/a", "/a/", "/abc"}},
		{"/[a-c_]", []string{"/a", "/b", "/c", "/_"}, []string{"/d", "/-", "/", "/ab"}},
		{"/[!a-c]", []string{"/d", "/\x00", "/\xc3"}, []string{"/a", "//", "/"}},
		{"/[+--]", []string{"/+", "/,", "/-"}, []string{"/.", "/*"}},
		{"/[a-]", []string{"/a", "/-"}, []string{"/b"}},
		{`/[\]\-\\\!]`, []string{"/]", "/-", `/\`, "/!"}, []string{"/a"}},
		{`/\*\?\[\a`, []string{"/*?[a"}, []string{`/\*\?\[\a`, "/xy[a"}},
		{`/[\!-~]`, []string{"/a", "/0", "/.", "/!"}, []string{"//", "/ "}},
		{"/[!-~]", []string{"/a", "/!"}, []string{"//", "/-", "/~"}},
		{"/" + strings.Repeat("a", 107), []string{"/" + strings.Repeat("a", 107)}, []string{"/" + strings.Repeat("a", 106)}},
		{"/" + strings.Repeat("*a", 63), []string{"/" + strings.Repeat("a", 63), "/" + strings.Repeat("ba", 63)}, []string{"/" + strings.Repeat("a", 62)}},
	} {
		r := newUnixRule(t, c.pattern, false)
		for _, name := range c.yes {
			if !runUnixRule(r, name) {
				t.Errorf("%q does not match %q", c.pattern, name)
			}
		}
		for _, name := range c.no {
			if runUnixRule(r, name) {
				t.Errorf("%q matches %q", c.pattern, name)
			}
		}
	}
}

func TestNewUnixRule(t *testing.T) {
	r, err := NewUnixRule("x*", true, unix.SOCK_DGRAM, 7, []uint32{subjectSidecar, testName})
	if err != nil {
		t.Fatal(err)
	}
	if r.Abstract != 1 || r.Type != unix.SOCK_DGRAM || r.Rule != 7 || r.Npeers != 2 || r.Peer[0] != subjectSidecar || r.Peer[1] != testName {
		t.Errorf("the rule is %+v", r)
	}
	for _, c := range []struct {
		pattern  string
		abstract bool
		sockType uint8
		peers    []uint32
		want     string
	}{
		{"", false, 0, nil, "is empty"},
		{"", true, 0, nil, "is empty"},
		{"run/x", false, 0, nil, "is no absolute path"},
		{"*", false, 0, nil, "is no absolute path"},
		{"[/]run", false, 0, nil, "is no absolute path"},
		{`/\`, false, 0, nil, `ends in '\'`},
		{"/[a", false, 0, nil, "without its ']'"},
		{`/[a\]`, false, 0, nil, "without its ']'"},
		{"/[", true, 0, nil, "without its ']'"},
		{"/[a-", false, 0, nil, "without its ']'"},
		{"/[]", false, 0, nil, "no byte is of"},
		{"/[/]", false, 0, nil, "no byte is of"},
		{"/[z-a]", false, 0, nil, "'z'-'a'"},
		{"/[é]", false, 0, nil, "ASCII"},
		{"/a\x00b", false, 0, nil, "has a 0"},
		{"/run//x", false, 0, nil, `component ""`},
		{"/run/./x", false, 0, nil, `component "."`},
		{"/run/../x", false, 0, nil, `component ".."`},
		{`/run/\../x`, false, 0, nil, `component ".."`},
		{"/run/", false, 0, nil, `component ""`},
		{"/", false, 0, nil, `component ""`},
		{"**/..", false, 0, nil, `component ".."`},
		{"/" + strings.Repeat("a", 108), false, 0, nil, "108 bytes"},
		{"/" + strings.Repeat("a", 107), true, 0, nil, "107 bytes"},
		{"/" + strings.Repeat("*a", 64), false, 0, nil, "127 parts"},
		{"/x", false, unix.SOCK_RAW, nil, "no type 3"},
		{"/x", false, 0, []uint32{1, 0}, "no container"},
		{"/x", false, 0, make([]uint32, MaxUnixPeers+1), "at most 8"},
	} {
		_, err := NewUnixRule(c.pattern, c.abstract, c.sockType, 1, c.peers)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: the error is %v, want one with %q", c.pattern, err, c.want)
		}
	}
	// What is an error of paths is none of abstract names.
	for _, pattern := range []string{"*", "a//b", "/", "..", "a\x00b", "run/x"} {
		newUnixRule(t, pattern, true)
	}
}

// randomBytes has 0 to n bytes of an alphabet.
func randomBytes(rnd *rand.Rand, alphabet string, n int) string {
	b := make([]byte, rnd.IntN(n+1))
	for i := range b {
		b[i] = alphabet[rnd.IntN(len(alphabet))]
	}
	return string(b)
}

// randomPattern returns one that compiles, and its rule.
func randomPattern(rnd *rand.Rand, abstract bool) (string, UnixRule) {
	parts := []string{"a", "b", "/", ".", "*", "**", "?", "[ab]", "[!a]", `\*`, "/a", "a/", "[.-b]"}
	for {
		pattern := ""
		if !abstract {
			pattern = []string{"/", "/", "**"}[rnd.IntN(3)]
		}
		for range rnd.IntN(8) + 1 {
			pattern += parts[rnd.IntN(len(parts))]
		}
		if r, err := NewUnixRule(pattern, abstract, 0, 1, nil); err == nil {
			return pattern, r
		}
	}
}

// randomName returns one that a pattern may well match.
func randomName(rnd *rand.Rand, pattern string, abstract bool) string {
	if rnd.IntN(3) == 0 {
		name := randomBytes(rnd, "ab/.*\x00", 12)
		if !abstract && rnd.IntN(4) > 0 {
			name = "/" + name
		}
		return name
	}
	fill := func(p string) string { return randomBytes(rnd, "ab.", 3) }
	deep := func(p string) string { return randomBytes(rnd, "ab./", 5) }
	var b strings.Builder
	for p := pattern; p != ""; {
		switch {
		case strings.HasPrefix(p, "**"):
			b.WriteString(deep(p))
			p = strings.TrimLeft(p, "*")
		case p[0] == '*':
			b.WriteString(fill(p))
			p = p[1:]
		case p[0] == '?':
			b.WriteByte("ab./"[rnd.IntN(4)])
			p = p[1:]
		case p[0] == '[':
			b.WriteByte("ab./"[rnd.IntN(4)])
			p = p[strings.IndexByte(p, ']')+1:]
		default:
			p = strings.TrimPrefix(p, `\`)
			b.WriteByte(p[0])
			p = p[1:]
		}
	}
	return b.String()
}

func TestUnixRuleIsItsPattern(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	matched, n := 0, 20000
	for i := range n {
		abstract := i%2 == 0
		pattern, r := randomPattern(rnd, abstract)
		name := randomName(rnd, pattern, abstract)
		want := globs(pattern, name)
		if got := runUnixRule(r, name); got != want {
			t.Fatalf("%q and %q: the automaton says %v, want %v", pattern, name, got, want)
		}
		if want {
			matched++
		}
	}
	t.Logf("%d of %d matched", matched, n)
	if matched < n/10 || matched > n*9/10 {
		t.Errorf("%d of %d matched: the names prove little", matched, n)
	}
}

func FuzzUnixRule(f *testing.F) {
	for _, s := range []struct{ pattern, name string }{
		{"/run/*.sock", "/run/a.sock"}, {"**", ""}, {`/[!a-z\]]?\*`, "/Ab*"}, {"/a/**/b*", "/a/x/y/bc"}, {"/[", "/"}, {"/[é]", "/é"},
	} {
		f.Add(s.pattern, s.name, true)
		f.Add(s.pattern, s.name, false)
	}
	f.Fuzz(func(t *testing.T, pattern, name string, abstract bool) {
		r, err := NewUnixRule(pattern, abstract, 0, 1, nil)
		if err != nil || len(name) > unixPathLen {
			return
		}
		if got, want := runUnixRule(r, name), globs(pattern, name); got != want {
			t.Errorf("%q and %q: the automaton says %v, want %v", pattern, name, got, want)
		}
	})
}

// cleanPath returns the path that the kernel makes of sun_path, and whether it
// is one that rules are about.
func cleanPath(name string) (string, bool) {
	name, _, _ = strings.Cut(name, "\x00")
	return name, strings.HasPrefix(name, "/") && filepath.Clean(name) == name && name != "/"
}

func TestProbeUnix(t *testing.T) {
	needRoot(t)
	got := ProbeUnix()
	cgroup, lsm := probeUnix(UnixCgroup), probeUnix(UnixLSM)
	t.Logf("this kernel has %v: cgroup: %v, lsm: %v", got, cgroup, lsm)
	want := UnixNone
	switch {
	case lsm == nil:
		want = UnixLSM
	case cgroup == nil:
		want = UnixCgroup
	}
	if got != want {
		t.Errorf("%v is not the best that there is, which is %v", got, want)
	}
	b, err := os.ReadFile("/sys/kernel/security/lsm")
	if err != nil {
		t.Skipf("kernel: no securityfs is mounted: %v", err)
	}
	if modules := strings.Split(strings.TrimSpace(string(b)), ","); slices.Contains(modules, "bpf") != (got == UnixLSM) {
		t.Errorf("the modules are %q, the answer is %v", modules, got)
	}
	// Where securityfs is not mounted the answer is the same.
	if unmounted, err := unmountedSecurityModules(); err != nil || unmounted != string(b) {
		t.Errorf("unmounted, the modules are %q (%v), want %q", unmounted, err, b)
	}
}

// unixKinds runs a test with each kind that the kernel has.
func unixKinds(t *testing.T, test func(t *testing.T, w *unixWorld)) {
	for _, kind := range []UnixKind{UnixCgroup, UnixLSM} {
		t.Run(kind.String(), func(t *testing.T) {
			needRoot(t)
			if err := probeUnix(kind); err != nil {
				t.Skipf("kernel: it does not have this kind: %v", err)
			}
			test(t, newUnixWorld(t, kind))
		})
	}
}

// A node without other maps than the shared ones, and a pod under a policy.
type unixWorld struct {
	t        *testing.T
	f        *fixture
	kind     UnixKind
	programs map[string]*ebpf.Program
	policy   Policy
	dir      string // for sockets
	boxes    int
}

func newUnixWorld(t *testing.T, kind UnixKind) *unixWorld {
	t.Helper()
	w := &unixWorld{t: t, f: loaded(t), kind: kind}
	empty[UnixKey, UnixRule](t, w.f.maps.UnixRules)
	var err error
	if w.programs, err = LoadUnix(w.f.maps, kind); err != nil {
		var log *ebpf.VerifierError
		if errors.As(err, &log) {
			t.Logf("%+v", log)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range w.programs {
			p.Close()
		}
	})
	w.policy.Subjects[subjectApp] = SubjectUnix
	w.apply(func(*Policy) {})
	if w.dir, err = os.MkdirTemp("", "u"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.dir) })
	return w
}

// apply changes the pod's policy, in place.
func (w *unixWorld) apply(change func(*Policy)) {
	w.t.Helper()
	change(&w.policy)
	w.f.manage(w.t, testCookie, w.policy)
}

// rule adds the next rule of a subject.
func (w *unixWorld) rule(subject uint32, pattern string, abstract bool, sockType uint8, peers ...uint32) {
	w.t.Helper()
	r, err := NewUnixRule(pattern, abstract, sockType, 1, peers)
	if err != nil {
		w.t.Fatal(err)
	}
	key := UnixKey{Revision: testRevision(testCookie), Subject: subject}
	for w.f.maps.UnixRules.Lookup(key, new(UnixRule)) == nil {
		key.N++
	}
	put(w.t, w.f.maps.UnixRules, key, r)
}

// unrule removes all rules.
func (w *unixWorld) unrule() {
	w.t.Helper()
	empty[UnixKey, UnixRule](w.t, w.f.maps.UnixRules)
}

// path is that of a socket in the test's directory, which no two tests share.
func (w *unixWorld) path(name string) string { return w.dir + "/" + name }

// abstract is the name of an abstract socket, as in sun_path.
func (w *unixWorld) abstract(name string) string { return "\x00" + w.dir + name }

// unixBox is a container: a cgroup with the programs, and a process in it.
type unixBox struct {
	unixProcess
	w   *unixWorld
	dir string
	id  uint64
}

func cgroupRoot(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			return f[4]
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}

// makeCgroup makes one that goes with the test.
func makeCgroup(t testing.TB, dir string) (id uint64) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

// box makes a container, of the pod if c does not say another.
func (w *unixWorld) box(c Container) *unixBox {
	t := w.t
	t.Helper()
	w.boxes++
	b := &unixBox{w: w, dir: filepath.Join(cgroupRoot(t), fmt.Sprintf("sidegate-unix-%d-%d", os.Getpid(), w.boxes))}
	b.id = makeCgroup(t, b.dir)
	cgroup, err := os.Open(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	for _, h := range UnixHooks(w.kind) {
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Fd()), Program: w.programs[h.Program], Attach: h.Attach})
		if err != nil {
			t.Fatalf("attach %s: %v", h.Program, err)
		}
		t.Cleanup(func() { l.Close() })
	}
	if c.NetnsCookie == 0 {
		c.NetnsCookie = testCookie
	}
	c.CgroupId = b.id
	put(t, w.f.maps.Containers, b.id, c)
	put(t, w.f.maps.Identity, b.id, c)
	w.f.count(t, w.f.maps.Counters, b.id)
	b.unixProcess = startUnix(t, b.dir)
	return b
}

func (w *unixWorld) app() *unixBox {
	w.t.Helper()
	return w.box(Container{Role: RoleApp, Subject: subjectApp})
}

// counted checks the container's counters since the last call.
func (b *unixBox) counted(what string, counter ...Counter) {
	b.t.Helper()
	b.w.f.wantCounted(b.t, what, b.w.f.maps.Counters, b.id, counter...)
}

const (
	unixDrop  = nodeSgCounterSG_DROP_UNIX
	unixAudit = nodeSgCounterSG_COUNT_AUDIT
)

// wantErrno checks how something ended; 0 is success.
func wantErrno(t testing.TB, what string, got, want unix.Errno) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %d (%v), want %d (%v)", what, got, got, want, want)
	}
}

// permitted is what a connect or send ends with.
func permitted(yes bool) unix.Errno {
	if yes {
		return 0
	}
	return unix.EPERM
}

var unixTypes = map[string]int{"stream": unix.SOCK_STREAM, "dgram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET}

func TestUnixProgramsAndHooks(t *testing.T) {
	if UnixHooks(UnixNone) != nil {
		t.Error("there are hooks of no kind")
	}
	if _, err := LoadUnix(new(Maps), UnixNone); err == nil {
		t.Error("there are programs of no kind")
	}
	node := nodeSpec(t)
	for kind, load := range map[UnixKind]func() (*ebpf.CollectionSpec, error){UnixCgroup: loadUnix, UnixLSM: loadLsm} {
		spec := parse(t, load)
		var hooks []string
		attached := UnixHooks(kind)
		if kind == UnixLSM {
			family, _ := FamilyHook(RoleApp, false)
			attached = append(attached, family)
		}
		for _, h := range attached {
			hooks = append(hooks, h.Program)
			if p := spec.Programs[h.Program]; p == nil || p.AttachType != h.Attach {
				t.Errorf("%v: the object has no program %s for %v", kind, h.Program, h.Attach)
			}
		}
		slices.Sort(hooks)
		if want := names(spec.Programs); !slices.Equal(hooks, want) {
			t.Errorf("%v: the hooks have %q, the object %q", kind, hooks, want)
		}
		for name, m := range spec.Maps {
			if n := node.Maps[name]; !strings.HasPrefix(name, ".") && (n == nil || m.Type != n.Type || m.KeySize != n.KeySize || m.ValueSize != n.ValueSize || m.MaxEntries != n.MaxEntries || m.Flags != n.Flags) {
				t.Errorf("%v: map %s is %v, in the node object %v", kind, name, m, n)
			}
		}
		for name, g := range map[string]reflect.Type{"sg_unix_key": reflect.TypeFor[UnixKey](), "sg_unix_rule": reflect.TypeFor[UnixRule]()} {
			var c *btf.Struct
			if err := spec.Types.TypeByName(name, &c); err != nil {
				t.Errorf("%v: %v", kind, err)
				continue
			}
			wantLayout(t, kind.String()+" object: "+name, c, g)
		}
	}
	if MaxUnixRules*int(node.Maps[nodeMapPolicySlots].MaxEntries) != int(node.Maps[nodeMapUnixRules].MaxEntries) {
		t.Error("the map's size is not that of all policies' rules")
	}
}

// A map of their own would be empty.
func TestUnixProgramsUseTheNodesMaps(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		shared := map[ebpf.MapID]bool{}
		for _, m := range w.f.node.Maps {
			info, err := m.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			shared[id] = true
		}
		for name, p := range w.programs {
			info, err := p.Info()
			if err != nil {
				t.Fatal(err)
			}
			ids, _ := info.MapIDs()
			for _, id := range ids {
				if !shared[id] {
					t.Errorf("program %s has map %d of its own", name, id)
				}
			}
			n, _ := info.VerifiedInstructions()
			t.Logf("%s: %d instructions verified", name, n)
		}
	})
}

// The C matcher, the automaton and the pattern say the same, of any name.
func TestUnixMatcherInKernel(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		rnd := rand.New(rand.NewPCG(3, 4))
		app := w.app()
		rounds, matched := 0, 0
		for range 60 {
			// By name there need not be a socket: EPERM, or what comes of it.
			abstract := w.kind == UnixLSM || rnd.IntN(2) == 0
			pattern, r := randomPattern(rnd, abstract)
			w.unrule()
			put(t, w.f.maps.UnixRules, UnixKey{Revision: testRevision(testCookie), Subject: subjectApp}, r)
			var batch [][]byte
			var want []bool
			for range 60 {
				name := randomName(rnd, pattern, abstract)
				if abstract {
					name = "\x00" + name[:min(len(name), unixPathLen-1)]
				}
				name = name[:min(len(name), unixPathLen)]
				if name == "" {
					continue // is no address
				}
				if slices.ContainsFunc(batch, func(b []byte) bool { return string(b) == name }) {
					continue
				}
				batch = append(batch, []byte(name))
				ok := false
				if abstract {
					ok = globs(pattern, name[1:])
				} else if clean, isClean := cleanPath(name); isClean {
					ok = globs(pattern, clean)
				}
				want = append(want, ok)
			}
			var sockets []int
			if w.kind == UnixLSM {
				for _, name := range batch {
					s := here(t).must(unixOp{Do: "socket", Type: unix.SOCK_DGRAM}).Sock
					sockets = append(sockets, s)
					here(t).must(unixOp{Do: "bind", Sock: s, Name: name})
				}
			}
			got := app.must(unixOp{Do: "judge", Type: unix.SOCK_DGRAM, Names: batch}).Errnos
			for _, s := range sockets {
				unix.Close(s)
			}
			for i, name := range batch {
				rounds++
				if want[i] {
					matched++
				}
				if allowed := got[i] != unix.EPERM; allowed != want[i] {
					t.Errorf("%q and %q: the kernel says %v, want %v", pattern, name, got[i], want[i])
				}
			}
		}
		t.Logf("%d names, %d of them matched", rounds, matched)
		if matched < rounds/10 || matched > rounds*9/10 {
			t.Error("the names prove little")
		}
	})
}

func TestUnixConnectAndSend(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		app := w.app()
		type target struct {
			name string
			ok   bool
		}
		for typeName, sockType := range unixTypes {
			targets := []target{
				{w.path("ok-" + typeName), true}, {w.path("no-" + typeName), false},
				{w.abstract("ok-" + typeName), true}, {w.abstract("no-" + typeName), false},
			}
			for _, to := range targets {
				here(t).bound(sockType, to.name)
			}
			try := func(when string, allowed func(target) bool, counter func(target) []Counter) {
				t.Helper()
				for _, to := range targets {
					what := fmt.Sprintf("%s, %s %q", when, typeName, to.name)
					wantErrno(t, what, app.connect(sockType, to.name), permitted(allowed(to)))
					app.counted(what, counter(to)...)
					if sockType == unix.SOCK_DGRAM {
						wantErrno(t, what+", send", app.send(to.name), permitted(allowed(to)))
						app.counted(what+", send", counter(to)...)
					}
				}
			}
			always := func(target) bool { return true }
			never := func(target) bool { return false }
			byRule := func(to target) bool { return to.ok }
			counts := func(allowed func(target) bool, counter Counter) func(target) []Counter {
				return func(to target) []Counter {
					if allowed(to) {
						return nil
					}
					return []Counter{counter}
				}
			}

			w.unrule()
			w.apply(func(p *Policy) { p.Subjects[subjectApp] = 0 })
			try("free", always, counts(always, 0))
			w.apply(func(p *Policy) { p.Subjects[subjectApp] = SubjectUnix })
			try("no rule", never, counts(never, unixDrop))

			w.rule(subjectApp, w.dir+"/ok-*", false, 0)
			try("rule for paths", func(to target) bool { return to.ok && to.name[0] != 0 },
				counts(func(to target) bool { return to.ok && to.name[0] != 0 }, unixDrop))
			w.rule(subjectApp, w.dir+"ok-*", true, 0)
			try("rules", byRule, counts(byRule, unixDrop))

			w.apply(func(p *Policy) { p.Flags |= PolicyAudit })
			empty[SeenUnix, SeenCount](t, w.f.maps.SeenUnix)
			try("audit", always, counts(byRule, unixAudit))
			var seen SeenUnix
			var n SeenCount
			rows := 0
			for it := w.f.maps.SeenUnix.Iterate(); it.Next(&seen, &n); rows++ {
				name := string(seen.Name[:seen.Len])
				if seen.CgroupId != app.id || seen.NetnsCookie != testCookie || seen.Type != uint8(sockType) || n.Count == 0 ||
					(seen.Abstract != 0) != (name != "" && name[0] == 0) || strings.Trim(string(seen.Name[seen.Len:]), "\x00") != "" {
					t.Errorf("audit, %s: %q, %+v is seen %d times", typeName, name, seen, n.Count)
				}
			}
			if rows == 0 {
				t.Errorf("audit, %s: nothing is on record", typeName)
			}
			w.apply(func(p *Policy) { p.Flags &^= PolicyAudit })

			// Rules for another type, another revision, another subject, or
			// behind a gap.
			w.unrule()
			for other, n := range unixTypes {
				if other != typeName {
					w.rule(subjectApp, "/**", false, uint8(n))
					w.rule(subjectApp, "**", true, uint8(n))
				}
			}
			anything := newUnixRule(t, "**", false)
			for _, key := range []UnixKey{
				{Revision: testRevision(testCookie), Subject: subjectApp, N: 7},
				{Revision: testRevision(testCookie) + 1, Subject: subjectApp},
				{Revision: testRevision(testCookie), Subject: subjectSidecar},
				{Revision: testRevision(testCookie), Subject: testName},
			} {
				put(t, w.f.maps.UnixRules, key, anything)
			}
			try("rules for others", never, counts(never, unixDrop))
			w.unrule()
			w.rule(subjectApp, "**", false, uint8(sockType))
			w.rule(subjectApp, "**", true, uint8(sockType))
			try("rules for the type", always, counts(always, 0))
		}
	})
}

// All rules count, of the container's role and of its name.
func TestUnixRulesOfSubjects(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		named := w.box(Container{Role: RoleApp, Subject: subjectApp, Name: testName})
		nameless := w.app()
		for i, c := range []struct {
			what       string
			role, name bool // have rules
			flags      uint32
		}{
			{"nobody", false, false, PolicyNames},
			{"the role", true, false, PolicyNames},
			{"the name", false, true, PolicyNames},
			{"both", true, true, PolicyNames},
			{"the name, unused", false, true, 0},
		} {
			// To what the rules allow, and to something else.
			w.unrule()
			w.apply(func(p *Policy) {
				p.Flags = c.flags
				p.Subjects[subjectApp] = 0
				if c.role {
					p.Subjects[subjectApp] = SubjectUnix
				}
			})
			key := SubjectKey{Revision: testRevision(testCookie), Subject: testName}
			put(t, w.f.maps.Subjects, key, uint32(0))
			if c.name {
				put(t, w.f.maps.Subjects, key, uint32(SubjectUnix))
			}
			for range MaxUnixRules - 1 {
				w.rule(subjectApp, "none", true, 0)
				w.rule(testName, "none", true, 0)
			}
			w.rule(subjectApp, "**role", true, 0)
			w.rule(testName, "**name", true, 0)
			prefix := w.abstract(fmt.Sprint(i))
			role, name, other := prefix+"role", prefix+"name", prefix+"other"
			for _, a := range []string{role, name, other} {
				here(t).bound(unix.SOCK_STREAM, a)
			}
			names := c.flags&PolicyNames != 0
			free := !c.role && !(c.name && names)
			wantErrno(t, c.what+": named to role's", named.connect(unix.SOCK_STREAM, role), 0)
			wantErrno(t, c.what+": named to name's", named.connect(unix.SOCK_STREAM, name), permitted(free || names))
			wantErrno(t, c.what+": named to other", named.connect(unix.SOCK_STREAM, other), permitted(free))
			wantErrno(t, c.what+": nameless to role's", nameless.connect(unix.SOCK_STREAM, role), 0)
			wantErrno(t, c.what+": nameless to name's", nameless.connect(unix.SOCK_STREAM, name), permitted(!c.role))
			wantErrno(t, c.what+": nameless to other", nameless.connect(unix.SOCK_STREAM, other), permitted(!c.role))
		}
	})
}

// Between attach and filling, and without a policy, nothing is let through.
func TestUnixWithoutIdentity(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		w.apply(func(p *Policy) { p.Subjects[subjectApp] = 0 })
		app := w.app()
		name := w.abstract("x")
		here(t).bound(unix.SOCK_STREAM, name)
		wantErrno(t, "registered", app.connect(unix.SOCK_STREAM, name), 0)
		put(t, w.f.maps.Identity, app.id, Container{})
		wantErrno(t, "zeroed identity", app.connect(unix.SOCK_STREAM, name), unix.EPERM)
		put(t, w.f.maps.Identity, app.id, Container{NetnsCookie: testCookie + 1, CgroupId: app.id, Role: RoleApp, Subject: subjectApp})
		wantErrno(t, "unknown pod", app.connect(unix.SOCK_STREAM, name), unix.EPERM)
	})
}

// Socket pairs have no names, and are their container's own.
func TestUnixPairs(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		app := w.app()
		for typeName, sockType := range unixTypes {
			pair := app.must(unixOp{Do: "pair", Type: sockType})
			for _, s := range []int{pair.Sock, pair.Other} {
				wantErrno(t, typeName, app.do(unixOp{Do: "send", Sock: s}).Errno, 0)
			}
		}
		app.counted("pairs")
	})
}

// A name has 108 bytes without a 0 at its end, and may have a 0 within.
func TestUnixNames(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		app := w.app()
		fill := func(prefix string, n int) string { return prefix + strings.Repeat("x", n-len(prefix)) }
		p106, p107, p108 := fill(w.path(""), 106), fill(w.path(""), 107), fill(w.path(""), 108)
		a107, a108 := fill(w.abstract(""), 107), fill(w.abstract(""), 108)
		zero, zeroes := w.abstract("z\x00no"), w.abstract("z\x00ok")
		short := w.abstract("z")
		noPath, okPath := w.path("no"), w.path("ok")
		for _, name := range []string{p106, p107, p108, a107, a108, zero, zeroes, short, noPath, okPath} {
			here(t).bound(unix.SOCK_STREAM, name)
		}
		for _, c := range []struct {
			pattern, name string
			want          unix.Errno
		}{
			{p107, p107, 0},
			{p107, p108, unix.EPERM},
			{p107, p106, unix.EPERM},
			{p107, p107 + "\x00", 0},
			{p108, p108, 0},
			{p108, p107, unix.EPERM},
			{a107, a107, 0},
			{a107, a108, unix.EPERM},
			{a108, a108, 0},
			{a108, a107, unix.EPERM},
			{zeroes, zeroes, 0},
			{zeroes, zero, unix.EPERM},
			{short, short, 0},
			{short, zero, unix.EPERM},
			{short + "*", zero, 0},
			{short + "?[!x]?", zero, 0},
			// What is behind the 0 of a path is not of it.
			{okPath, okPath + "\x00" + noPath, 0},
			{okPath, noPath + "\x00" + okPath, unix.EPERM},
			{okPath, noPath + "\x00", unix.EPERM},
			// A path is no abstract name, nor the other way.
			{"\x00" + okPath, okPath, unix.EPERM},
			{zeroes[1:], zeroes, unix.EPERM},
		} {
			w.unrule()
			pattern, abstract := strings.CutPrefix(c.pattern, "\x00")
			if !abstract && strings.Contains(pattern, "\x00") {
				pattern = "**"
			}
			w.rule(subjectApp, pattern, abstract, 0)
			wantErrno(t, fmt.Sprintf("%q by %q", c.name, c.pattern), app.connect(unix.SOCK_STREAM, c.name), c.want)
		}
		// A star between the words of a set of states.
		for n := 61; n <= 66; n++ {
			name := fill(w.path(""), n)
			here(t).bound(unix.SOCK_STREAM, name+"y")
			w.unrule()
			w.rule(subjectApp, name+"*y", false, 0)
			wantErrno(t, fmt.Sprintf("star after %d bytes", n), app.connect(unix.SOCK_STREAM, name+"y"), 0)
		}
		// The empty name, and what the kernel itself refuses.
		w.unrule()
		w.rule(subjectApp, "**", false, 0)
		wantErrno(t, "no name", app.connect(unix.SOCK_STREAM, ""), unix.EINVAL)
		wantErrno(t, "109 bytes", app.connect(unix.SOCK_STREAM, p108+"x"), unix.EINVAL)
		here(t).bound(unix.SOCK_STREAM, "\x00")
		wantErrno(t, "empty abstract name by a path", app.connect(unix.SOCK_STREAM, "\x00"), unix.EPERM)
		w.rule(subjectApp, "*", true, 0)
		wantErrno(t, "empty abstract name", app.connect(unix.SOCK_STREAM, "\x00"), 0)
	})
}

// Other ways to a socket that no rule is about, and to one that a rule is. Each
// works where there are no rules.
func TestUnixOtherNames(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		app := w.app()
		for _, name := range []string{"sub", "deep", "deep/er"} {
			if err := os.Mkdir(w.path(name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		secret, public := w.path("secret"), w.path("public")
		here(t).bound(unix.SOCK_STREAM, secret)
		here(t).bound(unix.SOCK_STREAM, public)
		for name, to := range map[string]string{"public-link": secret, "link-to-public": public, "public-dir": w.dir} {
			app.must(unixOp{Do: "symlink", Path: w.path(name), To: to})
		}
		app.must(unixOp{Do: "link", Path: w.path("public-hard"), To: secret})
		if err := os.WriteFile(w.path("public-mount"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		app.must(unixOp{Do: "mount", Path: w.path("public-mount"), To: secret})
		app.must(unixOp{Do: "chdir", Path: w.dir})

		// By the name that is given, an unclean way is refused wherever it
		// leads; by the bound name only the socket counts.
		byName, byBound := w.kind == UnixCgroup, w.kind == UnixLSM
		for _, c := range []struct {
			name   string
			public bool // leads to public
			ok     bool
		}{
			{public, true, true},
			{secret, false, false},
			{"public", true, byBound},
			{"./public", true, byBound},
			{"secret", false, false},
			{w.dir + "//public", true, byBound},
			{"/" + public, true, byBound},
			{w.path("./public"), true, byBound},
			{w.path("sub/../public"), true, byBound},
			{w.path("deep/er/../../public"), true, byBound},
			{w.dir + "/sub/../secret", false, false},
			{w.dir + "//secret", false, false},
			{"/proc/self/cwd/public", true, byBound},
			{"/proc/self/cwd/secret", false, false},
			{w.path("link-to-public"), true, byBound},
			// The known limit of names: what the container may make in a place
			// that a rule is about.
			{w.path("public-link"), false, byName},
			{w.path("public-hard"), false, byName},
			{w.path("public-mount"), false, byName},
			{w.path("public-dir/secret"), false, false},
			{w.path("public-dir/public"), true, byBound},
		} {
			w.apply(func(p *Policy) { p.Subjects[subjectApp] = 0 })
			w.unrule()
			w.rule(subjectApp, w.path("public*"), false, 0)
			wantErrno(t, c.name+" without rules", app.connect(unix.SOCK_STREAM, c.name), 0)
			w.apply(func(p *Policy) { p.Subjects[subjectApp] = SubjectUnix })
			wantErrno(t, c.name, app.connect(unix.SOCK_STREAM, c.name), permitted(c.ok))
		}
		app.must(unixOp{Do: "chdir", Path: "/"})
		app.must(unixOp{Do: "unmount", Path: w.path("public-mount")})
	})
}

// Other calls than connect and sendto, and sockets that are connected already.
func TestUnixOtherCalls(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		app := w.app()
		w.rule(subjectApp, "**ok", true, 0)
		for typeName, sockType := range unixTypes {
			ok, no := w.abstract(typeName+"ok"), w.abstract(typeName+"no")
			okSock := here(t).bound(sockType, ok)
			noSock := here(t).bound(sockType, no)
			s := app.socket(sockType)
			wantErrno(t, typeName+": connect", app.do(unixOp{Do: "connect", Sock: s, Name: []byte(ok)}).Errno, 0)
			wantErrno(t, typeName+": send", app.do(unixOp{Do: "send", Sock: s}).Errno, 0)
			got := app.do(unixOp{Do: "send", Sock: s, Name: []byte(no)}).Errno
			switch sockType {
			case unix.SOCK_STREAM:
				wantErrno(t, "stream: send to a name", got, unix.EISCONN)
				wantErrno(t, "stream: out of band", app.do(unixOp{Do: "send", Sock: s, Flags: unix.MSG_OOB}).Errno, 0)
				wantErrno(t, "stream: out of band to a name", app.do(unixOp{Do: "send", Sock: s, Flags: unix.MSG_OOB, Name: []byte(no)}).Errno, unix.EISCONN)
			case unix.SOCK_SEQPACKET: // the kernel drops the name
				wantErrno(t, "seqpacket: send to a name", got, 0)
			default:
				wantErrno(t, "dgram: send to a name", got, unix.EPERM)
				wantErrno(t, "dgram: send to another name", app.do(unixOp{Do: "send", Sock: s, Name: []byte(ok)}).Errno, 0)
				wantErrno(t, "dgram: connect again", app.do(unixOp{Do: "connect", Sock: s, Name: []byte(no)}).Errno, unix.EPERM)
				// It is still connected to the first.
				drain(t, okSock)
				wantErrno(t, "dgram: send", app.do(unixOp{Do: "send", Sock: s}).Errno, 0)
				if drain(t, okSock) != 1 || drain(t, noSock) != 0 {
					t.Error("a datagram went to the wrong socket")
				}
			}
			for name, want := range map[string]unix.Errno{ok: 0, no: unix.EPERM} {
				s := app.socket(sockType)
				got := app.do(unixOp{Do: "uring", Sock: s, Name: []byte(name)}).Errno
				if got == unix.ENOSYS {
					t.Log("the kernel has no io_uring")
					continue
				}
				wantErrno(t, fmt.Sprintf("%s: io_uring to %q", typeName, name), got, want)
			}
		}
	})
}

// drain returns how many datagrams wait.
func drain(t testing.TB, s int) (n int) {
	t.Helper()
	for {
		if _, _, err := unix.Recvfrom(s, make([]byte, 8), unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

// By name, a socket has the rights of the container that made it, whoever holds
// it; by LSM, those of the container of the process that calls. A nested cgroup
// is its container.
func TestUnixMaker(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		app := w.app()
		free := w.box(Container{Role: RoleExempt, Subject: subjectNone})
		name := w.abstract("x")
		here(t).bound(unix.SOCK_STREAM, name)
		connect := func(p unixProcess, s int) unix.Errno {
			t.Helper()
			return p.do(unixOp{Do: "connect", Sock: s, Name: []byte(name)}).Errno
		}
		byMaker := w.kind == UnixCgroup
		wantErrno(t, "free, own", free.connect(unix.SOCK_STREAM, name), 0)
		wantErrno(t, "app, from free", connect(app.unixProcess, free.give(free.socket(unix.SOCK_STREAM), app.unixProcess)), permitted(byMaker))
		wantErrno(t, "free, from app", connect(free.unixProcess, app.give(app.socket(unix.SOCK_STREAM), free.unixProcess)), permitted(!byMaker))
		wantErrno(t, "host, from app", connect(here(t), giveHere(t, app, app.socket(unix.SOCK_STREAM))), permitted(!byMaker))
		app.counted("app and its sockets", unixDrop)

		// A pair that somebody else made works for whoever gets an end.
		for typeName, sockType := range unixTypes {
			pair := free.must(unixOp{Do: "pair", Type: sockType})
			s := free.give(pair.Sock, app.unixProcess)
			wantErrno(t, typeName+" pair, app to free", app.do(unixOp{Do: "send", Sock: s}).Errno, 0)
			wantErrno(t, typeName+" pair, free to app", free.do(unixOp{Do: "send", Sock: pair.Other}).Errno, 0)
		}

		nested := filepath.Join(app.dir, "nested")
		makeCgroup(t, nested)
		t.Cleanup(func() { app.must(unixOp{Do: "move", Path: app.dir}) })
		app.must(unixOp{Do: "move", Path: nested})
		wantErrno(t, "app, nested", app.connect(unix.SOCK_STREAM, name), unix.EPERM)
		w.rule(subjectApp, "**x", true, 0)
		wantErrno(t, "app, nested, rule", app.connect(unix.SOCK_STREAM, name), 0)
	})
}

// giveHere gives a container's socket to this process.
func giveHere(t testing.TB, from *unixBox, s int) int {
	t.Helper()
	fd := from.must(unixOp{Do: "export", Sock: s}).Sock
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// Where the other socket is unknown, a rule with peers lets nothing through.
func TestUnixPeers(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		knows := w.kind == UnixLSM
		app := w.app()
		sidecar := w.box(Container{Role: RoleSidecar, Subject: subjectSidecar})
		named := w.box(Container{Role: RoleExempt, Subject: subjectNone, Name: testName})
		nobody := w.box(Container{Role: RoleExempt, Subject: subjectNone})
		foreign := w.box(Container{NetnsCookie: testCookie + 1, Role: RoleSidecar, Subject: subjectSidecar})
		w.f.manage(t, testCookie+1, Policy{})
		w.apply(func(p *Policy) { p.Flags |= PolicyNames })

		nested := filepath.Join(sidecar.dir, "a")
		makeCgroup(t, nested)
		makeCgroup(t, nested+"/b")
		t.Cleanup(func() { sidecar.must(unixOp{Do: "move", Path: sidecar.dir}) })

		for typeName, sockType := range unixTypes {
			name := func(of string) string { return w.abstract(typeName + of) }
			sidecar.bound(sockType, name("sidecar"))
			sidecar.must(unixOp{Do: "move", Path: nested + "/b"})
			sidecar.bound(sockType, name("nested"))
			sidecar.must(unixOp{Do: "move", Path: sidecar.dir})
			sidecar.give(sidecar.bound(sockType, name("given")), nobody.unixProcess)
			nobody.give(nobody.bound(sockType, name("taken")), sidecar.unixProcess)
			named.bound(sockType, name("named"))
			nobody.bound(sockType, name("nobody"))
			foreign.bound(sockType, name("foreign"))
			here(t).bound(sockType, name("host"))
			app.bound(sockType, name("own"))

			check := func(rules string, ok ...string) {
				t.Helper()
				for _, to := range []string{"sidecar", "nested", "given", "taken", "named", "nobody", "foreign", "host", "own"} {
					want := slices.Contains(ok, to) || to == "own" && knows
					wantErrno(t, fmt.Sprintf("%s, %s: to %s", rules, typeName, to), app.connect(sockType, name(to)), permitted(want))
					if sockType == unix.SOCK_DGRAM {
						wantErrno(t, fmt.Sprintf("%s, %s: send to %s", rules, typeName, to), app.send(name(to)), permitted(want))
					}
				}
			}
			w.unrule()
			check("no rules")
			w.rule(subjectApp, "**", true, 0, subjectSidecar)
			var ok []string
			if knows {
				ok = []string{"sidecar", "nested", "given"}
			}
			check("sidecar", ok...)
			w.unrule()
			w.rule(subjectApp, "**", true, 0, subjectInit, testName)
			if ok = nil; knows {
				ok = []string{"named"}
			}
			check("name", ok...)
			// Pattern and peer have to be of one rule.
			w.unrule()
			w.rule(subjectApp, "**", true, 0, subjectInit)
			w.rule(subjectApp, "none", true, 0, subjectSidecar, testName)
			check("two rules")
			w.rule(subjectApp, "**host", true, 0)
			check("anybody's", "host")
		}
		if knows {
			w.unrule()
			app.counted("all of these", unixDrop)
			w.apply(func(p *Policy) { p.Flags |= PolicyAudit })
			wantErrno(t, "audit", app.connect(unix.SOCK_STREAM, w.abstract("streamsidecar")), 0)
			name := w.abstract("streamsidecar")
			seen := SeenUnix{NetnsCookie: testCookie, CgroupId: app.id, Peer: sidecar.id, Len: uint8(len(name)), Abstract: 1, Type: unix.SOCK_STREAM}
			copy(seen.Name[:], name)
			var n SeenCount
			if err := w.f.maps.SeenUnix.Lookup(seen, &n); err != nil || n.Count != 1 {
				t.Errorf("audit: seen %d times: %v", n.Count, err)
			}
		}
	})
}

// What else the LSM knows of the other socket.
func TestUnixSockets(t *testing.T) {
	unixKinds(t, func(t *testing.T, w *unixWorld) {
		if w.kind != UnixLSM {
			t.Skip("kernel: the other socket is unknown without LSM")
		}
		app := w.app()
		// An answer to whoever has connected to it.
		service := app.bound(unix.SOCK_DGRAM, w.abstract("service"))
		client := here(t).bound(unix.SOCK_DGRAM, w.abstract("client"))
		answer := func() unix.Errno {
			return app.do(unixOp{Do: "send", Sock: service, Name: []byte(w.abstract("client"))}).Errno
		}
		wantErrno(t, "answer to a stranger", answer(), unix.EPERM)
		here(t).must(unixOp{Do: "connect", Sock: client, Name: []byte(w.abstract("service"))})
		wantErrno(t, "answer to a client", answer(), 0)
		other := app.bound(unix.SOCK_DGRAM, w.abstract("other"))
		// The kernel refuses that by itself: the client hears its service only.
		wantErrno(t, "answer from another socket", app.do(unixOp{Do: "send", Sock: other, Name: []byte(w.abstract("client"))}).Errno, unix.EPERM)

		// A datagram socket is judged each time, connected or not.
		w.rule(subjectApp, "**late", true, 0)
		here(t).bound(unix.SOCK_DGRAM, w.abstract("late"))
		s := app.socket(unix.SOCK_DGRAM)
		app.must(unixOp{Do: "connect", Sock: s, Name: []byte(w.abstract("late"))})
		wantErrno(t, "connected", app.do(unixOp{Do: "send", Sock: s}).Errno, 0)
		w.unrule()
		wantErrno(t, "connected, without its rule", app.do(unixOp{Do: "send", Sock: s}).Errno, unix.EPERM)

		// A name that bind was given as no clean path is one that no rule is about.
		w.rule(subjectApp, "**", false, 0)
		server := w.box(Container{Role: RoleSidecar, Subject: subjectSidecar})
		server.must(unixOp{Do: "chdir", Path: w.dir})
		server.bound(unix.SOCK_STREAM, "relative")
		wantErrno(t, "relative", app.connect(unix.SOCK_STREAM, w.path("relative")), unix.EPERM)
		server.bound(unix.SOCK_STREAM, w.path("absolute"))
		wantErrno(t, "absolute", app.connect(unix.SOCK_STREAM, w.path("absolute")), 0)

		// Autobind gives a name as any other.
		auto := here(t).socket(unix.SOCK_STREAM)
		here(t).must(unixOp{Do: "bind", Sock: auto})
		here(t).must(unixOp{Do: "listen", Sock: auto})
		name, err := unix.Getsockname(auto)
		if err != nil {
			t.Fatal(err)
		}
		abstract := "\x00" + name.(*unix.SockaddrUnix).Name[1:]
		if _, err := hex.DecodeString("0" + abstract[1:]); err != nil || len(abstract) != 6 {
			t.Fatalf("autobind gave %q", abstract)
		}
		wantErrno(t, "autobind", app.connect(unix.SOCK_STREAM, abstract), unix.EPERM)
		w.rule(subjectApp, "[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]", true, 0)
		wantErrno(t, "autobind, rule", app.connect(unix.SOCK_STREAM, abstract), 0)
	})
}
