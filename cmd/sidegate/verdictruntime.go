// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

func judgeRuntimes(m machine, all checked) []verdict {
	return []verdict{judgePodman(m, all), judgeNRI(m, all), judgeDocker(m, all), judgeKubernetes(m, all)}
}

// installSidegate puts hooks, programs and units in place.
const installSidegate = "make build && make install    # in a clone of Sidegate"

func judgePodman(m machine, all checked) verdict {
	v := verdict{name: "podman hook", state: works, means: "containers with sidegate/role are enforced before their first instruction"}
	podman, hook, splice := all["runtime podman"], all["podman hook"], all["podman splice rule"]
	switch {
	case !podman.OK && podman.Detail == notInstalled && !hook.Required:
		v.state, v.why, v.next = notHere, "podman is not installed", m.install("podman", "podman")+"    # if you want it"
	case !hook.OK:
		v.state, v.why, v.means, v.next = worksNot, hook.Detail, "containers of podman start without Sidegate, whatever their annotations say", installSidegate
		if strings.Contains(hook.Detail, "every container start fails") {
			v.means, v.next = "podman starts no container at all", hook.Next
		}
	case !podman.OK:
		v.state, v.why, v.means, v.next = worksPartly, podman.Detail, "whether podman calls the hook is not known", podman.Next
	case !splice.OK:
		v.state, v.why, v.means, v.next = worksPartly, splice.Detail, "nothing for security: no connection of podman's containers is accelerated", installSidegate
	}
	return v
}

// nriVersion finds a version in what containerd says of itself.
var nriVersion = regexp.MustCompile(`\b(\d+)\.(\d+)\.\d+`)

func judgeNRI(m machine, all checked) verdict {
	v := verdict{name: "containerd NRI", state: works, means: "pods are closed before their first container, and containers get the hook"}
	containerd, crio, nri, plugin := all["runtime containerd"], all["runtime crio"], all["NRI"], all["NRI plugin"]
	const open = "pods of containerd and CRI-O start without Sidegate, whatever their labels say"
	switch {
	case !containerd.OK && !crio.OK && !nri.OK:
		v.state, v.why = notHere, "neither containerd nor CRI-O is installed"
	case !nri.OK:
		v.state, v.why, v.means = worksNot, nri.Detail, open
		v.next = enableNRI(m, containerd.Detail, crio.OK && !containerd.OK)
	case !plugin.OK:
		v.state, v.why, v.means, v.next = worksNot, plugin.Detail, open, plugin.Next
	}
	return v
}

// enableNRI is the command that switches NRI on.
func enableNRI(m machine, containerd string, crio bool) string {
	if crio {
		return `mkdir -p /etc/crio/crio.conf.d && printf '[crio.nri]\nenable_nri = true\n' >/etc/crio/crio.conf.d/10-sidegate-nri.conf && systemctl restart crio`
	}
	version := 2 // of the configuration
	if at := nriVersion.FindStringSubmatch(containerd); at != nil {
		major, _ := strconv.Atoi(at[1]) // digits
		minor, _ := strconv.Atoi(at[2])
		switch {
		case major == 1 && minor < 7:
			return m.install("containerd.io", "containerd.io") + "    # containerd 1.7 or later, from https://download.docker.com: " + at[0] + " has no NRI"
		case major >= 2: // it is on, unless the configuration says otherwise
			return `sed -i '/nri\.v1\.nri.\]/,/^ *\[/s/disable = true/disable = false/' /etc/containerd/config.toml; systemctl restart containerd`
		}
	}
	const file = "/etc/containerd/config.toml"
	return fmt.Sprintf(`[ -s %s ] || echo 'version = %d' >%[1]s; grep -q 'nri\.v1\.nri' %[1]s || printf '[plugins."io.containerd.nri.v1.nri"]\n  disable = false\n' >>%[1]s; `+
		`sed -i '/nri\.v1\.nri.\]/,/^ *\[/s/disable = true/disable = false/' %[1]s; systemctl restart containerd`, file, version)
}

func judgeDocker(m machine, all checked) verdict {
	v := verdict{name: "Docker driver", state: works, means: "containers on its networks are enforced, and so is who joins them by the wrapper"}
	docker, driver, wrapper := all["Docker"], all["Docker network driver"], all["Docker runtime"]
	switch {
	case !docker.OK:
		v.state, v.why = notHere, "no Docker answers: "+docker.Detail
	case !driver.OK:
		v.state, v.why, v.next = worksNot, driver.Detail, "systemctl enable --now sidegate-docker    # or docker plugin enable sidegate"
		v.means = "networks of driver sidegate cannot be made, and containers on them do not start; on other networks labels mean nothing"
	case !wrapper.OK:
		v.state, v.why, v.means = worksPartly, wrapper.Detail, "no gap: who joins another container's network has none until Docker has told of its start, and programs that do not try again fail"
		v.next = dockerRuntime(wrapper.Detail)
		if wrapper.Required {
			v.state, v.means = worksNot, wrapper.Cost
		}
	}
	return v
}

// dockerRuntime is how the wrapper gets among Docker's runtimes.
func dockerRuntime(detail string) string {
	const wrapper = "/usr/local/libexec/sidegate/sidegate-oci-hook"
	if file, ok := strings.CutSuffix(detail, " does not exist"); ok {
		return fmt.Sprintf(`echo '{"runtimes": {"sidegate": {"path": "%s"}}}' >%s && systemctl reload docker`, wrapper, file)
	}
	file, ok := strings.CutPrefix(detail, "none of the runtimes in ")
	if !ok {
		return installSidegate
	}
	return fmt.Sprintf(`jq '.runtimes.sidegate.path = "%s"' %s >%[2]s.new && mv %[2]s.new %[2]s && systemctl reload docker`, wrapper, file)
}

func judgeKubernetes(m machine, all checked) verdict {
	v := verdict{name: "Kubernetes chart", state: works, means: "the plugin runs on this node"}
	switch kubelet := all["runtime kubelet"]; {
	case !kubelet.OK && kubelet.Detail == notInstalled:
		v.state, v.why = notHere, "no kubelet is installed"
	case !all.ok("NRI plugin"):
		v.state, v.why, v.means = worksNot, all["NRI plugin"].Detail, "pods of this node start without Sidegate, whatever their labels say"
		v.next = "helm install sidegate contrib/kubernetes/sidegate --namespace kube-system --set image.repository=REGISTRY/sidegate --set image.tag=TAG"
	case !all.ok("NRI"):
		v.state, v.why, v.means = worksNot, all["NRI"].Detail, "the plugin waits for its runtime, and pods start without it"
		v.next = enableNRI(m, all["runtime containerd"].Detail, all.ok("runtime crio") && !all.ok("runtime containerd"))
	}
	return v
}
