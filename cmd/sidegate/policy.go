// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/policy"
)

func newPolicy(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write, check, apply and explain policies",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&e.policyDir, "policy-dir", e.policyDir, "directory of policies ($"+policy.DirEnv+")")
	cmd.AddCommand(newValidate(e), newList(e), newApply(e), newDelete(e), newDiff(e), newExplain(e), newAudit(e), newInit(e))
	return cmd
}

// source is a policy of a file, compiled.
type source struct {
	*policy.PodPolicy
	compiled *policy.Compiled
	file     string // "-" is standard input
	data     []byte // of the whole file
	alone    bool   // no other policy is in the file
}

// readFiles parses and compiles all policies of some files. The error joins
// what is wrong with each.
func readFiles(files []string) (list []source, err error) {
	var errs []error
	for _, file := range files {
		read := func() ([]byte, error) { return os.ReadFile(file) }
		if file == "-" {
			read = func() ([]byte, error) { return io.ReadAll(io.LimitReader(os.Stdin, policy.MaxFileSize+1)) }
		}
		data, err := read()
		if err != nil {
			errs = append(errs, fmt.Errorf("read policy: %w", err))
			continue
		}
		ps, err := policy.Parse(file, data)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range ps {
			c, err := p.Compile()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			list = append(list, source{PodPolicy: p, compiled: c, file: file, data: data, alone: len(ps) == 1})
		}
	}
	return list, errors.Join(errs...)
}

func filesArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("%s needs files, or - for standard input", cmd.CommandPath())}
	}
	return nil
}

func newValidate(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE...",
		Short: "Say whether policies are right, and what is wrong where",
		Args:  filesArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			list, err := readFiles(args)
			for _, s := range list {
				fmt.Fprintf(e.stdout, "%s: policy %s: %d rules, %d prefixes, %d entries\n",
					s.Source(), s.compiled.Name, len(s.compiled.Rules), len(s.compiled.Prefixes), len(s.compiled.Entries))
			}
			return err
		},
	}
}

// row is a policy of the directory, or of the kernel, or of both.
type row struct {
	Name   string   `json:"name"`
	Mode   string   `json:"mode"`
	Rules  int      `json:"rules"`
	Pods   []string `json:"pods"`
	State  string   `json:"state"`
	Source string   `json:"source"`
}

func newList(e *env) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List policies: those of the directory, and those in force",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if !slices.Contains(outputs, output) {
				return usageError{fmt.Errorf("unknown output %q: write %s", output, strings.Join(outputs, " or "))}
			}
			rows, err := listPolicies(e)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(e.stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(rows)
			}
			t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tMODE\tRULES\tPODS\tSTATE\tSOURCE")
			for _, r := range rows {
				fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\n", r.Name, cmp.Or(r.Mode, "-"), r.Rules, len(r.Pods), r.State, r.Source)
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func listPolicies(e *env) ([]row, error) {
	good, broken, err := policy.LoadEach(e.policyDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	kernel, err := cgroups.ListPolicies(e.state)
	if err != nil {
		return nil, err
	}
	rows := []row{}
	for _, k := range kernel {
		r := row{Name: k.Name, Mode: k.Mode, Rules: len(k.Rules), Pods: k.Pods, State: "in force", Source: k.Source}
		p := good[k.Name]
		if p == nil && k.Name == policy.DefaultName {
			p = policy.Default()
		}
		switch {
		case p == nil:
			r.State = "in the kernel only"
		default:
			r.Source = p.Source()
			changed, err := differs(p, k)
			if err != nil {
				return nil, err
			}
			if changed {
				r.State = "changed: run sidegate policy apply"
			}
		}
		delete(good, k.Name)
		rows = append(rows, r)
	}
	for _, p := range good {
		rows = append(rows, row{
			Name: p.Metadata.Name, Mode: p.Spec.Mode.String(), Rules: len(p.Spec.Rules), Pods: []string{}, State: "unused", Source: p.Source(),
		})
	}
	for file, err := range broken {
		first, _, _ := strings.Cut(err.Error(), "\n")
		rows = append(rows, row{Name: "-", Pods: []string{}, State: "broken: " + first, Source: file})
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Source, b.Source)) })
	return rows, nil
}

func differs(p *policy.PodPolicy, k cgroups.PolicyStatus) (bool, error) {
	c, err := p.Compile()
	if err != nil {
		return false, err
	}
	return cgroups.Differs(c, k)
}

func newApply(e *env) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "apply [FILE...]",
		Short: "Put policies into force, in running pods too",
		Long: "With files: check them, put them into the policy directory, and bring running pods in line.\n" +
			"Without: bring running pods in line with the directory. All pods of a policy change at once,\n" +
			"and connections that it does not allow any more are closed.",
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
	mark, err := policy.Fingerprint(e.policyDir)
	if err != nil {
		return err
	}
	good, broken, err := policy.LoadEach(e.policyDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(good)) {
		errs = append(errs, applyOne(e, good[name], mark, dry))
	}
	for _, file := range slices.Sorted(maps.Keys(broken)) {
		errs = append(errs, fmt.Errorf("%w\nits policies stay as they are in force", broken[file]))
	}
	return errors.Join(errs...)
}

func applyOne(e *env, p *policy.PodPolicy, mark uint64, dry bool) error {
	c, err := p.Compile()
	if err != nil {
		return err
	}
	if dry {
		fmt.Fprintf(e.stdout, "policy %s would be applied\n", c.Name)
		return nil
	}
	pods, err := cgroups.ApplyPolicy(e.state, c, cgroups.Source{Place: p.Source(), Fingerprint: mark})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "policy %s: in force in %d pods\n", c.Name, pods)
	return nil
}

// applyFiles installs files in the directory, then applies them. If the kernel
// refuses, the directory is as it was.
func applyFiles(e *env, files []string, dry bool) error {
	list, err := readFiles(files)
	if err != nil {
		return err
	}
	there, _, err := policy.LoadEach(e.policyDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	targets := make(map[string][]byte)
	for _, s := range list {
		target := filepath.Join(e.policyDir, s.target())
		if other := there[s.compiled.Name]; other != nil && !strings.HasPrefix(other.Source(), target+":") {
			return fmt.Errorf("policy %s is in %s already: change it there, or remove it", s.compiled.Name, other.Source())
		}
		targets[target] = s.data
	}
	if dry {
		for _, s := range list {
			fmt.Fprintf(e.stdout, "policy %s would be applied, as %s\n", s.compiled.Name, filepath.Join(e.policyDir, s.target()))
		}
		return nil
	}
	undo, err := install(targets)
	if err != nil {
		return errors.Join(err, undo())
	}
	mark, err := policy.Fingerprint(e.policyDir)
	for _, s := range list {
		if err == nil {
			err = applyOne(e, s.PodPolicy, mark, false)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w: the policy directory is as it was", err), undo())
	}
	return nil
}

// target is the name of a policy's file in the directory.
func (s *source) target() string {
	if s.alone || s.file == "-" {
		return s.compiled.Name + ".yaml"
	}
	return filepath.Base(s.file)
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
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return undo, fmt.Errorf("make policy directory: %w", err)
		}
		before, err := os.ReadFile(target)
		switch {
		case err == nil:
			undos = append(undos, func() error { return writeFile(target, before) })
		case errors.Is(err, fs.ErrNotExist):
			undos = append(undos, func() error {
				if err := os.Remove(target); !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			})
		default:
			return undo, err
		}
		if err := writeFile(target, targets[target]); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

// writeFile replaces a file by rename(2). The name of the temporary one is hidden,
// so that nobody reads it for a policy.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".sidegate-*")
	if err != nil {
		return fmt.Errorf("write policy: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write policy %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func newDelete(e *env) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Remove policies from the directory",
		Long: "Refused while pods are under the policy: with --force they keep it until they end,\n" +
			"and no other container can join it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s needs names of policies", cmd.CommandPath())}
			}
			for _, name := range args {
				if err := deletePolicy(e, name, force); err != nil {
					return fmt.Errorf("policy %s: %w", name, err)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while pods are under it")
	return cmd
}

func deletePolicy(e *env, name string, force bool) error {
	good, _, err := policy.LoadEach(e.policyDir)
	if err != nil {
		return err
	}
	p := good[name]
	if p == nil {
		return fmt.Errorf("it is not in %s: `sidegate policy list` shows what is", e.policyDir)
	}
	file := p.Source()[:strings.LastIndex(p.Source(), ":")]
	for _, other := range good {
		if other != p && strings.HasPrefix(other.Source(), file+":") {
			return fmt.Errorf("%s has policy %s too: remove this one with an editor", file, other.Metadata.Name)
		}
	}
	kernel, err := cgroups.ListPolicies(e.state)
	if err != nil {
		return err
	}
	for _, k := range kernel {
		if k.Name == name && len(k.Pods) > 0 && !force {
			return fmt.Errorf("%d pods are under it (%s): stop them, or use --force to let them keep it until they end", len(k.Pods), strings.Join(k.Pods, ", "))
		}
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "policy %s: removed %s\n", name, file)
	return nil
}

// errDiffers is the exit status of diff(1).
var errDiffers = errors.New("what is in force differs")

func newDiff(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "diff [FILE...]",
		Short: "Show what applying policies would change in force; exit 1 if anything",
		RunE: func(_ *cobra.Command, args []string) error {
			policies, err := policiesOf(e, args)
			if err != nil {
				return err
			}
			kernel, err := cgroups.ListPolicies(e.state)
			if err != nil {
				return err
			}
			changed := false
			for _, k := range kernel {
				if p := policies[k.Name]; p != nil {
					one, err := diffPolicy(e.stdout, p, k)
					if err != nil {
						return err
					}
					changed = changed || one
				}
			}
			if changed {
				return errDiffers
			}
			return nil
		},
	}
}

// policiesOf are those of some files, or of the directory.
func policiesOf(e *env, files []string) (map[string]*policy.PodPolicy, error) {
	if len(files) == 0 {
		good, broken, err := policy.LoadEach(e.policyDir)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return good, errors.Join(append([]error{err}, slices.Collect(maps.Values(broken))...)...)
	}
	list, err := readFiles(files)
	policies := make(map[string]*policy.PodPolicy, len(list))
	for _, s := range list {
		policies[s.compiled.Name] = s.PodPolicy
	}
	return policies, err
}

func diffPolicy(w io.Writer, p *policy.PodPolicy, k cgroups.PolicyStatus) (bool, error) {
	c, err := p.Compile()
	if err != nil {
		return false, err
	}
	changed, err := cgroups.Differs(c, k)
	if err != nil || !changed {
		return false, err
	}
	before, after := k.Lines(), cgroups.PolicyLines(c)
	fmt.Fprintf(w, "--- policy %s in force (revision %d)\n+++ %s\n", k.Name, k.Revision, p.Source())
	for _, line := range before {
		if !slices.Contains(after, line) {
			fmt.Fprintln(w, "-"+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			fmt.Fprintln(w, "+"+line)
		}
	}
	return true, nil
}
