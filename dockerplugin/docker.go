// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// apiTimeout bounds a request to Docker, which may hold a lock that this plugin's own answer would free.
const apiTimeout = 5 * time.Second

var errNoObject = errors.New("it is not known to Docker")

// docker is a client of Docker's Engine API, of which three requests and the events are needed. It asks for no
// version: fields that it reads have been there since 1.24, and daemons differ in the oldest one that they speak.
type docker struct {
	socket string
	client *http.Client
}

func newDocker(socket string) *docker {
	var dialer net.Dialer
	return &docker{socket: socket, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}}
}

// listed is a container as the list has it.
type listed struct {
	ID     string `json:"Id"`
	Names  []string
	Labels map[string]string
	State  string // created, running, paused, restarting, removing, exited or dead

	HostConfig struct{ NetworkMode string }
}

// name is the container's, which links may give others.
func (l *listed) name() string {
	for _, n := range l.Names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return l.ID[:min(len(l.ID), 12)]
}

// inspected is a container that runs.
type inspected struct {
	ID    string `json:"Id"`
	Name  string
	State struct {
		Running bool
		Pid     int
	}
	Config     struct{ Labels map[string]string }
	HostConfig struct{ NetworkMode string }

	NetworkSettings struct {
		Networks map[string]struct{ NetworkID, EndpointID string }
	}
}

func (i *inspected) name() string { return strings.TrimPrefix(i.Name, "/") }

// inspectedNetwork is a network as CreateNetwork was told of it.
type inspectedNetwork struct {
	ID       string `json:"Id"`
	Driver   string
	Internal bool
	Options  map[string]string
	IPAM     struct {
		Config []struct{ Subnet, Gateway string }
	}
}

// containers lists all containers. Unlike inspect it may be asked while one of them starts.
func (d *docker) containers(ctx context.Context) (list []listed, err error) {
	err = d.get(ctx, "/containers/json?all=1", &list)
	return list, err
}

func (d *docker) inspect(ctx context.Context, id string) (*inspected, error) {
	c := new(inspected)
	return c, d.get(ctx, "/containers/"+url.PathEscape(id)+"/json", c)
}

func (d *docker) network(ctx context.Context, id string) (*inspectedNetwork, error) {
	n := new(inspectedNetwork)
	return n, d.get(ctx, "/networks/"+url.PathEscape(id), n)
}

// serveTime is how long Docker may take to say that it is there.
const serveTime = time.Second

// serves tells whether Docker answers. While it starts it takes connections, and leaves them waiting.
func (d *docker) serves() bool {
	ctx, cancel := context.WithTimeout(context.Background(), serveTime)
	defer cancel()
	r, err := d.request(ctx, "/_ping")
	return err == nil && r.Body.Close() == nil
}

func (d *docker) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	r, err := d.request(ctx, path)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		return fmt.Errorf("ask Docker for %s: %w", path, err)
	}
	return nil
}

func (d *docker) request(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	r, err := d.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask Docker at %s: %w", d.socket, err)
	}
	if r.StatusCode == http.StatusOK {
		return r, nil
	}
	defer r.Body.Close()
	var answer struct{ Message string }
	_ = json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&answer)
	if r.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("ask Docker for %s: %w: %s", path, errNoObject, answer.Message)
	}
	return nil, fmt.Errorf("ask Docker for %s: %s: %s", path, r.Status, answer.Message)
}

// event is what happened to a container.
type event struct {
	Action string // start, die or destroy
	Actor  struct{ ID string }
}

// events calls f with each event until the connection or ctx ends, and connected once before, when nothing is missed
// any more.
func (d *docker) events(ctx context.Context, connected func(), f func(event)) error {
	filters := `{"type":["container"],"event":["start","die","destroy"]}`
	r, err := d.request(ctx, "/events?filters="+url.QueryEscape(filters))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	connected()
	for decoder := json.NewDecoder(r.Body); ; {
		var e event
		if err := decoder.Decode(&e); err != nil {
			return fmt.Errorf("read Docker's events: %w", err)
		}
		f(e)
	}
}
