// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// sharedObjects returns what a dynamic program needs beside itself: its interpreter and its libraries, recursively, at the paths
// where the interpreter looks for them.
func sharedObjects(program string) ([]string, error) {
	dirs := append(configuredDirs("/etc/ld.so.conf"), "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	var found []string
	seen := map[string]bool{program: true}
	for queue := []string{program}; len(queue) > 0; queue = queue[1:] {
		names, err := neededBy(queue[0])
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			path, err := findLibrary(name, dirs)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", queue[0], err)
			}
			if !seen[path] {
				seen[path] = true
				found, queue = append(found, path), append(queue, path)
			}
		}
	}
	return found, nil
}

// neededBy returns the DT_NEEDED entries and the interpreter of an ELF file.
func neededBy(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interp, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		names = append(names, string(bytes.TrimRight(interp, "\x00")))
	}
	return names, nil
}

// findLibrary looks for name in dirs, unless it is a path.
func findLibrary(name string, dirs []string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s: %w", name, errors.ErrUnsupported)
}

// configuredDirs returns the directories that an ld.so.conf names. What cannot be read names none.
func configuredDirs(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var dirs []string
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "include":
			files, _ := filepath.Glob(fields[1])
			for _, file := range files {
				dirs = append(dirs, configuredDirs(file)...)
			}
		case len(fields) == 1:
			dirs = append(dirs, fields[0])
		}
	}
	return dirs
}
