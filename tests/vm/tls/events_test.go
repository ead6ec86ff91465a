// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package tls

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// event is what the tests look at of a line that the relay writes.
type event struct {
	Kind, From, Process, SNI, Version, Suite, Rule, Reason string
	ClientKeys, ServerKeys                                 bool
	ClientBytes, ServerBytes                               int64
	HTTP                                                   *struct {
		Kind, Protocol, Method, Host, Path, Rule string
		Status                                   int
		Headers                                  []struct{ Name, Value string }
	}
}

func (e event) String() string {
	b, _ := json.Marshal(e)
	return string(b)
}

func readEvents(t *testing.T) []event {
	t.Helper()
	b, err := os.ReadFile(eventsPath)
	must(t, err)
	var all []event
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			break // it is being written
		}
		all = append(all, e)
	}
	return all
}

// eventsSince returns those from the nth on, up to the end of as many connections.
func eventsSince(t *testing.T, n, connections int) []event {
	t.Helper()
	var list []event
	must(t, waitFor(fmt.Sprintf("the end of %d connections", connections), func() bool {
		list = readEvents(t)[n:]
		ends := 0
		for _, e := range list {
			if e.Kind == "end" {
				ends++
			}
		}
		return ends >= connections
	}))
	return list
}

// find returns the first event of a kind, of http the first of a kind below, such as http/request.
func find(list []event, kind string) *event {
	kind, inner, _ := strings.Cut(kind, "/")
	for i, e := range list {
		if e.Kind == kind && (inner == "" || e.HTTP != nil && e.HTTP.Kind == inner) {
			return &list[i]
		}
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
