// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sidegate/tests/vm"
)

// vmLimit is how long the cases of a VM may take, which has no hardware to help it.
const vmLimit = 20 * time.Minute

// runInVM tries the named cases in a VM with one of Debian's kernels, in the same set-ups.
func runInVM(ctx context.Context, e *env, names []string) (*report, error) {
	kernel, err := chooseKernel(e.vm)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "escape-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	const bin = "/usr/libexec/sidegate"
	files := []vm.File{}
	for name, pkg := range map[string]string{
		"escape": "sidegate/tests/escape", "prober": "sidegate/tests/prober",
		"sidegate": "sidegate/cmd/sidegate", "sidegate-oci-hook": "sidegate/oci-hook",
	} {
		f := vm.File{Path: filepath.Join(bin, name), Host: filepath.Join(dir, name), Mode: 0o755}
		if err := vm.GoBuild(ctx, f.Host, pkg); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	var setups []string
	for _, s := range e.setups {
		setups = append(setups, s.name)
	}
	fmt.Fprintf(os.Stderr, "escape: %d cases that this kernel cannot make, in a VM with %s\n", len(names), kernel.Release)
	args := []string{
		"-quiet", "-vm", "", "-json", "/dev/stdout", "-bin", bin, "-prober", filepath.Join(bin, "prober"),
		"-setup", strings.Join(setups, ","), "-only", "^(" + strings.Join(names, "|") + ")$",
	}
	if e.log != nil {
		args = append(args, "-v")
	}
	res, err := vm.RunLab(ctx, kernel, vm.LabConfig{
		Program: vm.File{Path: filepath.Join(bin, "escape"), Host: filepath.Join(dir, "escape"), Mode: 0o755},
		Args:    args, Files: files, Timeout: vmLimit, Log: e.log,
	})
	if err != nil {
		return nil, err
	}
	said := res.Commands[0]
	begin := bytes.Index(said.Output, []byte("{\n"))
	if said.Code != 0 || begin < 0 {
		return nil, fmt.Errorf("ended with code %d %s: %s", said.Code, said.Err, said.Output)
	}
	r := new(report)
	if err := json.NewDecoder(bytes.NewReader(said.Output[begin:])).Decode(r); err != nil {
		return nil, errors.Join(err, fmt.Errorf("its output: %s", said.Output))
	}
	return r, nil
}

// chooseKernel finds the one of this release, or the newest.
func chooseKernel(release string) (vm.Kernel, error) {
	all, err := vm.Kernels()
	if err != nil {
		return vm.Kernel{}, err
	}
	if release == "newest" {
		return all[len(all)-1], nil
	}
	return vm.Find(all, release)
}
