// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is where the figures are from.
type machine struct {
	Kernel string  `json:"kernel"`
	CPUs   int     `json:"cpus"`
	Model  string  `json:"model"`
	Load   float64 `json:"load"` // one-minute average before the first measurement
	Date   string  `json:"date"`
}

func thisMachine() (machine, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return machine{}, os.NewSyscallError("uname", err)
	}
	m := machine{Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateTime)}
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	if _, err := fmt.Sscan(string(b), &m.Load); err != nil {
		return m, fmt.Errorf("read load %q: %w", b, err)
	}
	b, err = os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	m.Model = cpuModel(string(b))
	return m, nil
}

// cpuModel finds the model's name in a listing of /proc/cpuinfo; some architectures have none.
func cpuModel(listing string) string {
	for line := range strings.Lines(listing) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func (m machine) String() string {
	return fmt.Sprintf("Linux %s, %d CPUs (%s), load %.2f, %s UTC", m.Kernel, m.CPUs, m.Model, m.Load, m.Date)
}
