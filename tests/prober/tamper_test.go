// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTamperNames(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range tamperings() {
		if seen[a.name] || a.run == nil || strings.TrimSpace(a.name) != a.name {
			t.Errorf("attempt %q", a.name)
		}
		seen[a.name] = true
	}
}

func TestTamperUsage(t *testing.T) {
	for _, args := range [][]string{
		{"tamper"},
		{"tamper", "--to", "192.0.2.1:7", "--maps", "1,x"},
		{"tamper", "--to", "192.0.2.1:7", "--attempt", "nonsense"},
	} {
		var stdout, stderr bytes.Buffer
		if status := run(args, &stdout, &stderr); status != 2 || stderr.Len() == 0 {
			t.Errorf("%q: status %d, stderr %q", args, status, &stderr)
		}
	}
}

// What is given to a process of its own is read there as it was here.
func TestIDList(t *testing.T) {
	var one, two idList
	if err := one.Set("1,20,300"); err != nil {
		t.Fatal(err)
	}
	if err := two.Set(one.String()); err != nil || !slices.Equal(one, two) {
		t.Errorf("%v became %v, %v", one, two, err)
	}
}

// Every attempt has a result, in the order of the table.
func TestTamperResults(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if status := run([]string{"tamper", "--to", "192.0.2.1:7", "--only", "object: "}, &stdout, &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, &stderr)
	}
	var r struct {
		OK   bool
		Data struct {
			Attempts []struct {
				Name string
				OK   bool
			}
		}
	}
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if !r.OK || len(r.Data.Attempts) != 9 || r.Data.Attempts[0].Name != "object: take program" {
		t.Errorf("result is %+v", r)
	}
	for _, a := range r.Data.Attempts {
		if a.OK {
			t.Errorf("%s succeeded without an object", a.Name)
		}
	}
}

func TestAnyOf(t *testing.T) {
	refused := []error{failed("nothing"), unix.EPERM, failed("nothing")}
	if err := anyOf(refused, func(err error) error { return err }); !errors.Is(err, unix.EPERM) {
		t.Errorf("the reason is %v", err)
	}
	if err := anyOf(append(refused, nil), func(err error) error { return err }); err != nil {
		t.Errorf("one succeeded: %v", err)
	}
	if err := anyOf(nil, func(error) error { return nil }); err == nil {
		t.Error("nothing succeeded")
	}
	for errno, want := range map[string]error{"ENOBUFS": unix.ENOBUFS, "": nil} {
		if err := errors.Unwrap(&farError{&result{Errno: errno}}); err != want {
			t.Errorf("%q is %v", errno, err)
		}
	}
}
