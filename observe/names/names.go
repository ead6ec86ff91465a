// SPDX-License-Identifier: Apache-2.0

// Package names says whose addresses they are: of which container or pod, as far as the runtimes of the machine know.
package names

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
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

// Names knows names, and asks for them again when there is something new. It waits for nobody but at its start, and in
// [Names.PodNow].
type Names struct {
	ctx     context.Context
	sources []Source

	mu     sync.Mutex
	known  Known
	missed map[string]bool // what nobody knew: most addresses are of the world
	asked  time.Time
	asking bool
}

const (
	patience  = 2 * time.Second
	again     = 2 * time.Second // how long nobody is asked after somebody was
	forget    = time.Minute     // after which what nobody knew may be known
	maxMissed = 1 << 14
)

// New asks the sources, of which the first that knows an address names it, until ctx ends.
func New(ctx context.Context, sources []Source) *Names {
	n := &Names{ctx: ctx, sources: sources, known: newKnown(), missed: make(map[string]bool)}
	n.ask()
	return n
}

// Of is whose address it is. Empty: nobody knows, or will be known soon.
func (n *Names) Of(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.known.Addresses[a.Unmap()]
	if !ok {
		n.miss(a.String())
	}
	return name
}

// Pod is the name of the pod with this id, or empty, as for all that is no id of a runtime's.
func (n *Names) Pod(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.known.Pods[id]
	if !ok && isID(id) {
		n.miss(id)
	}
	return name
}

// PodNow is Pod, and asks about an id that is new before it answers.
func (n *Names) PodNow(id string) string {
	n.mu.Lock()
	_, ok := n.known.Pods[id]
	ask := !ok && isID(id) && !n.missed[id]
	if ask {
		n.missed[id] = true
	}
	n.mu.Unlock()
	if ask {
		n.ask()
	}
	return n.Pod(id)
}

// isID tells whether it is one as runtimes make them.
func isID(s string) bool {
	const length = 64
	return len(s) == length && strings.Trim(s, "0123456789abcdef") == ""
}

// miss has somebody asked about what is new, with the lock held.
func (n *Names) miss(what string) {
	if len(n.missed) >= maxMissed || time.Since(n.asked) > forget {
		clear(n.missed)
	}
	if n.missed[what] || n.asking || time.Since(n.asked) < again {
		return
	}
	n.missed[what], n.asking = true, true
	go n.ask()
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
