// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	for _, e := range entries {
		name := e.Name()
		if ext := filepath.Ext(name); strings.HasPrefix(name, ".") || (ext != ".yaml" && ext != ".yml") {
			continue
		}
		path := filepath.Join(dir, name)
		data, err := readFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read policy: %w", err))
			continue
		}
		ps, err := Parse(path, data)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range ps {
			if first := policies[p.Metadata.Name]; first != nil {
				errs = append(errs, &Error{
					File: p.file, Line: p.line, Path: "metadata.name",
					Msg: fmt.Sprintf("%s is the name of the policy at %s too: rename or remove one", show(p.Metadata.Name), first.Source()),
				})
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
