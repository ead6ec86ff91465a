// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/policy"
)

func newApply(e *env) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "apply [FILE...|-]",
		Short: "Put policies into force, in running pods too",
		Long: "With files: check them, put them into the policy directory, and bring running pods in line.\n" +
			"Without: bring running pods in line with the directory. All pods of a policy change at once,\n" +
			"and connections that it does not allow any more are closed.",
		Example: "  sidegate policy apply --dry-run mesh.yaml    # what would change\n" +
			"  sidegate policy apply mesh.yaml\n" +
			"  sidegate policy apply                        # the directory was changed by other means",
		ValidArgsFunction: policyFiles,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return applyDir(e, dry)
			}
			return applyFiles(e, args, dry)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check, and say what would be done")
	return cmd
}

// applyDir brings the kernel in line with what is right in the directory, and
// then says what is not.
func applyDir(e *env, dry bool) error {
	// Before reading: what changes meanwhile is read again.
	mark, err := policy.Fingerprint(e.policyDir)
	if err != nil {
		return err
	}
	good, broken, err := loadEffective(e)
	if err != nil {
		return err
	}
	kernel, err := kernelPolicies(e)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(good)) {
		if _, used := kernel[name]; good[name].Source() == policy.Default().Source() && !used {
			continue // nobody has written it
		}
		if dry {
			errs = append(errs, sayDry(e, good[name], kernel, ""))
		} else {
			errs = append(errs, applyOne(e, good[name], mark))
		}
	}
	for _, file := range slices.Sorted(maps.Keys(broken)) {
		errs = append(errs, fmt.Errorf("%w\nits policies stay as they are in force", broken[file]))
	}
	return errors.Join(errs...)
}

// kernelPolicies are those in force, by name.
func kernelPolicies(e *env) (map[string]cgroups.PolicyStatus, error) {
	list, err := cgroups.ListPolicies(e.state)
	kernel := make(map[string]cgroups.PolicyStatus, len(list))
	for _, k := range list {
		kernel[k.Name] = k
	}
	return kernel, err
}

// sayDry says what applyOne would do. where is the file that p would become.
func sayDry(e *env, p *policy.PodPolicy, kernel map[string]cgroups.PolicyStatus, where string) error {
	c, err := p.Compile()
	if err != nil {
		return err
	}
	what := "no pod is under it"
	if k, used := kernel[c.Name]; used {
		what = "nothing changes in " + count(len(k.Pods), "pod")
		changed, err := cgroups.Differs(c, k)
		if err != nil {
			return err
		}
		if changed {
			what = "it changes in " + count(len(k.Pods), "pod")
		}
	}
	if where != "" {
		where = ", as " + where
	}
	_, err = fmt.Fprintf(e.stdout, "policy %s would be applied%s: %s\n", c.Name, where, what)
	return err
}

func applyOne(e *env, p *policy.PodPolicy, mark uint64) error {
	c, err := p.Compile()
	if err != nil {
		return err
	}
	pods, err := cgroups.ApplyPolicy(e.state, c, cgroups.Source{Place: p.Source(), Fingerprint: mark})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "policy %s: in force in %s\n", c.Name, count(pods, "pod"))
	return warnOfRunning(e, c.Name)
}

// warnOfRunning tells of containers that run and would not start under the policy.
func warnOfRunning(e *env, name string) error {
	st, err := cgroups.ReadStatus(e.state)
	if err != nil {
		return err
	}
	for _, p := range st.Pods {
		for _, c := range p.Containers {
			if c.Policy == name && c.Refusal != "" {
				fmt.Fprintf(e.stderr, "warning: container %s of pod %s runs on, and would not start now: %s\n", cmp.Or(c.Name, short(c.ID)), short(p.Pod), c.Refusal)
			}
		}
	}
	return nil
}

// applyFiles installs files in the directory, then applies them. If that fails,
// the directory and the kernel are as they were.
func applyFiles(e *env, files []string, dry bool) error {
	list, err := readFiles(e, files)
	if err != nil {
		return err
	}
	before, _, err := loadEffective(e)
	if err != nil {
		return err
	}
	targets, err := targetsOf(e, list, before)
	if err != nil {
		return err
	}
	kernel, err := kernelPolicies(e)
	if err != nil {
		return err
	}
	if dry {
		return dryFiles(e, list, kernel)
	}
	undo, err := install(targets)
	if err == nil {
		err = e.installed(list)
	}
	if err != nil {
		return errors.Join(err, undo())
	}
	mark, err := policy.Fingerprint(e.policyDir)
	for i := 0; err == nil && i < len(list); i++ {
		err = applyOne(e, list[i].PodPolicy, mark)
	}
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("%w\nthe policy directory is as it was", err), undo(), revert(e, list, before, kernel))
}

func dryFiles(e *env, list []source, kernel map[string]cgroups.PolicyStatus) error {
	for i := range list {
		if err := sayDry(e, list[i].PodPolicy, kernel, list[i].target(e.policyDir)); err != nil {
			return err
		}
	}
	return nil
}

// revert puts the kernel's policies back as they were, by what the directory had.
func revert(e *env, list []source, before map[string]*policy.PodPolicy, kernel map[string]cgroups.PolicyStatus) error {
	mark, err := policy.Fingerprint(e.policyDir)
	if err != nil {
		return err
	}
	now, err := kernelPolicies(e)
	if err != nil {
		return err
	}
	var errs []error
	for i := range list {
		k, used := now[list[i].compiled.Name]
		if used && k.Digest != kernel[k.Name].Digest {
			errs = append(errs, putBack(e, k, before[k.Name], mark))
		}
	}
	return errors.Join(errs...)
}

func putBack(e *env, k cgroups.PolicyStatus, p *policy.PodPolicy, mark uint64) error {
	if p == nil {
		return fmt.Errorf("policy %s: the new one is in force in %s, and the directory has no other: "+
			"put the one that you want into %s and apply it", k.Name, count(len(k.Pods), "pod"), e.policyDir)
	}
	c, err := p.Compile()
	if err != nil {
		return err
	}
	if _, err := cgroups.ApplyPolicy(e.state, c, cgroups.Source{Place: p.Source(), Fingerprint: mark}); err != nil {
		return fmt.Errorf("put back policy %s: %w", k.Name, err)
	}
	return nil
}

// target is the path of a policy's file in the directory.
func (s *source) target(dir string) string {
	base := filepath.Base(s.file)
	if s.alone && !(isPolicyFile(base) && sameDir(filepath.Dir(s.file), dir)) {
		base = s.compiled.Name + ".yaml"
	}
	return filepath.Join(dir, base)
}

// isPolicyFile tells whether a file of this name in the directory is read.
func isPolicyFile(name string) bool {
	ext := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml")
}

func sameDir(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// targetsOf says which files of the directory become what. It refuses what would
// take a policy away, or be none.
func targetsOf(e *env, list []source, before map[string]*policy.PodPolicy) (map[string][]byte, error) {
	if err := sameNames(list); err != nil {
		return nil, err
	}
	targets, from := make(map[string][]byte), make(map[string]string)
	for i := range list {
		s := &list[i]
		if err := s.checkName(); err != nil {
			return nil, err
		}
		target := s.target(e.policyDir)
		if other := before[s.compiled.Name]; other != nil && other.Source() != policy.Default().Source() && fileOf(other) != target {
			return nil, fmt.Errorf("policy %s is in %s already: change it there, or remove it", s.compiled.Name, other.Source())
		}
		if other, has := from[target]; has && other != s.file {
			return nil, fmt.Errorf("%s and %s would both be %s: rename one", other, s.file, target)
		}
		targets[target], from[target] = s.data, s.file
	}
	for _, p := range before {
		if _, replaced := targets[fileOf(p)]; replaced && !hasName(list, p.Metadata.Name) {
			return nil, fmt.Errorf("policy %s is in %s too, which %s would replace: put both into one file, or each into its own first",
				p.Metadata.Name, fileOf(p), from[fileOf(p)])
		}
	}
	return targets, nil
}

func hasName(list []source, name string) bool {
	return slices.ContainsFunc(list, func(s source) bool { return s.compiled.Name == name })
}

// checkName refuses a file of several policies whose own name would not make it
// one of the directory's.
func (s *source) checkName() error {
	if s.alone {
		return nil
	}
	if s.file == stdin {
		return errors.New("standard input has several policies, and no name for their file: give a file, or one policy")
	}
	if !isPolicyFile(filepath.Base(s.file)) {
		return fmt.Errorf("%s has several policies and keeps its name, which is none of a policy file: rename it to *.yaml", s.file)
	}
	return nil
}

// installed makes sure that the directory has the policies as they were given,
// and that no broken file, which names could not be known of, has one too.
func (e *env) installed(list []source) error {
	good, broken, err := policy.LoadEach(e.policyDir)
	if err != nil {
		return err
	}
	for i := range list {
		name, target := list[i].compiled.Name, list[i].target(e.policyDir)
		if p := good[name]; p != nil && fileOf(p) == target {
			continue
		}
		return errors.Join(fmt.Errorf("policy %s cannot be in %s", name, target), broken[target])
	}
	return nil
}

// fileOf is the file that the policy was read from.
func fileOf(p *policy.PodPolicy) string {
	source := p.Source()
	return source[:max(strings.LastIndex(source, ":"), 0)]
}

// install writes files, each as a whole or not at all. undo puts back what was
// there before.
func install(targets map[string][]byte) (undo func() error, err error) {
	var undos []func() error
	undo = func() error {
		var errs []error
		for _, u := range slices.Backward(undos) {
			errs = append(errs, u())
		}
		return errors.Join(errs...)
	}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		u, err := replace(target, targets[target])
		if err != nil {
			return undo, err
		}
		undos = append(undos, u)
	}
	return undo, nil
}

// replace makes data a file's contents.
func replace(target string, data []byte) (undo func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return nil, fmt.Errorf("make policy directory: %w", err)
	}
	before, err := os.ReadFile(target)
	switch {
	case err == nil:
		undo = func() error { return writeFile(target, before) }
	case errors.Is(err, fs.ErrNotExist):
		undo = func() error { return removeFile(target) }
	default:
		return nil, fmt.Errorf("read what is there: %w", err)
	}
	return undo, writeFile(target, data)
}

// writeFile replaces a file by rename(2). The name of the temporary one is hidden,
// so that nobody reads it for a policy.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".sidegate-*")
	if err != nil {
		return fmt.Errorf("write policy: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write policy %s: %w", path, err), os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove policy: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes names last, without which a file's contents are of no use after a
// crash.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync policy directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
