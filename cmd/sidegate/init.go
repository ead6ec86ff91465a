// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

func newInit(e *env) *cobra.Command {
	var pod, name string
	cmd := &cobra.Command{
		Use:   "init --pod POD",
		Short: "Write a starter policy from what mode audit saw of a pod",
		Long: "The rules allow what was seen, allowed or not. All else is as in the pod's policy, and mode is audit:\n" +
			"apply it, and enforce it when `sidegate policy audit` shows nothing that is missed.",
		Example: "  sidegate policy init --pod shop --name shop > shop.yaml\n  sidegate policy apply shop.yaml",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if pod == "" {
				return cli.Usage(errors.New("init needs --pod: its name or id, or the beginning"))
			}
			if err := checkPolicyName(name); err != nil {
				return cli.Usage(err)
			}
			text, err := initPolicy(e, pod, name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(e.stdout, text)
			return err
		},
	}
	cmd.Flags().StringVar(&pod, "pod", "", "which `pod`: its name or id, or the beginning")
	completeFlag(cmd, "pod", podNames(e))
	cmd.Flags().StringVar(&name, "name", "", "`name` of the policy; the pod's own, if not given")
	return cmd
}

func checkPolicyName(name string) error {
	p := policy.Default()
	if name != "" {
		p.Metadata.Name = name
	}
	_, err := p.Compile()
	return err
}

func initPolicy(e *env, pod, name string) (string, error) {
	// First of all: to read the status forgets containers that have ended.
	list, err := seenOf(e.state, pod)
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "", fmt.Errorf("mode audit has seen nothing of pod %s: give it a policy with `mode: audit`, and let it work", pod)
	}
	st, err := cgroups.ReadStatus(e.state)
	if err != nil {
		return "", err
	}
	exact := slices.ContainsFunc(st.Pods, func(p cgroups.PodStatus) bool { return p.Pod == pod })
	pods := slices.DeleteFunc(st.Pods, func(p cgroups.PodStatus) bool { return !isPod(p.Pod, pod, exact) })
	if len(pods) == 0 {
		return "", fmt.Errorf("pod %s has ended: let it work again, and ask before it ends", pod)
	}
	for _, p := range pods[1:] {
		if p.Policy != pods[0].Policy {
			return "", fmt.Errorf("pods %s and %s are under different policies: write more of the name", short(pods[0].Pod), short(p.Pod))
		}
	}
	p, note, err := policyOf(e, pods[0])
	if err != nil {
		return "", err
	}
	base := withoutTraffic(p)
	if name != "" {
		base.Metadata.Name = name
	}
	return starter(base, note, gather(base, pods, list))
}

// policyOf is what the pod is under, and a line that says where it is from.
func policyOf(e *env, pod cgroups.PodStatus) (*policy.PodPolicy, string, error) {
	good, _, err := loadEffective(e)
	if err != nil {
		return nil, "", err
	}
	if p := good[pod.Policy]; p != nil {
		return p, "All but the rules about traffic is as in " + p.Source() + ".", nil
	}
	p := policy.Default()
	p.Metadata.Name = pod.Policy
	p.Spec.Redirect = policy.Redirect{Outbound: pod.Outbound, Inbound: pod.Inbound, DNS: pod.DNS}
	if pod.NonTCP == policy.ActionAllow.String() {
		p.Spec.NonTCP = policy.ActionAllow
	}
	return p, fmt.Sprintf("Policy %s is not in %s: of its settings, only ports of redirect and nonTCP are here.", pod.Policy, e.policyDir), nil
}

// withoutTraffic is a policy without its rules about traffic.
func withoutTraffic(p *policy.PodPolicy) *policy.PodPolicy {
	base := *p
	base.Spec.Rules = nil
	for _, r := range p.Spec.Rules {
		if r.Unix != nil || r.Processes != nil {
			r.Egress, r.Ingress = nil, nil
			base.Spec.Rules = append(base.Spec.Rules, r)
		}
	}
	return &base
}

// starter writes base with rules for what was gathered.
func starter(base *policy.PodPolicy, note string, g *gathered) (string, error) {
	p := *base
	p.Spec.Mode = policy.ModeAudit
	p.Spec.Rules = slices.Clone(base.Spec.Rules)
	tls := ""
	if base.Spec.TLS != nil && base.Spec.TLS.Mode != policy.TLSOff { // which is not audited
		off := *base.Spec.TLS
		off.Mode, tls = policy.TLSOff, off.Mode.String()
		p.Spec.TLS = &off
	}
	drafts := g.drafts()
	for _, d := range drafts {
		d.addTo(&p.Spec)
	}
	// In the order of the roles' rules, egress first, as they are written.
	var comments []string
	for _, s := range p.Spec.Rules {
		for _, dir := range []policy.Dir{policy.Egress, policy.Ingress} {
			for _, d := range drafts {
				if d.role == s.Role && d.dir == dir {
					comments = append(comments, d.comment())
				}
			}
		}
	}
	text, err := p.MarshalYAML()
	if err != nil {
		return "", fmt.Errorf("write a policy of what mode audit saw: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# What mode audit saw. Read it before you enforce it: what happens once a month may not be in it, and a\n"+
		"# network is often meant where addresses were called.\n# %s\n", note)
	b.WriteString(annotate(string(text), comments, tls))
	for _, line := range g.leftOver() {
		fmt.Fprintf(&b, "# %s\n", line)
	}
	return b.String(), nil
}

// annotate puts a comment before each rule that MarshalYAML wrote, and one on the
// mode, and on that of spec.tls if it was switched off.
func annotate(text string, comments []string, tls string) string {
	var b strings.Builder
	inRules := false
	for line := range strings.Lines(text) {
		inRules = inRules || line == "  rules:\n"
		switch {
		case inRules && strings.HasPrefix(line, "    - protocol: "):
			fmt.Fprintf(&b, "    # %s\n", comments[0])
			comments = comments[1:]
		case tls != "" && line == "    mode: \"off\"\n":
			line = "    mode: \"off\" # it was " + tls + ", which works under mode: enforce only\n"
		case line == "  mode: audit\n":
			line = "  mode: audit # write enforce when `sidegate policy audit` shows nothing that is missed\n"
		}
		b.WriteString(line)
	}
	return b.String()
}
