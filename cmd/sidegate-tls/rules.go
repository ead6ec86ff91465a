// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"sync"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/policy"
)

// rules are those of the revisions in use, compiled. The zero value is ready.
type rules struct {
	mu       sync.Mutex
	compiled map[uint32]asked // by revision, which never changes
}

// asked is what a policy asks of connections.
type asked struct {
	relay.Policy
	deferred bool
}

// of returns what a revision of a policy asks of connections.
func (r *rules) of(from *cgroups.TLSRelay, revision uint32) (asked, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.compiled[revision]; ok {
		return p, nil
	}
	b, err := from.Rules(revision)
	if err != nil {
		return asked{}, err
	}
	p, err := compile(b)
	if err != nil {
		return asked{}, fmt.Errorf("read what revision %d says of TLS: %w", revision, err)
	}
	if r.compiled == nil {
		r.compiled = make(map[uint32]asked)
	}
	r.compiled[revision] = p
	return p, nil
}

// keep forgets all revisions but these.
func (r *rules) keep(used map[uint32]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rev := range r.compiled {
		if !used[rev] {
			delete(r.compiled, rev)
		}
	}
}

func compile(b []byte) (asked, error) {
	t, err := policy.ParseTLS(b)
	if err != nil {
		return asked{}, err
	}
	p := asked{deferred: t.TLS.Mode == policy.TLSDeferred, Policy: relay.Policy{
		RequireKeys: t.TLS.Require == policy.RequireKTLS,
		Plaintext:   t.TLS.Plaintext == policy.VerdictAllow,
		Judge: judge.Config{
			Other:   t.TLS.Other == policy.VerdictAllow,
			AnyHost: t.TLS.Fronting == policy.VerdictAllow,
			Show:    t.TLS.Headers,
		},
	}}
	if t.TLS.SNI != nil {
		p.SNI = t.SNI
	}
	if http := t.HTTP(); http != nil {
		p.Judge.Rules = http
	}
	return p, nil
}
