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
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

func newPolicy(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write, check, apply and explain policies",
		Long: "A policy is a YAML document of kind PodPolicy: who may talk to whom, and how the sidecar is reached. What is in force is in the kernel;\n" +
			"the policy directory has what is to be. These commands check policies, bring the two in line, and say what either would decide.",
		Example: "  sidegate policy validate mesh.yaml\n  sidegate policy diff mesh.yaml\n  sidegate policy apply mesh.yaml",
		Args:    cli.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&e.policyDir, "policy-dir", e.policyDir, "`directory` of policies ($"+policy.DirEnv+")")
	cmd.AddCommand(newValidate(e), newList(e), newApply(e), newDelete(e), newDiff(e), newExplain(e), newAudit(e), newInit(e))
	return cmd
}

// stdin is the name of standard input among files.
const stdin = "-"

// source is a policy of a file, compiled.
type source struct {
	*policy.PodPolicy
	compiled *policy.Compiled
	file     string // or stdin
	data     []byte // of the whole file
	alone    bool   // no other policy is in the file
}

// readFiles parses and compiles all policies of some files. The error joins
// what is wrong with each.
func readFiles(e *env, files []string) (list []source, err error) {
	var errs []error
	for _, file := range files {
		some, err := readSources(e, file)
		list, errs = append(list, some...), append(errs, err)
	}
	return list, errors.Join(errs...)
}

func readSources(e *env, file string) (list []source, err error) {
	data, err := readFile(e, file)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	ps, err := policy.Parse(file, data)
	errs := []error{err}
	for _, p := range ps {
		c, err := p.Compile()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, source{PodPolicy: p, compiled: c, file: file, data: data, alone: len(ps) == 1})
	}
	return list, errors.Join(errs...)
}

func readFile(e *env, file string) ([]byte, error) {
	if file != stdin {
		return os.ReadFile(file)
	}
	return io.ReadAll(io.LimitReader(e.stdin, policy.MaxFileSize+1)) // one more than Parse takes
}

// sameNames refuses two policies of one name, of which only one can hold.
func sameNames(list []source) error {
	first := make(map[string]*source)
	for i := range list {
		s := &list[i]
		if other := first[s.compiled.Name]; other != nil {
			return fmt.Errorf("policy %s is in %s and in %s: give one of them", s.compiled.Name, other.Source(), s.Source())
		}
		first[s.compiled.Name] = s
	}
	return nil
}

func filesArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cli.Usage(fmt.Errorf("%s needs files, or - for standard input", cmd.CommandPath()))
	}
	return nil
}

// loadDir reads the directory of policies. One that does not exist has none.
func loadDir(e *env) (good map[string]*policy.PodPolicy, broken map[string]error, err error) {
	good, broken, err = policy.LoadEach(e.policyDir)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]*policy.PodPolicy{}, nil, nil
	}
	return good, broken, err
}

// loadEffective adds the default policy where the directory leaves it built in. A
// broken file may have the one that is in force, which then stays so.
func loadEffective(e *env) (good map[string]*policy.PodPolicy, broken map[string]error, err error) {
	good, broken, err = loadDir(e)
	if err == nil && good[policy.DefaultName] == nil && len(broken) == 0 {
		good[policy.DefaultName] = policy.Default()
	}
	return good, broken, err
}

// addOutput gives a command the flag -o, of which checkOutput knows the words.
func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "`format`: table or json")
	completeFlag(cmd, "output", oneOf(outputs...))
}

var outputs = []string{"table", "json"}

func checkOutput(output string) error {
	if !slices.Contains(outputs, output) {
		return cli.Usage(fmt.Errorf("unknown output %q: write %s", output, strings.Join(outputs, " or ")))
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// count is a number of things, of which one has no s.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func newValidate(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE...|-",
		Short: "Say whether policies are right, and what is wrong where",
		Long: "Parse and compile policies. What is right, but hardly what was meant, is a warning on standard error\n" +
			"and does not change the exit code.",
		Example: "  sidegate policy validate mesh.yaml other.yaml\n" +
			"  kubectl get configmap sidegate-policies -o jsonpath='{.data.mesh\\.yaml}' | sidegate policy validate -",
		Args:              filesArgs,
		ValidArgsFunction: policyFiles,
		RunE: func(_ *cobra.Command, args []string) error {
			list, err := readFiles(e, args)
			for _, s := range list {
				fmt.Fprintf(e.stdout, "%s: policy %s: %d rules, %d prefixes, %d entries\n",
					s.file, s.compiled.Name, len(s.compiled.Rules), len(s.compiled.Prefixes), len(s.compiled.Entries))
				for _, w := range warnings(s.PodPolicy) {
					fmt.Fprintf(e.stderr, "%s: warning: %s\n", s.Source(), w)
				}
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
		Long: "State says where the two differ: a policy of the directory that no pod is under, one in force that the directory has otherwise,\n" +
			"or has no more, and files with a fault.",
		Example: "  sidegate policy list\n  sidegate policy list -o json",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			rows, err := listPolicies(e)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(e.stdout, rows)
			}
			t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tMODE\tRULES\tPODS\tSTATE\tSOURCE")
			for _, r := range rows {
				fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\n", r.Name, cmp.Or(r.Mode, "-"), r.Rules, len(r.Pods), r.State, r.Source)
			}
			return t.Flush()
		},
	}
	addOutput(cmd, &output)
	return cmd
}

func listPolicies(e *env) ([]row, error) {
	good, broken, err := loadEffective(e)
	if err != nil {
		return nil, err
	}
	kernel, err := cgroups.ListPolicies(e.state)
	if err != nil {
		return nil, err
	}
	rows := []row{}
	for _, k := range kernel {
		r, err := kernelRow(k, good[k.Name])
		if err != nil {
			return nil, err
		}
		delete(good, k.Name)
		rows = append(rows, r)
	}
	maps.DeleteFunc(good, func(_ string, p *policy.PodPolicy) bool { return p.Source() == policy.Default().Source() })
	for _, p := range good {
		c, err := p.Compile()
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{Name: c.Name, Mode: c.Mode.String(), Rules: len(c.Rules), Pods: []string{}, State: "unused", Source: p.Source()})
	}
	for file, err := range broken {
		first, _, _ := strings.Cut(err.Error(), "\n")
		rows = append(rows, row{Name: "-", Pods: []string{}, State: "broken: " + first, Source: file})
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Source, b.Source)) })
	return rows, nil
}

// kernelRow is a policy in force. p is what the directory has by its name, or nil.
func kernelRow(k cgroups.PolicyStatus, p *policy.PodPolicy) (row, error) {
	r := row{Name: k.Name, Mode: k.Mode, Rules: len(k.Rules), Pods: k.Pods, State: "in the kernel only", Source: k.Source}
	if p == nil {
		return r, nil
	}
	r.State, r.Source = "in force", p.Source()
	c, err := p.Compile()
	if err != nil {
		return r, err
	}
	changed, err := cgroups.Differs(c, k)
	if changed {
		r.State = "changed: run sidegate policy apply"
	}
	return r, err
}
