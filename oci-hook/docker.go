// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// dockerEnv is Docker's socket, if that is not dockerSocket.
const (
	dockerEnv    = "SIDEGATE_DOCKER_SOCKET"
	dockerSocket = "/run/docker.sock"
)

// Docker's labels do not reach config.json. The wrapper asks Docker for them, and hands them on as annotations: those
// of Sidegate, and the container's name.
const (
	annotationDockerName = "io.sidegate.docker.name"

	dockerNamespace = "moby" // of containerd, in which Docker's containers are
	dockerTimeout   = 2 * time.Second
	dockerMost      = 4 << 20 // bytes of an answer
)

// dockerContainer returns the id of the container whose bundle this is, if it is one of Docker's.
func dockerContainer(bundle string) (id string, is bool) {
	dir, err := filepath.Abs(bundle)
	if err != nil {
		return "", false
	}
	return filepath.Base(dir), filepath.Base(filepath.Dir(dir)) == dockerNamespace
}

// dockerAnnotations asks Docker for a container that is being made. While it is, Docker answers the list only. net/http
// would make every hook start later.
func dockerAnnotations(socket, id string) (map[string]string, error) {
	fault := func(err error) error {
		return fmt.Errorf("ask Docker for the labels of container %s: %w: is %s its socket? If not, write it into the environment of containerd as %s",
			id, err, socket, dockerEnv)
	}
	body, err := dockerGet(socket, "/containers/json?all=1&filters="+url.QueryEscape(fmt.Sprintf(`{"id":[%q]}`, id)))
	if err != nil {
		return nil, fault(err)
	}
	var list []struct {
		ID     string `json:"Id"`
		Names  []string
		Labels map[string]string
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fault(err)
	}
	for _, c := range list {
		if c.ID != id {
			continue
		}
		return fromDocker(c.Names, c.Labels), nil
	}
	return nil, fault(errors.New("it does not know it"))
}

// dockerGet makes one request. HTTP 1.0 has no chunks.
func dockerGet(socket, path string) ([]byte, error) {
	c, err := net.DialTimeout("unix", socket, dockerTimeout)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(dockerTimeout)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\nHost: docker\r\n\r\n", path); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(c, dockerMost))
	if err != nil {
		return nil, err
	}
	head, body, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	status, _, _ := strings.Cut(string(head), "\r\n")
	if _, code, _ := strings.Cut(status, " "); !ok || !strings.HasPrefix(code, "200") {
		return nil, fmt.Errorf("it answers %q", status)
	}
	return body, nil
}

// askDocker returns the annotations that a new container gets from Docker, none if it is not Docker's.
func (e env) askDocker(bundle string) (map[string]string, error) {
	id, is := dockerContainer(bundle)
	if !is {
		return nil, nil
	}
	annotations, err := dockerAnnotations(cmp.Or(lookupEnv(e.environ, dockerEnv), dockerSocket), id)
	if err == nil {
		return annotations, nil
	}
	// Docker starts what it is to start again before it serves. What it would say is in its files, of which it
	// promises nothing: so they are asked second.
	annotations, ferr := dockerFile(bundle, id)
	if ferr != nil {
		return nil, errors.Join(err, ferr)
	}
	return annotations, nil
}

// dockerFile reads what Docker keeps of a container. The directory of that is beside the one whose files are the
// container's /etc/hosts and the like, which is that of another one if it has the network of that.
func dockerFile(bundle, id string) (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec struct {
		Mounts []specs.Mount `json:"mounts"`
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("read the mounts of container %s: %w", id, err)
	}
	for _, m := range spec.Mounts {
		dir := filepath.Dir(filepath.Dir(m.Source))
		if !strings.HasPrefix(m.Destination, "/etc/") || filepath.Base(dir) != "containers" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, id, "config.v2.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var kept struct {
			ID     string
			Name   string
			Config struct{ Labels map[string]string }
		}
		if err := json.Unmarshal(b, &kept); err != nil || kept.ID != id {
			return nil, fmt.Errorf("what Docker keeps of container %s is not understood: it is %q: %w", id, kept.ID, err)
		}
		return fromDocker([]string{kept.Name}, kept.Config.Labels), nil
	}
	return nil, fmt.Errorf("nor are the files found that Docker keeps of container %s", id)
}

// fromDocker makes annotations of what Docker says of a container.
func fromDocker(names []string, labels map[string]string) map[string]string {
	annotations := make(map[string]string)
	for key, value := range labels {
		if strings.HasPrefix(key, "sidegate/") {
			annotations[key] = value
		}
	}
	for _, name := range names {
		if name = strings.TrimPrefix(name, "/"); name != "" && !strings.Contains(name, "/") { // else a link's
			annotations[annotationDockerName] = name
		}
	}
	return annotations
}
