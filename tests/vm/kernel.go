// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNoKernels says that the cache has no kernel yet. Its text says what to do.
var ErrNoKernels = errors.New("no kernels for the VM tests: run 'make deps' (scripts/vm-kernels.sh)")

// Kernel is one unpacked Debian kernel package.
type Kernel struct {
	// Release is what uname -r says in the VM.
	Release string
	// Dir has vmlinuz and lib/modules/<Release>.
	Dir string
}

// Series is the kernel's major and minor version, such as "6.1".
func (k Kernel) Series() string {
	parts := strings.SplitN(k.Release, ".", 3)
	if len(parts) < 2 {
		return k.Release
	}
	return parts[0] + "." + parts[1]
}

// Kernels lists the kernels that scripts/vm-kernels.sh has fetched, oldest
// first. It returns ErrNoKernels if there are none.
func Kernels() ([]Kernel, error) {
	cache := os.Getenv("SIDEGATE_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("find kernels: %w", err)
		}
		cache = filepath.Join(home, ".cache", "sidegate")
	}
	entries, err := os.ReadDir(filepath.Join(cache, "kernels"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find kernels: %w", err)
	}
	var kernels []Kernel
	for _, entry := range entries {
		// A hidden directory is a download that has not ended.
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
			kernels = append(kernels, Kernel{entry.Name(), filepath.Join(cache, "kernels", entry.Name())})
		}
	}
	if len(kernels) == 0 {
		return nil, ErrNoKernels
	}
	slices.SortFunc(kernels, func(a, b Kernel) int { return compareReleases(a.Release, b.Release) })
	return kernels, nil
}

// Newest is the newest kernel of each series, in the order given, which has to
// be that of Kernels. A cache keeps older ones until somebody removes them.
func Newest(kernels []Kernel) []Kernel {
	var newest []Kernel
	for i, kernel := range kernels {
		if i+1 == len(kernels) || kernels[i+1].Series() != kernel.Series() {
			newest = append(newest, kernel)
		}
	}
	return newest
}

// Find returns the kernel of this release.
func Find(kernels []Kernel, release string) (Kernel, error) {
	i := slices.IndexFunc(kernels, func(k Kernel) bool { return k.Release == release })
	if i < 0 {
		return Kernel{}, fmt.Errorf("no kernel %s: run 'SIDEGATE_KERNELS=linux-image-%s scripts/vm-kernels.sh'", release, release)
	}
	return kernels[i], nil
}

var digits = regexp.MustCompile(`\d+`)

// compareReleases orders releases by the numbers in them.
func compareReleases(a, b string) int {
	numbers := func(release string) []int {
		var list []int
		for _, text := range digits.FindAllString(release, -1) {
			// What overflows is no release of Debian's.
			n, _ := strconv.Atoi(text)
			list = append(list, n)
		}
		return list
	}
	return slices.Compare(numbers(a), numbers(b))
}

// modules reads the named modules, and those they depend on. It returns them
// as files for the VM, uncompressed, in the order to load them in. A module
// that is built into the kernel needs no file. An unknown one is an error, but
// for the optional ones.
func (k Kernel) modules(names, optional []string) ([]File, error) {
	if len(names)+len(optional) == 0 {
		return nil, nil
	}
	dir := filepath.Join(k.Dir, "lib", "modules", k.Release)
	dependencies, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read module dependencies: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read built-in modules: %w", err)
	}
	needs := map[string][]string{}
	paths := map[string]string{}
	for line := range strings.Lines(string(dependencies)) {
		file, list, found := strings.Cut(strings.TrimSpace(line), ":")
		if found {
			paths[moduleName(file)] = file
			needs[file] = strings.Fields(list)
		}
	}
	isBuiltin := map[string]bool{}
	for file := range strings.FieldsSeq(string(builtin)) {
		isBuiltin[moduleName(file)] = true
	}

	var files []File
	done := map[string]bool{}
	var add func(file string) error
	add = func(file string) error {
		if done[file] {
			return nil
		}
		done[file] = true
		for _, need := range needs[file] {
			if err := add(need); err != nil {
				return err
			}
		}
		data, err := readModule(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		guest := filepath.Join("/lib/modules", k.Release, strings.TrimSuffix(file, ".xz"))
		files = append(files, File{Path: guest, Data: data})
		return nil
	}
	for i, name := range slices.Concat(names, optional) {
		file, there := paths[moduleName(name)]
		switch {
		case there:
			if err := add(file); err != nil {
				return nil, err
			}
		case i < len(names) && !isBuiltin[moduleName(name)]:
			return nil, fmt.Errorf("find module %s: kernel %s has none", name, k.Release)
		}
	}
	return files, nil
}

// moduleName is a module's name as the kernel knows it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func readModule(file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read module: %w", err)
		}
		return data, nil
	}
	data, err := exec.Command("xz", "--decompress", "--stdout", file).Output()
	if err != nil {
		return nil, fmt.Errorf("decompress module %s: %w", file, err)
	}
	return data, nil
}
