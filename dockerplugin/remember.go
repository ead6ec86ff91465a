// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// What a network is, the kernel forgets with the machine's next start, and Docker does not say while it starts itself,
// when it wants endpoints for the containers that it starts by itself. So there is a file for each network, with what
// its device's alias has. A network does not change: a file is right, or not there.
type memory string // directory

func (m memory) path(id string) string { return filepath.Join(string(m), id) }

// remember writes a network down, unless it has.
func (m memory) remember(n *network) error {
	text, err := n.alias()
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(m.path(n.id)); err == nil && string(old) == text+"\n" {
		return nil
	}
	if err := os.MkdirAll(string(m), 0o755); err != nil {
		return fmt.Errorf("remember network %s: %w", short(n.id), err)
	}
	// Half of a file is none: its name is no id.
	half := m.path("." + n.id)
	err = os.WriteFile(half, []byte(text+"\n"), 0o644)
	if err == nil {
		err = os.Rename(half, m.path(n.id))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remember network %s: %w", short(n.id), err), ignoreMissing(os.Remove(half)))
	}
	return nil
}

// recall returns a network that was written down, nil if it was not.
func (m memory) recall(id string) (*network, error) {
	b, err := os.ReadFile(m.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("recall network %s: %w", short(id), err)
	}
	text := strings.TrimSuffix(string(b), "\n")
	if !isAlias(aliasNetwork, text) {
		return nil, fmt.Errorf("recall network %s: %s has %q", short(id), m.path(id), text)
	}
	n, err := networkOfAlias(text)
	if err == nil && n.id != id {
		err = fmt.Errorf("%s has another, %s", m.path(id), short(n.id))
	}
	if err != nil {
		return nil, fmt.Errorf("recall network %s: %w", short(id), err)
	}
	return n, nil
}

func (m memory) forget(id string) error {
	if !isID(id) {
		return nil
	}
	if err := ignoreMissing(os.Remove(m.path(id))); err != nil {
		return fmt.Errorf("forget network %s: %w", short(id), err)
	}
	return nil
}

// all lists the networks that are written down.
func (m memory) all() (ids []string, err error) {
	entries, err := os.ReadDir(string(m))
	if err := ignoreMissing(err); err != nil {
		return nil, fmt.Errorf("list remembered networks: %w", err)
	}
	for _, e := range entries {
		if isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
