// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"
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
	dockerTimeout   = 5 * time.Second
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
		annotations := make(map[string]string)
		for key, value := range c.Labels {
			if strings.HasPrefix(key, "sidegate/") {
				annotations[key] = value
			}
		}
		for _, name := range c.Names {
			if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") { // else a link's
				annotations[annotationDockerName] = name
			}
		}
		return annotations, nil
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
	return dockerAnnotations(cmp.Or(lookupEnv(e.environ, dockerEnv), dockerSocket), id)
}
