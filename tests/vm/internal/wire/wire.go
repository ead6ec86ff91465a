// SPDX-License-Identifier: Apache-2.0

// Package wire is what the host and the program that is PID 1 of a test VM
// say to each other: a Job in the initramfs, and a stream of Events, one JSON
// object a line, on the second serial port.
package wire

import "time"

const (
	// JobPath is where the guest finds its Job.
	JobPath = "/vm/job.json"
	// GuestPath is the guest's own program.
	GuestPath = "/vm/guest"
	// EventPort is the guest's end of the event stream.
	EventPort = "/dev/ttyS1"
	// Path is where programs are looked up in the guest.
	Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Job is what the guest has to do.
type Job struct {
	Hostname string
	// Modules are paths of kernel modules, in the order to load them in.
	Modules  []string
	Commands []Command
}

// Command is one program to run, after the one before it has ended.
type Command struct {
	Args    []string
	Env     []string
	Dir     string
	Timeout time.Duration
}

// Kind says which fields of an Event are set.
type Kind string

const (
	// Boot is the first event: Uptime is set, and Setup.
	Boot Kind = "boot"
	// Output carries Data that Command wrote to stdout or stderr.
	Output Kind = "output"
	// Exit says how Command ended: Code, Elapsed and perhaps Err.
	Exit Kind = "exit"
	// Fatal says in Err why the guest cannot go on.
	Fatal Kind = "fatal"
	// Done is the last event of a guest that ran all commands.
	Done Kind = "done"
)

// Event is one line of the stream.
type Event struct {
	Kind    Kind
	Command int           `json:",omitempty"`
	Data    []byte        `json:",omitempty"`
	Code    int           `json:",omitempty"`
	Elapsed time.Duration `json:",omitempty"`
	// Uptime is the kernel's, when its first process started.
	Uptime time.Duration `json:",omitempty"`
	// Setup is how long mounts and modules took.
	Setup time.Duration `json:",omitempty"`
	Err   string        `json:",omitempty"`
}
