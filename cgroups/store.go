// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// DefaultState is where the pins are.
const DefaultState = "/sys/fs/bpf/sidegate"

// StateEnv names a variable that moves the state elsewhere on a BPF file
// system. Two states do not see each other.
const StateEnv = "SIDEGATE_STATE_DIR"

// StateDir returns the state directory that the environment asks for.
func StateDir() string { return cmp.Or(os.Getenv(StateEnv), DefaultState) }

// VersionDir returns where below the state directory this version has its pins:
// maps, progs, guard, slots, pods, containers and, where there are any, endpoints.
func VersionDir(state string) string { return filepath.Join(state, fmt.Sprintf("v%d", bpf.ABI)) }

var (
	// ErrNotLoaded says that nothing of Sidegate is in the kernel.
	ErrNotLoaded = errors.New("sidegate is not loaded")
	// ErrUnsupported says that this kernel lacks what enforcement needs.
	ErrUnsupported = errors.New("not supported by this kernel")
	// ErrVersion says that another version of Sidegate is loaded.
	ErrVersion = errors.New("made by another version")
)

// Store is the opened, locked state. It owns the lock and all descriptors
// until Close.
type Store struct {
	dir   string // <state>/v<ABI>
	lock  *os.File
	mount Mount
	maps  *bpf.Maps

	endpoints *bpf.Endpoints // nil until something asks for them
}

// No dot: a BPF file system reserves names that have one.
const tmpPrefix = "tmp-"

// Open locks the state and loads what enforces if it is not there yet: maps,
// programs, and the guard on the root cgroup. All of it or nothing.
func Open(state string) (*Store, error) {
	s, err := lockState(state, true)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		err = s.install()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("load sidegate into the kernel: %w", explain(err)), s.Close())
		}
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("open state: %w", err), s.Close())
	}
	return s.openMaps()
}

// OpenExisting locks the state if there is one, else it returns ErrNotLoaded.
func OpenExisting(state string) (*Store, error) {
	s, err := lockState(state, false)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(ErrNotLoaded, s.Close())
	}
	return s.openMaps()
}

// IfLoaded runs f on the state, locked, if something is loaded there.
func IfLoaded(state string, f func(*Store) error) (err error) {
	s, err := OpenExisting(state)
	if errors.Is(err, ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return f(s)
}

func (s *Store) openMaps() (*Store, error) {
	if s.maps != nil { // just made
		return s, nil
	}
	m, err := bpf.OpenMaps(s.pinnedMap)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state %s: %w", s.dir, err), s.Close())
	}
	s.maps = m
	return s, nil
}

func (s *Store) pinnedMap(name string) (*ebpf.Map, error) {
	return ebpf.LoadPinnedMap(filepath.Join(s.dir, "maps", name), nil)
}

// loadedID is the id of map pods, which tells a state from one that is loaded later. Of what is not loaded the error is an
// fs.ErrNotExist.
func loadedID(state string) (ebpf.MapID, error) {
	m, err := (&Store{dir: VersionDir(state)}).pinnedMap("pods")
	if err != nil {
		return 0, fmt.Errorf("open map pods: %w", err)
	}
	defer m.Close()
	return mapID(m)
}

// isLoaded tells whether the state of this id is what is loaded.
func isLoaded(state string, id ebpf.MapID) (bool, error) {
	now, err := loadedID(state)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return now == id, err
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("ask for the id of %s: %w", m, err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("%s has no id", m)
	}
	return id, nil
}

func lockState(state string, create bool) (*Store, error) {
	var fsinfo unix.Statfs_t
	parent := filepath.Dir(state)
	if err := unix.Statfs(parent, &fsinfo); err != nil {
		return nil, fmt.Errorf("open state: stat %s: %w", parent, err)
	}
	if fsinfo.Type != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("open state: %s is no BPF file system: run `mount -t bpf bpf /sys/fs/bpf`", parent)
	}
	if create {
		if err := os.Mkdir(state, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make state: %w", err)
		}
	}
	f, err := os.Open(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotLoaded
	}
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	s := &Store{dir: VersionDir(state), lock: f}
	if err := flock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock state %s: %w", state, err), s.Close())
	}
	// The directory may have been removed, and made anew, while this process
	// waited: then another one may hold the lock that counts.
	mine, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state: %w", err), s.Close())
	}
	if there, err := os.Stat(state); err != nil || !os.SameFile(mine, there) {
		if err := s.Close(); err != nil {
			return nil, fmt.Errorf("open state: %w", err)
		}
		return lockState(state, create)
	}
	if err := s.checkABI(state); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.mount, err = FindMount(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// checkABI refuses state of another ABI, since two guards would disagree, and
// sweeps what a process left half-made that was killed with the lock held.
func (s *Store) checkABI(state string) error {
	entries, err := os.ReadDir(state)
	if err != nil {
		return fmt.Errorf("list state: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == filepath.Base(s.dir):
		case strings.HasPrefix(name, tmpPrefix):
			if err := removePins(filepath.Join(state, name)); err != nil {
				return fmt.Errorf("sweep unfinished load: %w", err)
			}
		default:
			return fmt.Errorf("state %s was %w (this one has ABI %d): "+
				"run that version's `sidegate unload` first", filepath.Join(state, name), ErrVersion, bpf.ABI)
		}
	}
	return nil
}

// install loads and pins everything in a temporary directory and renames it.
func (s *Store) install() error {
	node, err := bpf.LoadNode()
	if err != nil {
		return err
	}
	defer node.Close()
	root, err := s.mount.Open("/")
	if err != nil {
		return fmt.Errorf("attach guard: %w", err)
	}
	defer root.Close()

	return s.transaction(s.dir, func(tmp string) error {
		for _, sub := range []string{"maps", "progs", "guard", "pods", "containers"} {
			if err := os.Mkdir(filepath.Join(tmp, sub), 0o700); err != nil {
				return err
			}
		}
		if err := node.Maps["accel_info"].Put(uint32(0), testAcceleration(node)); err != nil {
			return fmt.Errorf("put what the self-test found: %w", err)
		}
		for _, name := range bpf.MapNames() {
			if err := node.Maps[name].Pin(filepath.Join(tmp, "maps", name)); err != nil {
				return err
			}
		}
		for _, name := range node.ProgramNames() {
			if err := node.Programs[name].Pin(filepath.Join(tmp, "progs", name)); err != nil {
				return err
			}
		}
		s.maps, err = bpf.OpenMaps(func(name string) (*ebpf.Map, error) { return node.Maps[name].Clone() })
		if err != nil {
			return err
		}
		if err := s.pinFamily(tmp); err != nil {
			return err
		}
		if err := s.fillSlots(tmp); err != nil {
			return err
		}
		return attachAll(root, bpf.GuardHooks(), filepath.Join(tmp, "guard"), func(name string) (*ebpf.Program, error) {
			return node.Programs[name].Clone()
		})
	})
}

// attachAll attaches hooks to cg and pins each link below dir. On error the
// caller removes dir, which detaches what was attached.
func attachAll(cg *Cgroup, hooks []bpf.Hook, dir string, program func(string) (*ebpf.Program, error)) error {
	for _, h := range hooks {
		if err := attachOne(cg, h, dir, program); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.Program, cg.Path, err)
		}
	}
	return nil
}

func attachOne(cg *Cgroup, h bpf.Hook, dir string, program func(string) (*ebpf.Program, error)) error {
	prog, err := program(h.Program)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cg.Fd()), Program: prog, Attach: h.Attach})
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(filepath.Join(dir, h.Program))
}

// transaction runs f on a new directory beside final and renames it to final
// if f succeeds, else removes it with all that is in it.
func (s *Store) transaction(final string, f func(tmp string) error) (err error) {
	tmp := filepath.Join(filepath.Dir(final), tmpPrefix+strconv.Itoa(os.Getpid()))
	// Under the lock, one that is there is what a process with this pid left.
	if err := removePins(tmp); err != nil {
		return fmt.Errorf("sweep %s: %w", tmp, err)
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", tmp, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removePins(tmp))
		}
	}()
	if err := f(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, final)
}

// removePins detaches every link below dir and removes dir. To remove the pins
// alone would leave it to the kernel when to detach: it puts that off.
func removePins(dir string) error {
	var errs []error
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil //nolint:nilerr // a program or a map
		}
		if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
			errs = append(errs, fmt.Errorf("detach %s: %w", path, err))
		}
		errs = append(errs, l.Close())
		return nil
	})
	return errors.Join(append(errs, err, os.RemoveAll(dir))...)
}

func (s *Store) program(name string) (*ebpf.Program, error) {
	return ebpf.LoadPinnedProgram(filepath.Join(s.dir, "progs", name), nil)
}

// Close gives the lock back and closes all descriptors. What is pinned stays.
func (s *Store) Close() error {
	var errs []error
	if s.maps != nil {
		errs = append(errs, s.maps.Close())
	}
	if s.endpoints != nil {
		errs = append(errs, s.endpoints.Close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// ErrManaged says that pods, or guarded endpoints, would lose their enforcement.
var ErrManaged = errors.New("pods are managed")

// Unload removes everything from the kernel: links, programs, maps and pins.
// While pods are managed or endpoints guarded it returns ErrManaged, unless force
// is set: their containers then go on without enforcement. It closes the store.
func Unload(state string, force bool) (err error) {
	s, err := OpenExisting(state)
	if errors.Is(err, ErrNotLoaded) {
		return removeEmpty(state)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.Collect(); err != nil {
		return err
	}
	pods, err := s.podCookies()
	if err != nil {
		return err
	}
	if len(pods) > 0 && !force {
		return fmt.Errorf("%w: %d; stop them, or use --force to let their containers run on without enforcement", ErrManaged, len(pods))
	}
	for _, cookie := range pods {
		if err := s.removePod(cookie); err != nil {
			return err
		}
	}
	if err := s.forgetEndpoints(force); err != nil {
		return err
	}
	// No longer there for anybody else, then taken apart: a process that is
	// killed here leaves what the next one sweeps.
	tmp := filepath.Join(filepath.Dir(s.dir), tmpPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Rename(s.dir, tmp); err != nil {
		return fmt.Errorf("unload: %w", err)
	}
	if err := removePins(tmp); err != nil {
		return fmt.Errorf("unload: %w", err)
	}
	return removeEmpty(state)
}

func removeEmpty(state string) error {
	if err := os.Remove(state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// ids returns the numbers that the entries of a subdirectory are named by.
func (s *Store) ids(sub string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, sub))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", sub, err)
	}
	var ids []uint64
	for _, e := range entries {
		if id, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (s *Store) path(sub string, id uint64) string {
	return filepath.Join(s.dir, sub, strconv.FormatUint(id, 10))
}

// explain adds the next step to errors that people meet.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (needs root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)", err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w (Linux 6.1 or later is needed; `sidegate doctor` lists what is missing)", ErrUnsupported, err)
	}
	return err
}
