// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// DefaultDir is where policies are.
const DefaultDir = "/etc/sidegate/policies"

// DirEnv names the environment variable that replaces [DefaultDir] for the hook and the command.
const DirEnv = "SIDEGATE_POLICY_DIR"

// LoadDir reads all policies of a directory, by name: its files *.yaml and *.yml, in the order of their names.
// Hidden files and other names are passed over; symbolic links are followed; directories below are not read.
//
// Any fault fails the whole directory, because with a part of the policies a pod could get another one than it
// should. The error joins the faults of all files. A directory that does not exist is fs.ErrNotExist.
func LoadDir(dir string) (map[string]*PodPolicy, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	return load(dir, entries)
}

func load(dir string, entries []os.DirEntry) (map[string]*PodPolicy, error) {
	policies := map[string]*PodPolicy{}
	var errs []error
	for _, path := range policyFiles(dir, entries) {
		ps, err := parseFile(path)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range ps {
			if first := policies[p.Metadata.Name]; first != nil {
				errs = append(errs, sameName(p, first))
				continue
			}
			policies[p.Metadata.Name] = p
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return policies, nil
}

// LoadEach reads what [LoadDir] reads, and keeps the files apart: good has the policies, by name, of those that are
// right, broken what is wrong with each of the others, by path. A name that two files have makes both broken. Without
// broken files good is what LoadDir returns. err is for the directory; one that does not exist is fs.ErrNotExist.
func LoadEach(dir string) (good map[string]*PodPolicy, broken map[string]error, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read policies: %w", err)
	}
	good, broken = map[string]*PodPolicy{}, map[string]error{}
	byName := map[string][]*PodPolicy{}
	for _, path := range policyFiles(dir, entries) {
		ps, err := parseFile(path)
		if err != nil {
			broken[path] = err
		}
		for _, p := range ps {
			byName[p.Metadata.Name] = append(byName[p.Metadata.Name], p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		same := byName[name]
		for i := 1; i < len(same); i++ {
			broken[same[i].file] = errors.Join(broken[same[i].file], sameName(same[i], same[0]))
		}
		if len(same) > 1 {
			broken[same[0].file] = errors.Join(broken[same[0].file], sameName(same[0], same[1]))
		}
	}
	for name, same := range byName {
		if broken[same[0].file] == nil {
			good[name] = same[0]
		}
	}
	return good, broken, nil
}

// FingerprintNone is the fingerprint of a directory that does not exist.
const FingerprintNone uint64 = 1

// Fingerprint returns a number that changes when the policies of a directory may have: it is made of the names, sizes,
// times and inodes of the files that [LoadDir] reads, and reads none of them. It is never 0. Who takes it before
// reading never has older policies than it says; two changes within a tick of the kernel's clock, at most 10 ms, may
// look like one.
func Fingerprint(dir string) (uint64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return FingerprintNone, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read policies: %w", err)
	}
	h := fnv.New64a()
	for _, path := range policyFiles(dir, entries) {
		b := append([]byte(filepath.Base(path)), 0)
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err == nil { // else LoadDir will say so
			for _, n := range []int64{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()} {
				b = binary.LittleEndian.AppendUint64(b, uint64(n))
			}
		}
		h.Write(b) // never fails
	}
	return max(h.Sum64(), FingerprintNone+1), nil
}

// policyFiles lists the paths of the files that are policies by their names, sorted.
func policyFiles(dir string, entries []os.DirEntry) (paths []string) {
	for _, e := range entries {
		name := e.Name()
		if ext := filepath.Ext(name); !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml") {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	return paths
}

func parseFile(path string) ([]*PodPolicy, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	return Parse(path, data)
}

func sameName(p, first *PodPolicy) error {
	return &Error{
		File: p.file, Line: p.line, Path: "metadata.name",
		Msg: fmt.Sprintf("%s is the name of the policy at %s too: rename or remove one", show(p.Metadata.Name), first.Source()),
	}
}

// readFile reads a regular file. Others, such as a FIFO, could block a container's start for ever.
func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file: move it away or rename it", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFileSize+1))
}

// Find returns the policy of a name from a directory. The empty name stands for "default", and "default" for
// [Default] where the directory has no policy of that name, or does not exist. Any other name that does not exist is
// an error that lists those that do. Selectors are not looked at: see [Choose].
func Find(dir, name string) (*PodPolicy, error) {
	if name == "" {
		name = DefaultName
	}
	// Only a missing directory is no policies. A file in it that is missing, such as a dangling link, is a fault.
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	policies, err := load(dir, entries)
	if err != nil {
		return nil, err
	}
	p, err := Choose(policies, name, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return p, nil
}
