// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/cgroups/ktls"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// joinedMode begins the network mode of a container that has joined the network namespace of another.
const joinedMode = "container:"

// candidate is a container with what it is known by.
type candidate struct {
	id, name string
	pid      int
	running  bool   // its program runs
	joined   string // the container whose network namespace it has, "" for one of its own
	labels   map[string]string
	endpoint *endpoint // whose driver options count too, or nil
}

func (c *candidate) String() string { return "container " + cmp.Or(c.name, short(c.id)) }

// fields are what logs have of it.
func (c *candidate) fields() logrus.Fields {
	f := logrus.Fields{cli.FieldContainerID: c.id}
	if c.name != "" {
		f[cli.FieldContainer] = c.name
	}
	if c.endpoint != nil {
		f[cli.FieldNetwork], f[cli.FieldEndpoint] = c.endpoint.network, c.endpoint.id
	}
	return f
}

// asks are what its labels say of Sidegate, right or wrong.
func (c *candidate) asks() map[string]string {
	keys := maps.Clone(c.labels)
	maps.DeleteFunc(keys, func(key, _ string) bool { return !strings.HasPrefix(key, "sidegate/") })
	return keys
}

// request is what the container asks for: its labels and the driver options of its endpoint.
func (c *candidate) request() (policy.Request, error) {
	keys := c.asks()
	if keys == nil {
		keys = make(map[string]string)
	}
	if c.endpoint != nil {
		for key, value := range c.endpoint.request() {
			if other, has := keys[key]; has && other != value {
				return policy.Request{}, fmt.Errorf("%s: its label says %q, its network's driver option %q: write it once", key, other, value)
			}
			keys[key] = value
		}
	}
	return policy.ParseRequest(keys)
}

// join registers the container whose network namespace is at key, if its process is there and it asks for it, and
// opens the endpoint. Nothing is done while there is no process.
func (d *driver) join(e *endpoint, key string) error {
	ns, err := d.openSandbox(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Docker before 28: see started
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	pids, err := ns.Processes()
	if len(pids) == 0 || err != nil {
		return err
	}
	if !d.metrics.watching.Load() && !d.docker.serves() {
		return nil // Docker itself starts, and answers when its containers have: see reconcile
	}
	c, err := d.candidateOf(pids)
	if err != nil {
		return err
	}
	c.endpoint = e
	return d.admit(ns, c, func(s *cgroups.Store) error {
		return s.AddDevice(ns, e.inner(), e.host(), e.addrs())
	})
}

// candidateOf finds the container that has the network namespace of these processes, by their cgroups. Others may have
// joined it. Inside Join Docker answers the list, and nothing about the one container.
func (d *driver) candidateOf(pids []int) (*candidate, error) {
	list, err := d.docker.containers(context.Background())
	if err != nil {
		return nil, fmt.Errorf("find the container of process %d: %w", pids[0], err)
	}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			continue // it has ended
		}
		for i := range list {
			l := &list[i]
			if strings.Contains(string(b), l.ID) && !strings.HasPrefix(l.HostConfig.NetworkMode, joinedMode) {
				return &candidate{id: l.ID, name: l.name(), pid: pid, running: l.State == "running", labels: l.Labels}, nil
			}
		}
	}
	return nil, fmt.Errorf("find the container of process %d: its cgroup is that of none of Docker's %d", pids[0], len(list))
}

// refusal is why a container that asks for it could not be registered.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// admit registers a container, if it asks for it, and then opens its endpoint, which devices prepares. One that it
// refuses has not been opened.
func (d *driver) admit(ns *cgroups.Netns, c *candidate, devices func(*cgroups.Store) error) error {
	request, err := c.request()
	if err != nil {
		return refusal{fmt.Errorf("%s: %w", c, err)}
	}
	managed := false
	err = d.store(func(s *cgroups.Store) error {
		if managed, err = d.register(s, ns, c, request); err != nil {
			return refusal{fmt.Errorf("%s: %w", c, err)}
		}
		if c.endpoint == nil {
			return nil
		}
		if managed {
			if err := devices(s); err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
		}
		return s.OpenEndpoint(c.endpoint.host())
	})
	if managed && c.endpoint != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.pods[c.endpoint.id] = ns.Cookie
	}
	return err
}

// register makes the container one of a managed pod, if it asks for it or its name does. It tells whether its
// namespace is one.
func (d *driver) register(s *cgroups.Store, ns *cgroups.Netns, c *candidate, request policy.Request) (managed bool, err error) {
	under, err := s.PolicyOf(ns)
	if err != nil {
		return false, err
	}
	if !request.Managed && !slices.Contains(policy.DefaultSidecarNames(), c.name) || request.Role == policy.RoleNone && under == "" {
		return under != "", nil // a stranger in a managed pod is dead
	}
	what := &cgroups.Container{
		ID: c.id, Name: c.name, Pod: cmp.Or(request.Pod, c.name), Runtime: "docker", Role: request.Role, PID: c.pid,
	}
	if what.Capabilities, err = cgroups.CapabilitiesOf(c.pid); err != nil {
		return false, err
	}
	role := func(p *policy.PodPolicy) (policy.Role, error) {
		return policy.RoleOf(policy.Container{Name: c.name, Request: request}, p)
	}
	warning, err := cgroups.ChoosePolicy(s, d.config.policyDir, ns, request.Policy, role, what)
	if warning != "" {
		d.log.WithFields(c.fields()).WithFields(logrus.Fields{cli.FieldPolicy: what.PolicyName, logrus.ErrorKey: warning}).
			Warn("the policy stays as it is in force: correct its file, or put it back")
	}
	if err != nil {
		return false, err
	}
	if err := checkKTLS(request, c.pid); err != nil {
		return false, err
	}
	name := what.PolicyName
	if what.Policy != nil {
		name = what.Policy.Name
	}
	entry := d.log.WithFields(c.fields()).WithFields(logrus.Fields{cli.FieldPod: what.Pod, cli.FieldRole: what.Role.String(), cli.FieldPolicy: name})
	if !c.running {
		att, err := s.Attach(ns, what)
		if err == nil && !att.Already {
			entry.Info("registered before its program runs")
		}
		return true, err
	}
	// From here on it is closed, whatever comes of it.
	if err := s.Manage(ns, &cgroups.PodSpec{Pod: what.Pod, Policy: what.Policy, PolicyName: what.PolicyName, Source: what.Source}); err != nil {
		return false, err
	}
	ad, err := s.Adopt(ns, what)
	if err != nil {
		return false, err
	}
	if !ad.Already {
		d.metrics.adopted()
		entry.WithFields(logrus.Fields{cli.FieldSockets: ad.Sockets, cli.FieldLeft: ad.Left}).Info("took over a container that runs")
	}
	return true, nil
}

// checkKTLS tells whether a container that asks for it has the configuration for kTLS, which no network driver can mount.
func checkKTLS(request policy.Request, pid int) error {
	if request.KTLS != policy.KTLSMount {
		return nil
	}
	has, err := ktls.Mounted(pid)
	if err == nil && !has {
		err = fmt.Errorf("nothing is mounted at %s: run it by the runtime wrapper (--runtime sidegate), which does that", ktls.Dir)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", policy.KeyKTLS, err)
	}
	return nil
}

// leave closes an endpoint and takes its device from the pod with this cookie, 0 for none.
func (d *driver) leave(e *endpoint, pod uint64) error {
	return cgroups.IfLoaded(d.config.stateDir, func(s *cgroups.Store) error {
		err := s.CloseEndpoint(e.host())
		if pod != 0 {
			err = errors.Join(err, s.RemoveDevice(pod, e.host(), e.addrs()))
		}
		return err
	})
}

// started registers a container that runs: one of a Docker that does not wait for it (before 28), one that joined the
// namespace of another (--network container:NAME), of which no driver is told, one with networks of other drivers, and
// one that ran before this process.
func (d *driver) started(ctx context.Context, id string) error {
	i, err := d.docker.inspect(ctx, id)
	if errors.Is(err, errNoObject) {
		return nil
	}
	if err != nil {
		return err
	}
	if !i.State.Running || i.State.Pid == 0 {
		return nil
	}
	c := &candidate{id: i.ID, name: i.name(), pid: i.State.Pid, running: true, labels: i.Config.Labels}
	own := d.endpointsOf(i)
	c.joined, _ = strings.CutPrefix(i.HostConfig.NetworkMode, joinedMode)
	if c.joined == i.HostConfig.NetworkMode {
		c.joined = ""
	}
	if len(own) == 0 && c.joined == "" && len(c.asks()) == 0 {
		return nil // another driver's
	}
	ns, err := cgroups.NetnsOf(c.pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has ended
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	if len(own) == 0 {
		return d.admitRunning(ns, c)
	}
	var errs []error
	for _, e := range own {
		c.endpoint = e
		errs = append(errs, d.admitRunning(ns, c))
	}
	return errors.Join(errs...)
}

// admitRunning is admit for a container that runs. One that cannot be registered must not have what it has by then,
// its devices of other drivers and the network of the container that it has joined: its network namespace is closed,
// and that is all. Any other error is to be tried again.
func (d *driver) admitRunning(ns *cgroups.Netns, c *candidate) error {
	err := d.admit(ns, c, func(s *cgroups.Store) error { return s.SyncDevices(ns) })
	var refused refusal
	if !errors.As(err, &refused) {
		return err
	}
	now, nerr := cgroups.NetnsOf(c.pid)
	if errors.Is(nerr, fs.ErrNotExist) {
		return nil // it has ended, and who shares its namespace is not to blame
	}
	if nerr == nil {
		nerr = now.Close()
	}
	shut := d.store(func(s *cgroups.Store) error { return s.Shut(ns, cmp.Or(c.name, short(c.id))) })
	outcome := "it has no network until it is started again"
	switch {
	case errors.Is(shut, cgroups.ErrHostNetwork):
		outcome = "IT IS OPEN, as all of the host's network"
	case shut != nil || nerr != nil:
		return errors.Join(err, nerr, shut)
	case c.joined != "":
		outcome = fmt.Sprintf("it and container %s, whose network namespace it has joined, have no network until both are started again", short(c.joined))
	}
	d.mu.Lock()
	said := d.refused[c.id]
	d.refused[c.id] = true
	d.mu.Unlock()
	if !said {
		d.metrics.refused()
		d.log.WithFields(c.fields()).WithError(err).Errorf("refused, %s: correct what error says first", outcome)
	}
	return nil
}

// endpointsOf returns the endpoints of a container that are this driver's.
func (d *driver) endpointsOf(i *inspected) (own []*endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(i.NetworkSettings.Networks)) {
		if e := d.endpoints[i.NetworkSettings.Networks[name].EndpointID]; e != nil {
			own = append(own, e)
		}
	}
	return own
}

// restore reads what the kernel has of this driver's.
func (d *driver) restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := deleteUnnamed(); err != nil {
		return err
	}
	networks, err := listNetworks()
	if err != nil {
		return err
	}
	for _, n := range networks {
		d.networks[n.id] = n
		if err := d.memory.remember(n); err != nil {
			return err
		}
	}
	endpoints, err := listEndpoints()
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		n := d.networks[e.network]
		if n == nil {
			continue // its bridge is gone: so is its network
		}
		// A process that was killed may have left it half made.
		if err := d.makeEndpoint(n, e); err != nil {
			d.log.WithFields(subject{n.id, e.id}.fields()).WithError(err).
				Error("an endpoint cannot be restored, and its container has no network: start that again")
			continue
		}
		d.endpoints[e.id] = e
	}
	if d.published, err = listPublished(); err != nil {
		return err
	}
	d.published = slices.DeleteFunc(d.published, func(p publish) bool { return d.endpoints[p.endpoint] == nil })
	for _, p := range d.published {
		hold, err := reservePort(p.proto, p.hostIP, p.hostPort)
		if err != nil {
			d.log.WithFields(subject{endpoint: p.endpoint}.fields()).WithFields(logrus.Fields{cli.FieldPort: p.hostPort, logrus.ErrorKey: err}).
				Warn("a published port is not kept from other programs: stop the one that has it, or publish another")
			continue
		}
		d.held[p.endpoint] = append(d.held[p.endpoint], hold)
	}
	d.log.Infof("restored %d networks, %d endpoints and %d published ports", len(d.networks), len(d.endpoints), len(d.published))
	return d.apply()
}

// watch follows Docker until ctx ends: what it has, at each connection, and then what starts and ends.
func (d *driver) watch(ctx context.Context) {
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := d.docker.events(ctx, func() {
			pause, said = firstPause, ""
			d.log.Info("connected to Docker's events")
			if err := d.allowResolver(); err != nil {
				d.log.WithField(cli.FieldPath, d.config.pidFile).WithError(err).
					Warn("Docker's name server will not answer in managed containers: see error, and restart sidegate-docker")
			}
			if err := d.reconcile(ctx); err != nil {
				d.log.WithField(cli.FieldPath, d.config.docker).WithError(err).
					Error("containers that run could not all be taken over, trying again: if it does not end, start those that error names again")
				d.reconcileSoon(ctx)
			}
			d.metrics.connected(true)
		}, func(e event) { d.event(ctx, e) })
		d.metrics.connected(false)
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said { // once, not for each attempt
			said = text
			d.log.WithField(cli.FieldPath, d.config.docker).WithError(err).
				Warn("Docker does not tell of containers, trying again: see whether Docker runs, and its socket is there")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// allowResolver lets Docker's name server, 127.0.0.11, live in the network namespaces of managed containers. It is
// dockerd itself, and so in none of their cgroups.
func (d *driver) allowResolver() error {
	pid, err := d.dockerPID()
	if err != nil {
		return err
	}
	return d.store(func(s *cgroups.Store) error { return s.AddAgent(pid) })
}

// How long to wait between attempts to connect, at first and at most.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 2 * time.Second
)

func (d *driver) event(ctx context.Context, e event) {
	if e.Action != "start" {
		d.ended(e.Actor.ID)
		return
	}
	if err := d.started(ctx, e.Actor.ID); err != nil {
		d.log.WithField(cli.FieldContainerID, e.Actor.ID).WithError(err).
			Error("a container that has started could not be looked at, trying again: if it does not end, start it again")
		d.reconcileSoon(ctx)
	}
}

// ended forgets a container, unless its hook has.
func (d *driver) ended(id string) {
	d.mu.Lock()
	delete(d.refused, id)
	d.mu.Unlock()
	err := cgroups.IfLoaded(d.config.stateDir, func(s *cgroups.Store) error {
		_, err := s.Forget(id)
		return err
	})
	if err != nil {
		d.log.WithField(cli.FieldContainerID, id).WithError(err).
			Error("a container that has ended is not forgotten, and stays closed: the next one that ends tries again")
	}
	d.collectSoon()
}

// reconcileTries is how often reconcileLater tries after the last fault, at most: over some minutes.
const reconcileTries = 60

// reconcileSoon sees to it that reconcileLater runs.
func (d *driver) reconcileSoon(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	runs := d.tries > 0
	d.tries, d.faults = reconcileTries, d.faults+1
	if !runs {
		go d.reconcileLater(ctx)
	}
}

// reconcileLater is reconcile until it has found no fault. Docker says nothing about a container that starts or ends,
// and may be waiting for this driver meanwhile.
func (d *driver) reconcileLater(ctx context.Context) {
	for left := reconcileTries; left > 0; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lastPause):
		}
		d.mu.Lock()
		faults := d.faults
		d.mu.Unlock()
		err := d.reconcile(ctx)
		if err != nil {
			d.log.WithError(err).Debug("containers that run, trying again")
		}
		d.mu.Lock()
		switch {
		case d.faults != faults: // one came that this may have been too early for
		case err == nil:
			d.tries = 0
		default:
			d.tries--
		}
		left = d.tries
		d.mu.Unlock()
	}
}

// startLimit is how long an endpoint may be without a container that Docker knows it of: between CreateEndpoint and
// the end of a start.
const startLimit = time.Minute

// reconcile takes over the containers that run, removes the endpoints that Docker does not know any more, and
// forgets what has ended.
func (d *driver) reconcile(ctx context.Context) error {
	d.mu.Lock()
	stale := make(map[string]bool)
	for id := range d.endpoints {
		stale[id] = time.Since(d.made[id]) > startLimit
	}
	d.mu.Unlock()
	list, err := d.docker.containers(ctx)
	if err != nil {
		return err
	}
	var errs []error
	complete := true
	for i := range list {
		inspected, err := d.docker.inspect(ctx, list[i].ID)
		if errors.Is(err, errNoObject) {
			continue
		}
		if err != nil {
			complete = false
			errs = append(errs, err)
			continue
		}
		for _, e := range d.endpointsOf(inspected) {
			delete(stale, e.id)
		}
		if err := d.started(ctx, list[i].ID); err != nil {
			errs = append(errs, err)
		}
	}
	if complete {
		errs = append(errs, d.dropNetworks(ctx))
		d.mu.Lock()
		for id, is := range stale {
			if !is {
				continue
			}
			d.log.WithFields(subject{endpoint: id}.fields()).Info("removing it: Docker does not know it any more")
			errs = append(errs, d.deleteEndpoint(id))
		}
		d.mu.Unlock()
	}
	d.collectSoon()
	return errors.Join(errs...)
}

// dropNetworks removes the networks that Docker does not know: one that it was not told of being made, since the driver
// was killed then.
func (d *driver) dropNetworks(ctx context.Context) error {
	ids, err := d.memory.all()
	d.mu.Lock()
	ids = slices.DeleteFunc(ids, func(id string) bool { return d.networks[id] != nil })
	for id := range d.networks {
		used := false
		for _, e := range d.endpoints {
			used = used || e.network == id
		}
		if !used && time.Since(d.made[id]) > startLimit {
			ids = append(ids, id)
		}
	}
	d.mu.Unlock()
	errs := []error{err}
	for _, id := range ids {
		_, err := d.docker.network(ctx, id)
		if err == nil {
			continue
		}
		if errors.Is(err, errNoObject) {
			d.log.WithFields(subject{network: id}.fields()).Info("removing it: Docker does not know it")
			d.mu.Lock()
			err = d.deleteNetwork(id)
			d.mu.Unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// How often, and after which first pause, is looked for what has ended: a container's last process may be dying when
// Docker tells of its end.
const (
	collectTries = 5
	collectPause = 100 * time.Millisecond
)

// collectSoon forgets what has ended, beside. What it is late with stays closed.
func (d *driver) collectSoon() {
	select {
	case d.collecting <- struct{}{}:
	default:
		return
	}
	go func() {
		pause := collectPause
		for try := range collectTries {
			if try == 1 {
				<-d.collecting // whoever comes from now on starts another
			}
			err := cgroups.IfLoaded(d.config.stateDir, func(s *cgroups.Store) error {
				_, err := s.Collect()
				return err
			})
			if err != nil {
				d.log.WithField(cli.FieldPath, d.config.stateDir).WithError(err).
					Error("what has ended is not forgotten, and stays closed: the next container that ends tries again; see sidegate status, doctor")
			}
			time.Sleep(pause)
			pause *= 2
		}
	}()
}
