// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

// node is the relay in all pods.
type node struct {
	state   string
	socket  string
	events  *events
	metrics *metrics
	log     *logrus.Logger
	most    int // connections of a pod
	rules   rules

	mu    sync.Mutex
	relay *cgroups.TLSRelay // nil until the state was opened
	pods  map[uint64]*pod   // by their netns cookies
}

func newNode(o *options, e *events, log *logrus.Logger) *node {
	return &node{
		state: o.state, socket: o.socket, most: o.connections, events: e, metrics: newMetrics(), log: log, pods: make(map[uint64]*pod),
	}
}

// open opens the state and listens in the pods that are there: this relay may have been
// restarted.
func (n *node) open() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.openLocked()
}

func (n *node) openLocked() error {
	relay, err := cgroups.NewTLSRelay(n.state)
	if err != nil {
		return err
	}
	n.relay = relay
	pods, err := relay.Pods()
	if err != nil {
		return err
	}
	failed := make(map[uint64]error)
	for _, p := range pods {
		if n.pods[p.Cookie] != nil {
			continue
		}
		if err := n.listenLocked(p); err != nil {
			failed[p.Cookie] = errors.Join(failed[p.Cookie], err)
		}
	}
	for cookie, err := range failed {
		if n.pods[cookie] == nil {
			// Its apps are refused. Others are not to suffer, and it may be about to end.
			n.log.WithField(cli.FieldNetnsCookie, cookie).WithError(err).
				Error("the relay does not listen in a pod, whose connections are refused: start its containers again if it has not ended")
		}
	}
	return nil
}

// serve does what a front-end asks: all, or it is an error.
func (n *node) serve(req *cgroups.TLSRequest) error {
	if req.State != n.state {
		return fmt.Errorf("this relay serves %s, not %s", n.state, req.State)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	current, err := n.currentLocked()
	if err != nil {
		return err
	}
	if !current {
		n.log.WithField(cli.FieldPath, n.state).Info("what was loaded is not what is loaded now: starting over")
		n.closeLocked()
		// Whoever asks holds the state's lock, and waits: it is open already.
		if n.relay, err = cgroups.AgainTLSRelay(n.state); err != nil {
			return err
		}
	}
	for _, p := range req.Pods {
		if err := n.listenLocked(p); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) currentLocked() (bool, error) {
	if n.relay == nil { // starting over has failed
		return false, nil
	}
	return n.relay.Current()
}

func (n *node) listenLocked(p cgroups.TLSPod) error {
	if have := n.pods[p.Cookie]; have != nil {
		if have.listener.Port == p.Port {
			return nil
		}
		// A policy is about to move the port. Connections to the old one go on.
		have.stop()
		delete(n.pods, p.Cookie)
	}
	l, err := n.relay.Listen(p.PID, p.Cookie, p.Port)
	if err != nil {
		return err
	}
	n.pods[p.Cookie] = startPod(n, n.relay, l)
	n.metrics.pods.Set(float64(len(n.pods)))
	n.log.WithFields(logrus.Fields{cli.FieldNetnsCookie: p.Cookie, cli.FieldPort: p.Port}).Debug("listening in a pod")
	return nil
}

// ready says why the relay does not serve, nil if it does.
func (n *node) ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.relay == nil {
		return errors.New("what is loaded could not be opened")
	}
	return nil
}

// sweepAll lets go of pods that are gone, or whose policy has no TLS any more.
func (n *node) sweepAll(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.sweep()
		}
	}
}

func (n *node) sweep() {
	n.mu.Lock()
	defer n.mu.Unlock()
	used := make(map[uint32]bool)
	for cookie, p := range n.pods {
		pol, err := n.relay.Policy(cookie)
		switch {
		case err == nil && pol.Port == p.listener.Port:
			p.settled = true
			used[pol.Revision] = true
		case err == nil && !p.settled && p.age() < settleTime:
			// The policy that is to be is not there yet: whoever asked makes it hold now.
		case errors.Is(err, ebpf.ErrKeyNotExist) && !p.settled && p.age() < settleTime:
		case err == nil, errors.Is(err, ebpf.ErrKeyNotExist):
			p.stop()
			delete(n.pods, cookie)
			n.log.WithField(cli.FieldNetnsCookie, cookie).Debug("no longer listening in a pod")
		default:
			n.log.WithField(cli.FieldNetnsCookie, cookie).WithError(err).
				Error("cannot see whether a pod is gone, trying again: restart sidegate-tls if it does not end")
		}
	}
	n.rules.keep(used)
	n.metrics.pods.Set(float64(len(n.pods)))
}

// settleTime is how long a policy may take from when the relay was asked to listen until it
// holds.
const settleTime = 30 * time.Second

func (n *node) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closeLocked()
}

func (n *node) closeLocked() {
	for _, p := range n.pods {
		p.stop()
	}
	clear(n.pods)
	if n.relay != nil {
		if err := n.relay.Close(); err != nil {
			n.log.WithField(cli.FieldPath, n.state).WithError(err).
				Error("what was loaded could not be let go of: it goes when sidegate-tls ends")
		}
		n.relay = nil
	}
}
