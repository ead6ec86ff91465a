// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"time"
)

// Patience is the limit of what has to come. It is far more than anything takes, also in an emulated machine on a busy one: only a
// failure takes so long.
const Patience = 30 * time.Second

// WaitFor polls cond until it is true, returns an error, or limit has passed. what says what is waited for.
func WaitFor(limit time.Duration, what string, cond func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s: nothing after %s", what, limit)
		}
		time.Sleep(pause)
	}
}
