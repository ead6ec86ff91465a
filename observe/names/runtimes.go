// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sources are the runtimes that may be on the machine.
func Sources() []Source {
	list := []Source{{"docker", func(ctx context.Context) (Known, error) { return Docker(ctx, "/run/docker.sock") }}, {"podman", Podman}}
	for _, socket := range []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock"} {
		list = append(list, Source{"cri", func(ctx context.Context) (Known, error) { return CRI(ctx, socket) }})
	}
	return list
}

// most is how much an answer may have.
const most = 32 << 20

// Docker asks the daemon at socket for the addresses of running containers (GET /containers/json).
func Docker(ctx context.Context, socket string) (Known, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/json", http.NoBody)
	if err != nil {
		return Known{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return Known{}, fmt.Errorf("ask Docker: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return Known{}, fmt.Errorf("ask Docker: %s", res.Status)
	}
	var containers []struct {
		Names           []string
		NetworkSettings networkSettings
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, most)).Decode(&containers); err != nil {
		return Known{}, fmt.Errorf("read what Docker says: %w", err)
	}
	known := newKnown()
	for _, c := range containers {
		if len(c.Names) > 0 {
			c.NetworkSettings.name(known.Addresses, strings.TrimPrefix(c.Names[0], "/"))
		}
	}
	return known, nil
}

// networkSettings are in the words of Docker, and of podman, which took them over.
type networkSettings struct {
	Networks map[string]struct {
		IPAddress         string
		GlobalIPv6Address string
	}
}

func (n networkSettings) name(known map[netip.Addr]string, name string) {
	for _, net := range n.Networks {
		for _, s := range []string{net.IPAddress, net.GlobalIPv6Address} {
			if a, err := netip.ParseAddr(s); err == nil {
				known[a] = name
			}
		}
	}
}

// Podman asks the command podman for the addresses of running containers, of which those of a pod are its infra
// container's: they get the pod's name.
func Podman(ctx context.Context) (Known, error) {
	run := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, "podman", args...)
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("run podman %s: %w", args[0], err)
		}
		return out, nil
	}
	out, err := run("ps", "--quiet", "--no-trunc")
	ids := strings.Fields(string(out))
	if err != nil || len(ids) == 0 {
		return Known{}, err
	}
	known := newKnown()
	if out, err := run("pod", "ps", "--no-trunc", "--format", "{{.Name}} {{.ID}} {{.InfraID}}"); err == nil {
		for line := range strings.Lines(string(out)) {
			// Hooks are told the id of the infra container for the pod's.
			if f := strings.Fields(line); len(f) > 1 {
				for _, id := range f[1:] {
					known.Pods[id] = f[0]
				}
			}
		}
	}
	out, err = run(append([]string{"inspect", "--type", "container"}, ids...)...)
	if err != nil && len(out) == 0 {
		return Known{}, err
	}
	var containers []struct {
		Name            string
		Pod             string
		NetworkSettings networkSettings
	}
	if err := json.Unmarshal(out, &containers); err != nil {
		return Known{}, fmt.Errorf("read what podman says: %w", err)
	}
	for _, c := range containers {
		name := c.Name
		if pod := known.Pods[c.Pod]; pod != "" {
			name = pod
		}
		c.NetworkSettings.name(known.Addresses, name)
	}
	return known, nil
}

// CRI asks the runtime at socket for the addresses of pods: namespace/name.
func CRI(ctx context.Context, socket string) (_ Known, err error) {
	if _, err := os.Stat(socket); err != nil {
		return Known{}, err // gRPC would go on trying
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return Known{}, fmt.Errorf("ask the runtime at %s: %w", socket, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := cri.NewRuntimeServiceClient(conn)
	list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{
		Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}},
	})
	if err != nil {
		return Known{}, fmt.Errorf("list pods of %s: %w", socket, err)
	}
	known := newKnown()
	for _, s := range list.GetItems() {
		st, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: s.GetId()})
		if err != nil {
			continue // it ended meanwhile
		}
		name := s.GetMetadata().GetNamespace() + "/" + s.GetMetadata().GetName()
		n := st.GetStatus().GetNetwork()
		ips := []string{n.GetIp()}
		for _, more := range n.GetAdditionalIps() {
			ips = append(ips, more.GetIp())
		}
		for _, ip := range ips {
			if a, err := netip.ParseAddr(ip); err == nil {
				known.Addresses[a] = name
			}
		}
	}
	return known, nil
}
