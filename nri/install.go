// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sidegate/cgroups/ktls"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// installed are the programs beside this one that the host needs: the hook runs in the
// runtime's mount namespace, and people look for the command there.
func installed() []string { return []string{"sidegate-oci-hook", "sidegate"} }

const (
	// manifest is the file in the directory of policies that lists those which install put
	// there, one name on each line. Hidden files are no policies.
	manifest = ".sidegate-installed"
	// unfinished begins the names of files that are being written.
	unfinished = ".sidegate-new-"
)

// installOptions is the command line of `sidegate-nri install`.
type installOptions struct {
	from      string // directory of the programs
	to        string
	policies  string
	policyDir string
	ktls      string
}

func newInstall() *cobra.Command {
	var o installOptions
	cmd := &cobra.Command{
		Use:   "install --to DIRECTORY",
		Short: "Put the hook, the command and policies where a node's runtime finds them",
		Long: `Copies sidegate-oci-hook and sidegate, and policies and files for kTLS if asked to, and prints what it changed. It may be run again,
and be killed, at any time: a file is the old or the new one, whole. Nothing is changed if a policy has a fault.

It is for an image whose container has directories of the node mounted; make install does the same on a machine.`,
		Example: `  sidegate-nri install --to /opt/sidegate/bin --policies /config/policies --policy-dir /etc/sidegate/policies`,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return install(o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "`directory` of sidegate-oci-hook and sidegate (default: this program's own)")
	f.StringVar(&o.to, "to", "", "`directory` to copy them to, as the runtime sees it; the configuration's hook is in it")
	f.StringVar(&o.policies, "policies", "", "`directory` of policies to copy, such as a mounted ConfigMap (default: copy none)")
	f.StringVar(&o.policyDir, "policy-dir", policy.DefaultDir, "`directory` to copy them to, as the hook sees it")
	f.StringVar(&o.ktls, "ktls", "", "`directory` to copy the files to that containers mount for kTLS, as the runtime sees it; the configuration's ktlsDir (default: copy none)")
	f.SortFlags = false
	return cmd
}

// install puts the programs, and policies, where the runtime and its hooks find them, and
// says what it changed. It may be run again, and be killed, at any time: a file is the old
// or the new one, whole. It changes nothing if a policy has a fault.
func install(o installOptions, stdout io.Writer) error {
	if o.to == "" {
		return cli.Usage(errors.New("install: --to is missing: write the directory of the host that the hook is to be in"))
	}
	if o.from == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.from = filepath.Dir(self)
	}
	if o.policies != "" {
		if err := checkPolicies(o.policies, o.policyDir); err != nil {
			return fmt.Errorf("install policies: nothing was changed: %w", err)
		}
	}
	if err := installPrograms(o, stdout); err != nil {
		return fmt.Errorf("install programs: %w", err)
	}
	if o.ktls != "" {
		if err := installKTLS(o, stdout); err != nil {
			return fmt.Errorf("install files for kTLS: %w", err)
		}
	}
	if o.policies != "" {
		if err := installPolicies(o.policies, o.policyDir, stdout); err != nil {
			return fmt.Errorf("install policies: %w", err)
		}
	}
	return nil
}

func installPrograms(o installOptions, stdout io.Writer) (err error) {
	to, err := openTarget(o.to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(to.dir.Fd()), &st); err != nil {
		return fmt.Errorf("look at %s: %w", o.to, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is on a file system that is mounted noexec, from which the runtime cannot run the hook: choose another directory", o.to)
	}
	for _, name := range installed() {
		program, err := os.ReadFile(filepath.Join(o.from, name))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: it has to be beside sidegate-nri, or where --from says", err)
		}
		if err != nil {
			return err
		}
		if err := to.put(name, program, 0o755, stdout); err != nil {
			return err
		}
	}
	return nil
}

// installKTLS copies what containers mount that ask for it.
func installKTLS(o installOptions, stdout io.Writer) (err error) {
	to, err := openTarget(o.ktls)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	for _, name := range ktls.Files() {
		text, err := os.ReadFile(filepath.Join(o.from, "ktls", name))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: it has to be in ktls beside sidegate-nri, or where --from says", err)
		}
		if err != nil {
			return err
		}
		if err := to.put(name, text, 0o644, stdout); err != nil {
			return err
		}
	}
	return nil
}

// checkPolicies tells whether the directory's policies, together with those that others put
// where they are to go, are without fault.
func checkPolicies(from, to string) error {
	wanted, err := policy.LoadDir(from)
	if err != nil {
		return err
	}
	names, err := policyNames(from)
	if err != nil {
		return err
	}
	ours, err := readManifest(to)
	if err != nil {
		return err
	}
	there, err := policyNames(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Who copies a policy by hand and then has it installed has not lost it.
	var errs []error
	for _, name := range there {
		if slices.Contains(ours, name) {
			continue
		}
		path := filepath.Join(to, name)
		text, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if slices.Contains(names, name) {
			source := filepath.Join(from, name)
			if same, err := holds(source, text); err != nil {
				errs = append(errs, err)
			} else if !same {
				errs = append(errs, fmt.Errorf("%s is there already, differs from %s, and was not put there by install: rename or remove one of them", path, source))
			}
			continue
		}
		others, err := policy.Parse(path, text)
		if err != nil {
			continue // not ours to judge; sidegate policy validate does
		}
		for _, other := range others {
			if p := wanted[other.Metadata.Name]; p != nil {
				errs = append(errs, fmt.Errorf("%s: %s is the name of the policy at %s too, which was not put there by install: rename or remove one of them",
					p.Source(), p.Metadata.Name, other.Source()))
			}
		}
	}
	return errors.Join(errs...)
}

// installPolicies copies a directory of policies that checkPolicies found right, and
// removes those that it copied before and that are gone. First it writes down what it is
// about to put there, so that a later run knows whose it is if this one is killed.
func installPolicies(from, dir string, stdout io.Writer) (err error) {
	names, err := policyNames(from)
	if err != nil {
		return err
	}
	to, err := openTarget(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	old, err := readManifest(dir)
	if err != nil {
		return err
	}
	texts := make(map[string][]byte)
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		_, err = os.Lstat(filepath.Join(dir, name))
		switch {
		case err == nil && !slices.Contains(old, name): // another's, the same
			continue
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		texts[name] = text
	}
	now := slices.Sorted(maps.Keys(texts))
	if err := to.writeManifest(slices.Concat(old, now)); err != nil {
		return err
	}
	for _, name := range now {
		if err := to.put(name, texts[name], 0o644, stdout); err != nil {
			return err
		}
	}
	// After the new ones: a pod that starts between finds a policy twice, which is an
	// error, and not none, which may be none for it.
	for _, name := range old {
		if slices.Contains(now, name) {
			continue
		}
		err := os.Remove(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "removed %s\n", filepath.Join(dir, name))
	}
	return to.writeManifest(now)
}

// policyNames lists the names of a directory's files that are policies, sorted, as
// [policy.LoadDir] finds them. A ConfigMap's are symbolic links into a hidden directory.
func policyNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	var names []string
	for _, e := range entries {
		if isPolicyName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func isPolicyName(name string) bool {
	ext := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml") && name == filepath.Base(name)
}

func readManifest(dir string) ([]string, error) {
	path := filepath.Join(dir, manifest)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was installed before: %w", err)
	}
	names := strings.Fields(string(text))
	for _, name := range names {
		if !isPolicyName(name) {
			return nil, fmt.Errorf("%s: %q is no name of a policy's file: remove the line, or the file if no policy here was installed", path, name)
		}
	}
	return names, nil
}

// target is a directory that one process at a time puts files into.
type target struct {
	path string
	dir  *os.File
}

// openTarget makes the directory if there is none, locks it, and removes what a process
// that was killed left half written.
func openTarget(path string) (*target, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, readOnly(path, err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, dir: dir}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), dir.Close())
	}
	left, err := filepath.Glob(filepath.Join(path, unfinished+"*"))
	for _, file := range left {
		err = errors.Join(err, os.Remove(file))
	}
	if err != nil {
		return nil, errors.Join(readOnly(path, err), dir.Close())
	}
	return t, nil
}

// close also unlocks.
func (t *target) close() error { return t.dir.Close() }

// writeManifest writes nothing where there was nothing to write down.
func (t *target) writeManifest(names []string) error {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	var text bytes.Buffer
	for _, name := range names {
		fmt.Fprintln(&text, name)
	}
	if _, err := os.Lstat(filepath.Join(t.path, manifest)); errors.Is(err, fs.ErrNotExist) && len(names) == 0 {
		return nil
	}
	return t.put(manifest, text.Bytes(), 0o644, io.Discard)
}

// put makes a file of the directory, if it is not as it should be: under another name first,
// so that nobody sees it half written, a program that runs is not written to, and who has it
// open keeps what they have.
func (t *target) put(name string, data []byte, mode os.FileMode, stdout io.Writer) error {
	path := filepath.Join(t.path, name)
	st, err := os.Lstat(path)
	if err == nil && st.Mode() == mode {
		same, err := holds(path, data)
		if err != nil {
			return err
		}
		if same {
			return nil
		}
	}
	if err == nil && st.IsDir() {
		return fmt.Errorf("%s is a directory: move it away", path)
	}
	f, err := os.CreateTemp(t.path, unfinished+"*")
	if err != nil {
		return readOnly(t.path, err)
	}
	_, err = f.Write(data)
	err = cmp.Or(err, f.Chmod(mode), f.Sync())
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	if err := t.dir.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	fmt.Fprintf(stdout, "installed %s\n", path)
	return nil
}

// holds tells whether a file has this content.
func holds(path string, data []byte) (bool, error) {
	st, err := os.Stat(path)
	if err != nil || st.Size() != int64(len(data)) {
		return false, err
	}
	has, err := os.ReadFile(path)
	return err == nil && bytes.Equal(has, data), err
}

// readOnly says what to do about a host whose directory cannot be written to.
func readOnly(path string, err error) error {
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: choose a directory of the host that can be written to, and set the configuration's hook to it", err)
	}
	return fmt.Errorf("make %s: %w", path, err)
}
