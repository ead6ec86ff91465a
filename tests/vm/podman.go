// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// podmanConfig is what podman needs to know where systemd is not.
const podmanConfig = `[containers]
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
image_default_transport = "docker://"
`

const podmanStorage = `[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
`

// PodmanFiles is podman of the host with what it starts (conmon, crun, runc,
// catatonit for pods, netavark), set up to work in a VM: cgroupfs, vfs storage,
// events in a file. There is no registry to reach: images come from
// `podman import`. Bridge networks would need iptables too; use --network none.
func PodmanFiles() ([]File, error) {
	var files []File
	for _, name := range []string{
		"podman", "conmon", "crun", "runc",
		"/usr/libexec/podman/catatonit", "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns",
	} {
		program, err := HostProgram(name)
		if err != nil {
			return nil, err
		}
		files = append(files, program...)
	}
	for _, name := range []string{"/usr/share/containers/containers.conf", "/usr/share/containers/seccomp.json", "/etc/containers/policy.json", "/etc/containers/registries.conf"} {
		switch _, err := os.Stat(name); {
		case err == nil:
			files = append(files, File{Path: name, Host: name})
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("find podman's files: %w", err)
		}
	}
	return append(files,
		File{Path: "/etc/containers/containers.conf", Data: []byte(podmanConfig)},
		File{Path: "/etc/containers/storage.conf", Data: []byte(podmanStorage)},
	), nil
}
