// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/containerd/nri/pkg/api"

	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

// addKTLS adds the mount and the variables of package ktls to what a new container gets. One that cannot have all of it
// is an error, and a is then not to be used.
func addKTLS(c *config, a *api.ContainerAdjustment, told *api.Container) error {
	var destinations []string
	for _, m := range told.GetMounts() {
		destinations = append(destinations, m.GetDestination())
	}
	has, err := ktls.Has(told.GetEnv(), destinations)
	if err == nil && !has {
		err = ktls.CheckHost(c.KTLSDir, hostRoot)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", policy.KeyKTLS, err)
	}
	if has {
		return nil
	}
	a.AddMount(&api.Mount{Destination: ktls.Dir, Type: ktls.MountType, Source: c.KTLSDir, Options: ktls.MountOptions()})
	for _, v := range ktls.Variables() {
		a.AddEnv(v.Name, v.Value)
	}
	return nil
}

// checkKTLS tells whether a container that was created without this plugin has what it asks for.
func checkKTLS(what container) error {
	if what.ktls != policy.KTLSMount {
		return nil
	}
	has, err := ktls.Mounted(what.pid)
	if err == nil && !has {
		err = fmt.Errorf("nothing is mounted at %s, since it was created while this plugin was away: create it again", ktls.Dir)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", policy.KeyKTLS, err)
	}
	return nil
}
