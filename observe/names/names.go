// SPDX-License-Identifier: Apache-2.0

// Package names says whose addresses they are: of which container or pod, as far as the runtimes of the machine know.
package names

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Known is what somebody knows.
type Known struct {
	Addresses map[netip.Addr]string // whose they are
	Pods      map[string]string     // names, by their ids, where the hook is not told them
}

func newKnown() Known { return Known{make(map[netip.Addr]string), make(map[string]string)} }

// Source lists what a runtime knows. An error is that there is nobody to ask.
type Source struct {
	Name string
	List func(context.Context) (Known, error)
}

// Names knows names, and asks for them again when there are new addresses. It waits for nobody but at its start.
type Names struct {
	ctx     context.Context
	sources []Source

	mu     sync.Mutex
	known  Known
	asked  time.Time
	asking bool
}

const (
	patience = 2 * time.Second
	// again is how long nobody is asked after something was not known.
	again = 5 * time.Second
)

// New asks the sources, of which the first that knows an address names it, until ctx ends.
func New(ctx context.Context, sources []Source) *Names {
	n := &Names{ctx: ctx, sources: sources, known: newKnown()}
	n.ask()
	return n
}

// Of is whose address it is. Empty: nobody knows, or will be known soon.
func (n *Names) Of(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.known.Addresses[a.Unmap()]
	n.askUnless(ok)
	return name
}

// Pod is the name of the pod with this id, or empty.
func (n *Names) Pod(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.known.Pods[id]
	n.askUnless(ok)
	return name
}

func (n *Names) askUnless(known bool) {
	if !known && !n.asking && time.Since(n.asked) > again {
		n.asking = true
		go n.ask()
	}
}

// ask asks all at once.
func (n *Names) ask() {
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	lists := make([]Known, len(n.sources))
	var wg sync.WaitGroup
	for i, s := range n.sources {
		wg.Go(func() {
			if list, err := s.List(ctx); err == nil {
				lists[i] = list
			}
		})
	}
	wg.Wait()
	known := newKnown()
	for _, list := range slices.Backward(lists) { // the first source that knows has the word
		maps.Copy(known.Addresses, list.Addresses)
		maps.Copy(known.Pods, list.Pods)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known, n.asked, n.asking = known, time.Now(), false
}
