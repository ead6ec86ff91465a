// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The labels or annotations that Sidegate reads. Every other key with their prefix is an error.
const (
	KeyRole   = "sidegate/role"   // app, sidecar, init or none
	KeyPolicy = "sidegate/policy" // name of a policy
	KeyPod    = "sidegate/pod"    // groups containers where the runtime has no pods
	KeyWait   = "sidegate/wait"   // how long an app waits for its sidecar, as a Go duration
	KeyKTLS   = "sidegate/ktls"   // mount or off: how the container's TLS libraries opt in to kTLS
)

const keyPrefix = "sidegate/"

// MaxWait is the longest sidegate/wait.
const MaxWait = 10 * time.Minute

func keys() []string { return []string{KeyRole, KeyPolicy, KeyPod, KeyWait, KeyKTLS} }

// KTLS is how a container's TLS libraries are told to hand their keys to the kernel, without which a TLS relay cannot
// read what they send.
type KTLS uint8

// The ways.
const (
	KTLSUnset KTLS = iota // not said: as KTLSOff
	KTLSMount             // the container gets configuration of OpenSSL and GnuTLS, read-only, and the variables that name it
	KTLSOff               // the container is left as it is, whatever its pod says
)

func ktlsWords() []string { return []string{"", "mount", "off"} }

// String gives the word that is written in a label, empty for KTLSUnset.
func (k KTLS) String() string { return word(ktlsWords(), uint8(k)) }

// parseKTLS reads a way. The empty string is not one.
func parseKTLS(s string) (KTLS, error) {
	words := ktlsWords()
	if i := slices.Index(words, s); i > 0 {
		return KTLS(i), nil
	}
	return KTLSUnset, fmt.Errorf("%s is no way to opt in to kTLS: write mount for the configuration that Sidegate has, or off", show(s))
}

// Request is what one container asks for by its labels or annotations. The zero value asks for nothing.
type Request struct {
	Role    Role          // RoleUnset if not said: see RoleOf and Roles
	Policy  string        // empty if not said
	Pod     string        // empty if not said
	Wait    time.Duration // zero: do not wait
	KTLS    KTLS          // KTLSUnset if not said
	Managed bool          // any sidegate/ key is there
}

// ParseRequest reads the keys that start with "sidegate/" and ignores all others.
// An error lists everything that is wrong, each with the key, the value and what to write instead.
func ParseRequest(annotations map[string]string) (Request, error) {
	var r Request
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, keyPrefix) {
			continue
		}
		r.Managed = true
		value := annotations[key]
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
		}
		switch key {
		case KeyRole:
			role, err := ParseRole(value)
			if err != nil {
				bad("%w", err)
			}
			r.Role = role
		case KeyPolicy:
			if msg := dnsLabelProblem(value); msg != "" {
				bad("%s", msg)
			}
			r.Policy = value
		case KeyPod:
			if msg := podNameProblem(value); msg != "" {
				bad("%s", msg)
			}
			r.Pod = value
		case KeyWait:
			d, err := time.ParseDuration(value)
			switch {
			case err != nil:
				bad("%s is not a duration: write a number and a unit, such as 500ms, 30s or 2m", show(value))
			case d < 0:
				bad("%s is negative: write 0s to %s", show(value), MaxWait)
			case d > MaxWait:
				bad("%s is too long: write at most 10m", show(value))
			}
			r.Wait = d
		case KeyKTLS:
			way, err := parseKTLS(value)
			if err != nil {
				bad("%w", err)
			}
			r.KTLS = way
		default:
			errs = append(errs, fmt.Errorf("%s is not known: did you mean %s? The keys are %s",
				show(key), nearest(key, keys()), or(keys())))
		}
	}
	if _, has := annotations[KeyWait]; has && (r.Role == RoleSidecar || r.Role == RoleNone) {
		errs = append(errs, fmt.Errorf("%s: %s has no meaning with %s=%s: write it on an app or init container, or leave it out",
			KeyWait, show(annotations[KeyWait]), KeyRole, r.Role))
	}
	if r.KTLS == KTLSMount && (r.Role == RoleSidecar || r.Role == RoleNone) {
		errs = append(errs, fmt.Errorf("%s: mount has no meaning with %s=%s, whose connections go through no TLS relay: write it on an app or init container, or leave it out",
			KeyKTLS, KeyRole, r.Role))
	}
	if len(errs) > 0 {
		return Request{}, errors.Join(errs...)
	}
	return r, nil
}
