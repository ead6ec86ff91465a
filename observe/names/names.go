// SPDX-License-Identifier: Apache-2.0

// Package names says whose addresses they are: of which container or pod, as far as the runtimes of the machine know.
package names

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// Source lists addresses and whose they are. An error is that there is nobody to ask.
type Source struct {
	Name string
	List func(context.Context) (map[netip.Addr]string, error)
}

// Names knows names, and asks for them again when there are new addresses. It waits for nobody but at its start.
type Names struct {
	ctx     context.Context
	sources []Source

	mu     sync.Mutex
	known  map[netip.Addr]string
	asked  time.Time
	asking bool
}

const (
	patience = 2 * time.Second
	// again is how long an address that nobody knew is not asked about.
	again = 5 * time.Second
)

// New asks the sources, of which the first that knows an address names it, until ctx ends.
func New(ctx context.Context, sources []Source) *Names {
	n := &Names{ctx: ctx, sources: sources, known: make(map[netip.Addr]string)}
	n.ask()
	return n
}

// Of is whose address it is. Empty: nobody knows, or will be known soon.
func (n *Names) Of(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.known[a.Unmap()]
	if !ok && !n.asking && time.Since(n.asked) > again {
		n.asking = true
		go n.ask()
	}
	return name
}

// ask asks all at once.
func (n *Names) ask() {
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	lists := make([]map[netip.Addr]string, len(n.sources))
	var wg sync.WaitGroup
	for i, s := range n.sources {
		wg.Go(func() {
			if list, err := s.List(ctx); err == nil {
				lists[i] = list
			}
		})
	}
	wg.Wait()
	known := make(map[netip.Addr]string)
	for _, list := range lists {
		for a, name := range list {
			if _, ok := known[a]; !ok && name != "" {
				known[a] = name
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known, n.asked, n.asking = known, time.Now(), false
}
