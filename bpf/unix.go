// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// UnixKind is how a kernel can judge what UNIX sockets a container reaches.
type UnixKind int

const (
	// UnixNone: not at all.
	UnixNone UnixKind = iota
	// UnixCgroup: by the name that connect or sendto is given, since Linux
	// 6.7. A link or a mount that the container can make gives a socket
	// another name, and whose socket it is cannot be known: a rule with peers
	// lets nothing through. A socket has the rights of the container that made
	// it, and a connected one is not judged again.
	UnixCgroup
	// UnixLSM: by the socket that it is, its owner and the name that it is
	// bound to, since Linux 6.0 where BPF is among the kernel's security
	// modules (lsm=...,bpf). What counts is the container of the process that
	// calls, not who made its socket; each datagram is judged. A container
	// always reaches its own sockets, and answers whoever has connected to
	// its. A name that bind was given as no clean path matches no rule.
	UnixLSM
)

// String returns the kind as people read it.
func (k UnixKind) String() string {
	switch k {
	case UnixCgroup:
		return "cgroup"
	case UnixLSM:
		return "lsm"
	}
	return "none"
}

// ProbeUnix returns the best that this kernel can do. It takes less than a
// millisecond and leaves nothing behind. Who may not load programs gets UnixNone.
func ProbeUnix() UnixKind {
	for _, kind := range []UnixKind{UnixLSM, UnixCgroup} {
		if probeUnix(kind) == nil {
			return kind
		}
	}
	return UnixNone
}

// probeUnix returns why the kernel does not load programs of a kind, or would
// not run them.
func probeUnix(kind UnixKind) error {
	if kind == UnixLSM {
		return ProbeLSM()
	}
	return loadTrivial(ebpf.CGroupSockAddr, ebpf.AttachCgroupUnixConnect)
}

// ProbeLSM returns why the kernel does not run programs of its security module for
// BPF, or nil.
func ProbeLSM() error {
	// Where BPF is compiled in but not on, programs load and attach, and never
	// run.
	modules, err := SecurityModules()
	if err != nil {
		return err
	}
	if !slices.Contains(modules, "bpf") {
		return fmt.Errorf("bpf is not among the security modules %s", strings.Join(modules, ","))
	}
	// To find the number of a hook takes longer than all else here. Without it
	// a program is invalid; where none is let in, EPERM comes first.
	err = loadTrivial(ebpf.LSM, ebpf.AttachLSMCgroup)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// loadTrivial loads and unloads a program that allows all.
func loadTrivial(programType ebpf.ProgramType, attach ebpf.AttachType) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         programType,
		AttachType:   attach,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return err
	}
	return p.Close()
}

// SecurityModules returns the names of the kernel's security modules that are on.
func SecurityModules() ([]string, error) {
	text, err := securityModules()
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(text), ","), nil
}

// securityModules returns the names of those that are on, separated by commas.
func securityModules() (string, error) {
	if b, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil {
		return string(b), nil
	}
	return unmountedSecurityModules()
}

// unmountedSecurityModules reads them from a mount of its own, which has no
// place in any mount namespace. It needs CAP_SYS_ADMIN.
func unmountedSecurityModules() (string, error) {
	fs, err := unix.Fsopen("securityfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open securityfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return "", fmt.Errorf("make securityfs: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("mount securityfs: %w", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, "lsm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open security modules: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lsm")
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("read security modules: %w", err)
	}
	return string(b), nil
}

// UnixHooks returns what is attached to the cgroup of a container whose UNIX
// sockets are judged, by a link of Linux 5.7. It has none for UnixNone.
func UnixHooks(kind UnixKind) []Hook {
	switch kind {
	case UnixCgroup:
		return []Hook{
			{unixProgSgConnectUnix, ebpf.AttachCgroupUnixConnect},
			{unixProgSgSendmsgUnix, ebpf.AttachCgroupUnixSendmsg},
		}
	case UnixLSM:
		return []Hook{
			{lsmProgSgLsmConnect, ebpf.AttachLSMCgroup},
			{lsmProgSgLsmSend, ebpf.AttachLSMCgroup},
		}
	}
	return nil
}

// LoadUnix loads the programs of UnixHooks, by their names. They use m's maps.
// The caller owns them. A verifier error is an *ebpf.VerifierError.
func LoadUnix(m *Maps, kind UnixKind) (programs map[string]*ebpf.Program, err error) {
	maps := m.byName()
	switch kind {
	case UnixCgroup:
		var p unixPrograms
		if err := loadUnixObjects(&p, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
			return nil, fmt.Errorf("load unix object: %w", err)
		}
		return map[string]*ebpf.Program{
			unixProgSgConnectUnix: p.SgConnectUnix,
			unixProgSgSendmsgUnix: p.SgSendmsgUnix,
		}, nil
	case UnixLSM:
		return loadLSM(maps, lsmProgSgLsmConnect, lsmProgSgLsmSend)
	}
	return nil, errors.New("load programs for UNIX sockets: the kernel has no hook for them")
}

func (m *Maps) byName() map[string]*ebpf.Map {
	maps := map[string]*ebpf.Map{}
	for name, f := range m.fields() {
		maps[name] = *f
	}
	return maps
}

// FamilyHook is attached to the cgroup of a container of this role, which has rules
// or not, where BPF LSM is on: it refuses families of sockets that no other hook
// sees, such as AF_VSOCK. There is none for who may have them.
func FamilyHook(role Role, ruled bool) (Hook, bool) {
	free := (role == RoleSidecar || role == RoleExempt) && !ruled
	return Hook{lsmProgSgLsmSocket, ebpf.AttachLSMCgroup}, !free
}

// LoadFamily loads the program of FamilyHook, which uses m's maps. It returns nil
// where BPF is not among the kernel's security modules.
func LoadFamily(m *Maps) (*ebpf.Program, error) {
	if ProbeLSM() != nil {
		return nil, nil
	}
	programs, err := loadLSM(m.byName(), lsmProgSgLsmSocket)
	return programs[lsmProgSgLsmSocket], err
}

// loadLSM loads these programs of the LSM object.
func loadLSM(maps map[string]*ebpf.Map, names ...string) (_ map[string]*ebpf.Program, err error) {
	spec, err := loadLsm()
	if err != nil {
		return nil, fmt.Errorf("parse lsm object: %w", err)
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	programs := map[string]*ebpf.Program{}
	defer func() {
		if err != nil {
			for _, p := range programs {
				p.Close()
			}
		}
	}()
	for _, name := range names {
		if programs[name], err = loadLSMCgroup(kernel, spec.Programs[name], maps); err != nil {
			return nil, fmt.Errorf("load lsm object: program %s: %w", name, err)
		}
	}
	return programs, nil
}

// UnixKey is the key of map unix_rules. N counts a subject's rules from 0,
// without gaps: the first that is missing ends them.
type UnixKey = unixSgUnixKey

// UnixRule is a rule about UNIX sockets: value of map unix_rules. It has 4 KiB.
type UnixRule = unixSgUnixRule

// Limits of rules about UNIX sockets.
const (
	// MaxUnixRules is how many a subject has.
	MaxUnixRules = 16
	// MaxUnixPeers is how many peers a rule has.
	MaxUnixPeers = len(UnixRule{}.Peer)
	// unixPathLen is how many bytes a path has at most, without a 0 at its
	// end. The name of an abstract socket has one less, without the 0 that
	// it begins with.
	unixPathLen = 108
	// unixStates is how many states an automaton has, the last one included.
	unixStates = 128
)

// NewUnixRule compiles a pattern into a rule that lets a subject reach the UNIX
// sockets whose whole name it matches: paths, or abstract names without the 0
// that they begin with.
//
//	?         one byte but '/'
//	*         any number of bytes but '/'
//	**        any number of any bytes
//	[a-z_]    one byte of a class, never '/'
//	[!a-z_]   one byte that is not of the class, nor '/'
//	\x        x itself, also in a class
//
// Letters are bytes: ? is a part of a letter that is not ASCII, and a class has
// ASCII only. '/' means the same in abstract names, which may also have a 0.
// A path is absolute and clean, without "//", "/./" and "/../": no other is ever
// let through, and so a pattern for one is an error.
//
// sockType is SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, or 0 for all. rule is a
// number for people. peers are the subjects whose sockets it is about, at most
// MaxUnixPeers; without any it is about everybody's, those of other pods and
// of the host included. Peers need UnixLSM.
func NewUnixRule(pattern string, abstract bool, sockType uint8, rule uint32, peers []uint32) (UnixRule, error) {
	r := UnixRule{Type: sockType, Rule: rule}
	if !slices.Contains([]uint8{0, unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET}, sockType) {
		return UnixRule{}, fmt.Errorf("UNIX sockets have no type %d", sockType)
	}
	if len(peers) > MaxUnixPeers {
		return UnixRule{}, fmt.Errorf("%d peers: a rule about UNIX sockets has at most %d", len(peers), MaxUnixPeers)
	}
	if slices.Contains(peers, 0) {
		return UnixRule{}, errors.New("a peer of a rule about UNIX sockets is no container")
	}
	r.Npeers = uint8(copy(r.Peer[:], peers))
	c := unixCompiler{rule: &r, rest: pattern, longest: unixPathLen}
	if abstract {
		r.Abstract = 1
		c.longest--
	}
	if err := c.compile(); err != nil {
		return UnixRule{}, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	return r, nil
}

// byteClass is a set of bytes.
type byteClass [256]bool

// unixCompiler makes an automaton of a pattern: state n is before its n-th part.
type unixCompiler struct {
	rule    *UnixRule
	rest    string // of the pattern
	longest int    // name
	state   int
	bytes   int // that a name has at least
	// Of the component of a path that is being read:
	literal []byte
	wild    bool
}

func (c *unixCompiler) compile() error {
	if c.rest == "" {
		return errors.New("is empty")
	}
	if c.rule.Abstract == 0 && c.rest[0] != '/' && !strings.HasPrefix(c.rest, "**") {
		return errors.New("is no absolute path: begin with '/' or '**'")
	}
	for c.rest != "" {
		if err := c.part(); err != nil {
			return err
		}
		switch {
		case c.bytes > c.longest:
			return fmt.Errorf("matches no name: none has more than %d bytes", c.longest)
		case c.state >= unixStates:
			return fmt.Errorf("has more than %d parts", unixStates-1)
		}
	}
	setState(&c.rule.Accept, c.state)
	return c.component()
}

// part takes the next part of the pattern: a star, a byte, a class.
func (c *unixCompiler) part() error {
	b := c.rest[0]
	c.rest = c.rest[1:]
	switch b {
	case '*':
		c.star()
		return nil
	case '?':
		c.class(byteClass{}, true)
		return nil
	case '[':
		class, not, err := c.readClass()
		if err != nil {
			return err
		}
		if !c.class(class, not) {
			return errors.New("has a class that no byte is of")
		}
		return nil
	case '\\':
		if c.rest == "" {
			return errors.New(`ends in '\'`)
		}
		b = c.rest[0]
		c.rest = c.rest[1:]
	}
	return c.byte(b)
}

// star takes the stars that follow, too, so that no two states of stars do.
func (c *unixCompiler) star() {
	set := &c.rule.Star
	for c.rest != "" && c.rest[0] == '*' {
		set = &c.rule.Deep
		c.rest = c.rest[1:]
	}
	setState(set, c.state)
	c.state++
	c.wild = true
}

func (c *unixCompiler) byte(b byte) error {
	switch {
	case b == '/':
		if c.state > 0 { // not the first
			if err := c.component(); err != nil {
				return err
			}
		}
		c.literal, c.wild = c.literal[:0], false
	case b == 0 && c.rule.Abstract == 0:
		return errors.New("has a 0, which ends a path")
	default:
		c.literal = append(c.literal, b)
	}
	c.match(b)
	c.next()
	return nil
}

// class adds a state for the bytes of class, or for those that are not. It
// returns whether there are any.
func (c *unixCompiler) class(class byteClass, not bool) bool {
	found := false
	for i, in := range class {
		if in != not && i != '/' {
			c.match(byte(i))
			found = true
		}
	}
	c.wild = true
	c.next()
	return found
}

func (c *unixCompiler) match(b byte) {
	setState(&c.rule.Match[b], c.state)
}

func (c *unixCompiler) next() {
	c.state++
	c.bytes++
}

// readClass reads a class behind its '['.
func (c *unixCompiler) readClass() (class byteClass, not bool, err error) {
	c.rest, not = strings.CutPrefix(c.rest, "!")
	for !strings.HasPrefix(c.rest, "]") {
		first, err := c.classByte()
		if err != nil {
			return class, not, err
		}
		last := first
		if len(c.rest) > 1 && c.rest[0] == '-' && c.rest[1] != ']' {
			c.rest = c.rest[1:]
			if last, err = c.classByte(); err != nil {
				return class, not, err
			}
		}
		if first > last {
			return class, not, fmt.Errorf("has the range %q-%q, which ends before it begins", first, last)
		}
		for b := int(first); b <= int(last); b++ {
			class[b] = true
		}
	}
	c.rest = c.rest[1:]
	return class, not, nil
}

func (c *unixCompiler) classByte() (byte, error) {
	c.rest = strings.TrimPrefix(c.rest, `\`)
	if c.rest == "" {
		return 0, errors.New("has a '[' without its ']'")
	}
	b := c.rest[0]
	if b >= 0x80 {
		return 0, errors.New("has a class with more than ASCII: a class is of bytes")
	}
	c.rest = c.rest[1:]
	return b, nil
}

// component looks at the one that ends: no path that is judged has an empty one,
// "." or "..".
func (c *unixCompiler) component() error {
	if c.rule.Abstract != 0 || c.wild {
		return nil
	}
	switch part := string(c.literal); part {
	case "", ".", "..":
		return fmt.Errorf("has the component %q: paths are clean", part)
	}
	return nil
}

func setState(s *unixSgUnixSet, state int) {
	s.W[state/64] |= 1 << (state % 64)
}
