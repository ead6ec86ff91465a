// SPDX-License-Identifier: Apache-2.0

// Command helm does what `helm lint --strict` and `helm template` do to a chart without
// dependencies, with Helm's own packages. The whole of Helm has twice as much to build,
// and speaks to clusters and registries.
//
//	helm lint DIR [VALUES.yaml...]
//	helm template DIR [VALUES.yaml...]
//	helm notes DIR [VALUES.yaml...]
package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	release "helm.sh/helm/v4/pkg/release/v1/util"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The release that contrib/kubernetes/sidegate.yaml is.
const (
	name      = "sidegate"
	namespace = "kube-system"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "helm:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	if len(args) < 2 {
		return errors.New("usage: helm lint|template|notes DIR [VALUES.yaml...]")
	}
	values := map[string]any{}
	for _, file := range args[2:] {
		more, err := common.ReadValuesFile(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		values = loader.MergeMaps(values, more)
	}
	switch args[0] {
	case "lint":
		return check(args[1], values, stdout)
	case "template":
		return template(args[1], values, stdout)
	case "notes":
		files, err := render(args[1], values)
		fmt.Fprintln(stdout, notes(files))
		return err
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// check fails on warnings too.
func check(dir string, values map[string]any, stdout io.Writer) error {
	result := lint.RunAll(dir, values, namespace)
	for _, m := range result.Messages {
		fmt.Fprintln(stdout, m)
	}
	if result.HighestSeverity >= support.WarningSev {
		return fmt.Errorf("lint %s: there are warnings or errors", dir)
	}
	// Lint lets what templates require, and their own failures, pass.
	return template(dir, values, io.Discard)
}

func render(dir string, values map[string]any) (map[string]string, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, err
	}
	all, err := util.ToRenderValues(c, values,
		common.ReleaseOptions{Name: name, Namespace: namespace, Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

func template(dir string, values map[string]any, stdout io.Writer) error {
	files, err := render(dir, values)
	if err != nil {
		return err
	}
	maps.DeleteFunc(files, func(file, _ string) bool { return path.Base(file) == "NOTES.txt" })
	hooks, manifests, err := release.SortManifests(files, nil, release.InstallOrder)
	if err != nil {
		return err
	}
	if len(hooks) > 0 {
		return errors.New("the chart has hooks, which this does not print")
	}
	var all strings.Builder
	for _, m := range manifests {
		if err := strict(m); err != nil {
			return fmt.Errorf("%s: %s: %w", m.Name, m.Head.Kind, err)
		}
		fmt.Fprintf(&all, "---\n# Source: %s\n%s\n", m.Name, m.Content)
	}
	_, err = fmt.Fprintln(stdout, strings.TrimSpace(all.String()))
	return err
}

// strict tells whether Kubernetes would drop a field of the manifest, which it does
// silently if it does not know it.
func strict(m release.Manifest) error {
	kinds := map[string]any{
		"v1/ConfigMap":      &core.ConfigMap{},
		"v1/ServiceAccount": &core.ServiceAccount{},
		"apps/v1/DaemonSet": &apps.DaemonSet{},
		// A custom resource; its type is not in Kubernetes.
		"monitoring.coreos.com/v1/PodMonitor": &map[string]any{},
	}
	into := kinds[m.Head.Version+"/"+m.Head.Kind]
	if into == nil {
		return fmt.Errorf("%s is not known here", m.Head.Version)
	}
	return yaml.UnmarshalStrict([]byte(m.Content), into)
}

func notes(files map[string]string) string {
	for file, text := range files {
		if path.Base(file) == "NOTES.txt" {
			return text
		}
	}
	return ""
}
