// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// Limits that only a failure reaches, far more than anything takes on a busy machine.
const (
	logTime     = 15 * time.Second // for a log to tell what has happened
	attemptTime = 3 * time.Minute
)

// replyTime is how long a datagram's answer may take. All of the lab is on this machine.
const replyTime = "300ms"

// A run makes one attempt.
type runFunc = func(context.Context, *scene) (finding, error)

// attempts returns all attempts in the order in which they are made: those that disturb the pod come last.
func attempts() []attempt {
	var all []attempt
	for _, group := range [][]attempt{
		proxied(),
		inbound(),
		unusualTCP(),
		otherProtocols(),
		belowSockets(),
		sidecarPorts(),
		strangers(),
		sidecarDown(),
	} {
		all = append(all, group...)
	}
	return all
}

// byFamily makes an attempt for each address family.
func byFamily(name string, k kind, how string, run func(v6 bool) runFunc) []attempt {
	return []attempt{
		{name + ", IPv4", k, how, run(false)},
		{name + ", IPv6", k, how, run(true)},
	}
}
