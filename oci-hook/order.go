// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/policy"
)

// Annotations by which runtimes tell their OCI runtime what a container is.
const (
	annotationManager = "io.container.manager" // podman's

	// containerd's, of CRI containers.
	annotationType      = "io.kubernetes.cri.container-type"
	annotationName      = "io.kubernetes.cri.container-name"
	annotationPodName   = "io.kubernetes.cri.sandbox-name"
	annotationNamespace = "io.kubernetes.cri.sandbox-namespace"

	// CRI-O's. podman sets the first for pods.
	annotationSandbox    = "io.kubernetes.cri-o.SandboxID"
	annotationTypeO      = "io.kubernetes.cri-o.ContainerType"
	annotationNameO      = "io.kubernetes.cri-o.ContainerName"
	annotationNameK8s    = "io.kubernetes.container.name"
	annotationPodNameK8s = "io.kubernetes.pod.name"
	annotationPodNsK8s   = "io.kubernetes.pod.namespace"

	typeSandbox = "sandbox"
)

// order is what is to be done with a container, as far as its annotations tell.
type order struct {
	managed   bool // it, or its pod, asks for Sidegate
	sandbox   bool // it is the pause container of a CRI pod
	name, pod string
	runtime   string
	role      policy.Role // RoleUnset if the policy has a say
	policy    string      // empty if not said
	wait      time.Duration
	ktls      bool // it is to have the configuration for kTLS
	roleUnder func(*policy.PodPolicy) (policy.Role, error)
}

// readOrder reads annotations. Those of a CRI container are its pod's as well: sidegate/role
// is then the role of those containers that nothing else gives one, as it is a pod's label
// in Kubernetes.
func readOrder(st *specs.State) (order, error) {
	a := st.Annotations
	asked, err := policy.ParsePod(nil, a)
	if err != nil {
		return order{}, err
	}
	o := order{
		name:    cmp.Or(a[annotationName], a[annotationNameK8s], a[annotationNameO], a[annotationDockerName]),
		runtime: runtimeOf(a),
		policy:  asked.Policy,
		wait:    asked.Wait,
		managed: asked.Managed,
	}
	o.pod = cmp.Or(asked.Pod, podName(a), a[annotationSandbox])
	if o.runtime == "docker" {
		o.pod = cmp.Or(o.pod, o.name)
	}
	if o.runtime == "podman" || o.runtime == "docker" || o.runtime == "oci" {
		o.role = cmp.Or(asked.Roles[o.name], asked.Role)
		o.managed = o.managed || asked.NamesSidecar(o.name)
		o.roleUnder = func(p *policy.PodPolicy) (policy.Role, error) {
			return policy.RoleOf(policy.Container{Name: o.name, Request: asked.Request}, p)
		}
		if wait, ok := asked.Waits[o.name]; ok {
			o.wait = wait
		}
		o.ktls = cmp.Or(asked.KTLSOf[o.name], asked.KTLS) == policy.KTLSMount
		return o, nil
	}
	o.managed = asked.Wants() || !asked.Exempt() && asked.NamesSidecar(o.name)
	o.sandbox = cmp.Or(a[annotationType], a[annotationTypeO]) == typeSandbox
	o.role = asked.Roles[o.name]
	o.roleUnder = func(p *policy.PodPolicy) (policy.Role, error) { return asked.RoleIn(o.name, p), nil }
	role := cmp.Or(o.role, asked.RoleIn(o.name, nil))
	o.wait, o.ktls = asked.WaitIn(o.name, role), !o.sandbox && asked.KTLSIn(o.name, role) == policy.KTLSMount
	return o, nil
}

// runtimeOf names the front-end that a container came by.
func runtimeOf(annotations map[string]string) string {
	switch {
	case annotations[annotationManager] == "libpod":
		return "podman"
	case annotations[annotationType] != "":
		return "containerd"
	case annotations[annotationTypeO] != "":
		return "cri-o"
	case annotations[annotationDockerName] != "":
		return "docker"
	}
	return "oci"
}

// podName is the name of a CRI pod, as kubectl writes it.
func podName(annotations map[string]string) string {
	name := cmp.Or(annotations[annotationPodName], annotations[annotationPodNameK8s])
	namespace := cmp.Or(annotations[annotationNamespace], annotations[annotationPodNsK8s])
	if name == "" || namespace == "" {
		return name
	}
	return namespace + "/" + name
}
