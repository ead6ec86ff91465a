// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"sidegate/tests/vm"
)

// packages are those whose tests have to pass on every kernel.
var packages = []string{"sidegate/bpf", "sidegate/cgroups", "sidegate/cgroups/internal/selftest"}

// anyKernel are tests of theirs about what no kernel decides: what user space makes of
// its state, and finds wrong with what it is given. An emulated CPU is slow, and they
// run on this machine's.
var anyKernel = []string{
	"AccelerationOff", "AccelerationOffWords", "AddDeviceIsAllOrNothing", "AddDeviceKnowsTheNode",
	"AddDeviceWhoseIndexIsTaken", "AdoptBusy", "AdoptOneWhoseStartIsNotKnown", "AdoptRefusals", "AttachIsAllOrNothing", "AttachTwiceIsOnce",
	"CapabilitiesOf", "CgroupOfTheRuntimeIsRefused", "CollectWhoseInodeCameBack", "ConfiguresKTLS",
	"DeadProcessIsAnError", "DetachLeavesNothing", "DeviceGoesToAnotherPod", "DevicesOfNoPod", "EndpointErrors",
	"EndpointOfAnotherDevice", "Exclusions", "ExplainIsWhatHappens", "FlowSums", "GuardEndpointAgain", "HostIsNotWorld",
	"HostNamespaceIsRefused", "InitContainersHaveRules", "KernelFault", "KeysAreNotDumped", "KilledWhileAPolicyChanges",
	"LimitsOfAPolicy", "ManageHostNetwork", "MapFills", "NamesHaveRules", "NonTCPAllow", "NothingToList",
	"OtherABIIsRefused", "ParallelAttach", "PinsAndMaps", "PodHasAShareOfPendingConnections", "PodHasOnePolicy",
	"PodStaysClosedWhileAnythingRunsInIt", "PolicyChangesUnderRunningContainers",
	"RedirectedDNSNeedsNoRuleOfTheSidecar", "SecondSidecarIsRefused", "StartInATimeNamespace", "UnfinishedWorkIsSwept",
	"UnloadRefusesWhileEndpointsAreGuarded", "UnloadRefusesWhilePodsAreManaged", "UsedCgroupIsNoRight", "WaitSidecar",

	"EventsOfManyConnections", // more a second than an emulated CPU makes in a minute
}

// eachHook are tests of package cgroups that together run every program in a packet's or a call's way. A kernel between the
// oldest one and this machine's, both of which run all tests, runs these, and all of the other packages.
var eachHook = []string{
	"AFPacketStopsAtTheDevice", "Acceleration.*", "AddDeviceBeforeItMoves", "AdoptMPTCP",
	"ContainersReachOnlyWhatRulesAllow", "DNSGoesToTheSidecar", "DeviceOfAGuardedEndpoint",
	"EgressGoesThroughTheSidecar", "EndpointIsClosedUntilItOpens", "Events", "EventsAreLimited", "EventsOfContainers",
	"EventsOfDatagrams", "Families", "GetsocknameByPolicy", "GracePeriodByMap", "Guard", "IngressLandsOnTheSidecar",
	"KernelSocketsAreLeftAlone", "ListSockets", "OnlyTheSidecarBindsItsPorts", "RawSocketsPassForNobody", "SCTP",
	"SidecarsHaveNoMPTCP", "SyncDevices", "TLS.*", "UnixSockets",
}

// modules are what those tests use and Debian's kernels have as modules: kinds
// of devices, protocols, and TLS with its algorithms.
var modules = []string{
	"veth", "dummy", "bridge", "tun", "vxlan", "crc32c_generic", "sctp", "inet_diag", "tcp_diag", "udp_diag", "cls_bpf", "sch_ingress", "9pnet_fd", "9p", "vsock", "tipc", "rds",
	"tls", "gcm", "ghash_generic", "ctr", "ccm", "chacha20poly1305", "aesni_intel",
}

// bpfLSM makes BPF one of the kernel's security modules, as it is in Debian's own
// list; noBPFLSM is one without. That decides how UNIX sockets are judged.
const (
	noBPFLSM = "lsm=landlock,lockdown,yama,integrity,apparmor"
	bpfLSM   = noBPFLSM + ",bpf"
)

// TestKernels runs the tests of packages in one VM per kernel, all of them on the oldest. While working on
// one of them, SIDEGATE_VM_PACKAGES names others instead, separated by spaces,
// and SIDEGATE_VM_RUN is given to their tests as -test.run.
func TestKernels(t *testing.T) {
	t.Parallel()
	kernels := kernels(t)
	packages := packages
	if names := strings.Fields(os.Getenv("SIDEGATE_VM_PACKAGES")); len(names) > 0 {
		packages = names
	}
	run := os.Getenv("SIDEGATE_VM_RUN")
	testPackages(t, kernels, bpfLSM, packages, func(kernel vm.Kernel, pkg string) []string {
		args := []string{"-test.skip=^Test(" + strings.Join(anyKernel, "|") + ")$"}
		switch {
		case run != "":
			args = append(args, "-test.run="+run)
		case pkg == "sidegate/cgroups" && !slices.Contains(oneOf(kernels, false), kernel):
			args = append(args, "-test.run=^Test("+strings.Join(eachHook, "|")+")$")
		}
		return args
	})
}

// TestWithoutBPFLSM runs the tests about UNIX sockets where BPF is no security
// module: 6.1 cannot judge them then, and has to say so.
func TestWithoutBPFLSM(t *testing.T) {
	t.Parallel()
	testPackages(t, kernels(t), noBPFLSM, []string{"sidegate/bpf"}, func(vm.Kernel, string) []string { return []string{"-test.run=Unix"} })
}

// testPackages runs the tests of packages that args select, in one VM per kernel
// that is booted with this list of security modules.
func testPackages(t *testing.T, kernels []vm.Kernel, modulesOn string, packages []string, args func(kernel vm.Kernel, pkg string) []string) {
	t.Helper()
	binaries, err := vm.BuildTests(t.Context(), t.TempDir(), nil, packages...)
	if err != nil {
		t.Fatal(err)
	}
	for _, kernel := range kernels {
		t.Run(kernel.Release, func(t *testing.T) {
			t.Parallel()
			config := vm.Config{Kernel: kernel, Cmdline: []string{modulesOn}, Modules: modules}
			for _, binary := range binaries {
				config.Files = append(config.Files, binary.Files...)
				config.Commands = append(config.Commands, binary.Command(testLimit, args(kernel, binary.Package)...))
			}
			result := bootVM(t, bootLimit, config)
			for i, command := range result.Commands {
				t.Run(path.Base(binaries[i].Package), func(t *testing.T) { vm.CheckTests(t, command) })
			}
		})
	}
}
