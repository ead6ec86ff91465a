// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sidegate/bpf"
	"sidegate/cgroups"
)

// machine is what the next command depends on.
type machine struct {
	distribution
	release string   // of the kernel
	modules []string // security modules that are on; nil is not known
	noLSM   bool     // it was built without one for BPF
}

func thisMachine() machine {
	m := machine{distribution: readDistribution("/etc/os-release")}
	if k, err := bpf.RunningKernel(); err == nil {
		m.release = k.Release
	}
	m.modules, _ = bpf.SecurityModules() // or nobody knows
	if config, _, err := kernelConfig(); err == nil && !slices.Contains(m.modules, "bpf") {
		defer config.Close()
		text, err := io.ReadAll(io.LimitReader(config, maxFile))
		m.noLSM = err == nil && !strings.Contains(string(text), "\nCONFIG_BPF_LSM=y\n")
	}
	return m
}

func (m machine) is(id string) bool { return slices.Contains(m.ids, id) }

// install is the command that installs a package, of this name where the distribution
// is Debian's or like it, else of the other.
func (m machine) install(debian, other string) string {
	if m.is("debian") {
		return "apt-get install -y " + debian
	}
	if m.is("fedora") || m.is("rhel") {
		return "dnf install -y " + other
	}
	return "install " + other + " as this distribution does"
}

// newerKernel is the command for one of this version or a later one.
func (m machine) newerKernel(version string) string {
	switch {
	case m.is("debian") && !m.is("ubuntu") && m.codename != "":
		return fmt.Sprintf("apt-get install -y -t %s-backports linux-image-amd64 && reboot    # Linux %s or later, with %[1]s-backports in /etc/apt/sources.list", m.codename, version)
	case m.is("ubuntu"):
		return fmt.Sprintf("apt-get install -y linux-generic-hwe-$(. /etc/os-release && echo $VERSION_ID) && reboot    # Linux %s or later", version)
	case m.is("fedora") || m.is("rhel"):
		return fmt.Sprintf("dnf upgrade -y kernel && reboot    # Linux %s or later", version)
	}
	return fmt.Sprintf("boot Linux %s or later", version)
}

// update is the command for the newest kernel of the same line.
func (m machine) update() string {
	switch {
	case m.is("debian"):
		return "apt-get update && apt-get full-upgrade -y && reboot"
	case m.is("fedora") || m.is("rhel"):
		return "dnf upgrade -y kernel && reboot"
	}
	return "boot a kernel in which that is mended"
}

// enableLSM is the command that puts bpf among the security modules.
func (m machine) enableLSM(c cgroups.Check) string {
	switch {
	case m.noLSM:
		return m.newerKernel("6.1") + ", built with CONFIG_BPF_LSM"
	case slices.Contains(m.modules, "bpf"):
		return c.Next
	case m.modules == nil:
		return "cat /sys/kernel/security/lsm    # and boot with lsm= that list, and ,bpf behind it"
	}
	lsm := "lsm=" + strings.Join(append(slices.Clone(m.modules), "bpf"), ",")
	switch {
	case m.is("debian"):
		return fmt.Sprintf(`mkdir -p /etc/default/grub.d && echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX %s"' >/etc/default/grub.d/sidegate.cfg && update-grub && reboot`, lsm)
	case m.is("fedora") || m.is("rhel"):
		return fmt.Sprintf("grubby --update-kernel=ALL --args=%s && reboot", lsm)
	}
	return "boot with " + lsm
}

// The states of a verdict.
const (
	works       = "works"
	worksPartly = "partly"
	worksNot    = "does not work"
	notHere     = "not here"
)

// A verdict is about a feature or a runtime, in words. Where it works, Means is what
// that is; else what that means for security.
type verdict struct {
	name, state string
	why         string
	means       string
	next        string // a command
}

// checked are checks by name.
type checked map[string]cgroups.Check

func byName(checks []cgroups.Check) checked {
	m := checked{}
	for _, c := range checks {
		m[c.Name] = c
	}
	return m
}

func (m checked) ok(name string) bool { return m[name].OK }

// printReport says what the checks come to.
func printReport(w io.Writer, m machine, checks []cgroups.Check) error {
	all := byName(checks)
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s\n", m.distribution, cmp.Or(m.release, "unknown"))
	base := judgeBase(m, all)
	section := func(title string, list ...verdict) {
		fmt.Fprintf(&b, "\n%s\n", title)
		for _, v := range list {
			v.print(&b)
		}
	}
	section("What all of it needs", base, judgePolicies(all))
	if base.state == works {
		section("Features", judgeFeatures(m, all)...)
	} else {
		section("Features", verdict{name: "all", state: worksNot, why: "see above", means: "containers that ask for Sidegate do not start: none runs without enforcement"})
	}
	runtimes := judgeRuntimes(m, all)
	if errors.Is(cgroups.ProbeFailed(checks), cgroups.ErrUnsupported) || base.state != works {
		for i := range runtimes {
			if v := &runtimes[i]; v.state == works {
				v.state, v.why, v.means = worksNot, "it is in place, but see above", "containers that ask for Sidegate do not start"
			}
		}
	}
	section("Runtimes", runtimes...)
	b.WriteString("\n`sidegate doctor --checks` lists each check, `-o json` for programs. `sidegate bugtool` collects what a maintainer asks for.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (v verdict) print(b *strings.Builder) {
	fmt.Fprintf(b, "  %-18s %s", v.name, v.state)
	if v.state == works {
		fmt.Fprintf(b, ": %s\n", v.means)
		return
	}
	b.WriteByte('\n')
	if v.state == notHere {
		v.means = ""
	}
	for _, line := range []struct{ word, text string }{{"why", v.why}, {"means", v.means}, {"next", v.next}} {
		if line.text != "" {
			fmt.Fprintf(b, "    %-6s %s\n", line.word+":", strings.ReplaceAll(line.text, "\n", "; "))
		}
	}
}

// firstBad returns the first of these checks that is not OK.
func (m checked) firstBad(names ...string) (c cgroups.Check, bad bool) {
	for _, name := range names {
		if c, there := m[name]; !there || !c.OK {
			c.Name = name
			if !there {
				c.Detail = "it could not be tried"
			}
			return c, true
		}
	}
	return c, false
}

// judgeBase is about what nothing works without.
func judgeBase(m machine, all checked) verdict {
	v := verdict{name: "kernel", state: works, means: "it takes all programs, and has what they are attached to"}
	c, bad := all.firstBad("kernel", "BPF file system", "cgroup2", "load all programs")
	if !bad {
		return v
	}
	v.state, v.why, v.next = worksNot, c.Name+": "+c.Detail, c.Next
	v.means = "nothing can be enforced: containers that ask for it do not start"
	switch {
	case c.Name == "kernel":
		v.next = m.newerKernel("6.1")
	case c.Name == "load all programs" && strings.Contains(c.Detail, "needs root"):
		v.next = "sudo sidegate doctor"
	case c.Name == "load all programs" && all.ok("kernel"):
		v.next = "sidegate bugtool    # and send it: this kernel should take them"
	}
	return v
}

func judgePolicies(all checked) verdict {
	c := all["policies"]
	v := verdict{name: "policies", state: works, means: c.Detail}
	if !c.OK {
		v.state, v.why, v.next = worksNot, c.Detail, "sidegate policy validate /etc/sidegate/policies/*    # and mend what it says"
		v.means = "containers that ask for a policy do not start, rather than under another one"
	}
	return v
}

// judgeHooks is about a feature that is there if all of its hooks are.
func judgeHooks(m machine, all checked, v verdict, hooks ...string) verdict {
	names := make([]string, len(hooks))
	for i, h := range hooks {
		names[i] = "hook " + h
	}
	if c, bad := all.firstBad(names...); bad {
		v.state, v.why, v.next = worksNot, c.Name+": "+c.Detail, m.newerKernel("6.1")
		v.means = "nothing is enforced, since it is all hooks or none: containers that ask for it do not start"
	}
	return v
}

func judgeFeatures(m machine, all checked) []verdict {
	packets := judgeHooks(m, all, verdict{name: "packets", state: works, means: "UDP, ICMP and what gets past the sockets is judged again, both ways, and at the pod's devices"},
		"sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "egress", "ingress", "hold")
	raw := judgeHooks(m, all, verdict{name: "raw sockets", state: works, means: "raw sockets, AF_PACKET, tunnels, SCTP and MPTCP are refused, or let out by rule"}, "sock_create")
	if c := all["hook tcx"]; !c.OK && raw.state == works {
		raw.state, raw.why, raw.means = worksPartly, c.Detail, c.Cost
		raw.next = m.newerKernel("6.6") + ", or keep adminCapabilities: deny, the default"
	}
	events := verdict{name: "events", state: works, means: "`sidegate observe` shows each decision as it is made"}
	if c, bad := all.firstBad("load all programs"); bad {
		events.state, events.why = worksNot, c.Detail
	}
	return []verdict{
		judgeHooks(m, all, verdict{name: "redirect", state: works, means: "every TCP connection of an app goes to its sidecar, and every one from outside arrives there"},
			"connect4", "connect6", "getpeername4", "getpeername6", "getsockname4", "getsockname6", "getsockopt", "setsockopt", "sockops",
			"bind4", "bind6", "post_bind4", "post_bind6", "sk_lookup"),
		judgeHooks(m, all, verdict{name: "guard", state: works, means: "a process that nobody registered has no sockets in a managed pod"},
			"guard_create", "guard_connect4", "guard_connect6", "guard_sendmsg4", "guard_sendmsg6", "guard_bind4", "guard_bind6"),
		packets, raw, judgeUnix(m, all), judgeLSM(m, all), judgeAcceleration(m, all), judgeTLS(m, all), events,
	}
}

func judgeUnix(m machine, all checked) verdict {
	v := verdict{name: "UNIX sockets", state: works, means: "rules go by the socket that it is, and its owner"}
	switch lsm := all["BPF LSM"]; {
	case lsm.OK:
	case all.ok("UNIX sockets"):
		v.state, v.why = worksPartly, "rules go by the name that a call is given, since BPF LSM is "+cmp.Or(lsm.Detail, "off")
		v.means, v.next = "a container that can link or mount gives a socket another name; rules with peers let nothing through", m.enableLSM(lsm)
	default:
		v.state, v.why = worksNot, cmp.Or(all["UNIX sockets"].Detail, "no hook sees them")
		v.means = "policies with such rules are refused, unless they say optional: then any UNIX socket is reached that the container sees"
		v.next = m.newerKernel("6.7")
	}
	return v
}

func judgeLSM(m machine, all checked) verdict {
	v := verdict{name: "LSM", state: works, means: "AF_VSOCK and other families that leave the machine in ways of their own are refused"}
	if c := all["BPF LSM"]; !c.OK {
		v.state, v.why = worksNot, cmp.Or(c.Detail, "it could not be tried")
		v.means = "a container reaches the hypervisor by AF_VSOCK, unless its seccomp profile refuses that"
		v.next = m.enableLSM(c)
	}
	return v
}

func judgeAcceleration(m machine, all checked) verdict {
	v := verdict{name: "acceleration", state: works, means: "bytes between apps and sidecars skip TCP, and no program can notice"}
	auto, on := all["accelerate: auto"], all["accelerate: on"]
	switch {
	case auto.OK:
	case on.OK:
		v.state, v.why, v.means = worksPartly, auto.Detail, "nothing for security: under auto, bytes go through TCP"
		v.next = "sidegate policy apply    # with accelerate: on in the policies of pods whose programs do not notice"
	default:
		v.state, v.why, v.means = worksNot, cmp.Or(on.Detail, "it could not be tried"), "nothing for security: bytes go through TCP"
		if strings.HasPrefix(v.why, "CVE-") {
			v.next = m.update()
		}
	}
	return v
}

func judgeTLS(m machine, all checked) verdict {
	v := judgeHooks(m, all, verdict{name: "TLS hand-off", state: works, means: "apps' keys reach the relay, which judges what is inside TLS"}, "tls_setsockopt")
	switch relay := all["TLS relay"]; {
	case v.state != works:
		v.means = "apps under policies with tls do not start"
	case !relay.OK:
		v.state, v.why, v.means, v.next = worksNot, relay.Detail, relay.Cost, relay.Next
	default:
		v.means += " (" + relay.Detail + ")"
	}
	return v
}
