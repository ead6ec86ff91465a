// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/invopop/jsonschema"

	"sidegate/policy"
)

const pageFile = "../docs/policy.md"

// made returns the schema. The test then runs where go generate does.
func made(t *testing.T) *jsonschema.Schema {
	t.Helper()
	t.Chdir("../..")
	s, err := schema(".")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPageCurrent(t *testing.T) {
	want, err := page(made(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(pageFile); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not current: run go generate ./policy (%v)", pageFile, err)
	}
}

// allPaths lists the paths of all fields that a schema has.
func allPaths(s *jsonschema.Schema) (paths []string) {
	for _, o := range objects(s) {
		for p := o.schema.Properties.Oldest(); p != nil; p = p.Next() {
			paths = append(paths, strings.TrimPrefix(o.paths[0]+"."+p.Key, "."))
		}
	}
	return paths
}

func TestFieldsExist(t *testing.T) {
	paths := allPaths(made(t))
	if len(paths) < 70 {
		t.Errorf("only %d fields", len(paths))
	}
	for _, path := range slices.Sorted(maps.Keys(fieldsOf())) {
		if !slices.Contains(paths, path) {
			t.Errorf("examples.go has %s, which is no field", path)
		}
	}
}

// Without a text, an example, or what holds without it, a field makes no page.
func TestFieldsAreComplete(t *testing.T) {
	s := made(t)
	mode := prop(s.Definitions["Spec"], "mode")
	text := mode.Description
	mode.Description = ""
	if _, err := page(s); err == nil || !strings.Contains(err.Error(), "spec.mode: it has no text") {
		t.Errorf("a page with a field that has no text: %v", err)
	}
	mode.Description = text
	s.Definitions["Spec"].Properties.Set("more", &jsonschema.Schema{Type: "string", Description: "More."})
	if _, err := page(s); err == nil || !strings.Contains(err.Error(), "spec.more: it has no example") {
		t.Errorf("a page with a field that has no example: %v", err)
	}
}

// document makes a policy of an example.
func document(t *testing.T, path, example string) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := yaml.Unmarshal([]byte(example), &doc); err != nil {
		t.Fatalf("example of %s: %v", path, err)
	}
	for key, value := range map[string]any{
		"apiVersion": policy.APIVersion, "kind": policy.Kind, "metadata": map[string]any{"name": "web"}, "spec": map[string]any{},
	} {
		if doc[key] == nil {
			doc[key] = value
		}
	}
	return doc
}

// whole is the text of an example with what it leaves out.
func whole(example string) string {
	text := example + "\n"
	for _, line := range []string{"apiVersion: " + policy.APIVersion, "kind: " + policy.Kind, "metadata: {name: web}", "spec: {}"} {
		key, _, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(text, key+":") {
			text += line + "\n"
		}
	}
	return text
}

// owner returns the mapping that has the last part of path, in the first item of each list, or nil.
func owner(doc map[string]any, path string) (map[string]any, string) {
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		name, isList := strings.CutSuffix(part, "[]")
		value := doc[name]
		if isList {
			items, _ := value.([]any)
			if len(items) == 0 {
				return nil, ""
			}
			value = items[0]
		}
		var ok bool
		if doc, ok = value.(map[string]any); !ok {
			return nil, ""
		}
	}
	return doc, parts[len(parts)-1]
}

// An example is read, also by the schema, and has the field that it is an example of.
func TestExamples(t *testing.T) {
	_, s := compiled(t)
	for path, f := range fieldsOf() {
		text := whole(f.example)
		if _, err := policy.Parse(path, []byte(text)); err != nil {
			t.Errorf("example of %s: %v\n%s", path, err, text)
			continue
		}
		if err := s.Validate(documents(t, []byte(text))[0]); err != nil {
			t.Errorf("example of %s: %v", path, err)
		}
		of, name := owner(document(t, path, f.example), path)
		if _, there := of[name]; !there {
			t.Errorf("example of %s does not have it:\n%s", path, f.example)
		}
	}
}

// A policy in which a default is written means what one does in which it is not.
func TestDefaults(t *testing.T) {
	tested := 0
	for path, f := range fieldsOf() {
		if f.value == "" {
			continue
		}
		var meant []*policy.Compiled
		for _, write := range []bool{true, false} {
			doc := document(t, path, f.example)
			of, name := owner(doc, path)
			delete(of, name)
			if write {
				var value any
				if err := yaml.Unmarshal([]byte(f.value), &value); err != nil {
					t.Fatal(err)
				}
				of[name] = value
			}
			text, err := yaml.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			ps, err := policy.Parse(path, text)
			if err != nil {
				t.Errorf("%s: %v\n%s", path, err, text)
				break
			}
			c, err := ps[0].Compile()
			if err != nil {
				t.Fatal(err)
			}
			meant = append(meant, c)
		}
		if len(meant) == 2 && !reflect.DeepEqual(meant[0], meant[1]) {
			t.Errorf("%s: %s is not the default:\n%+v\n%+v", path, f.value, meant[0], meant[1])
		}
		tested++
	}
	if tested < 10 {
		t.Errorf("only %d defaults", tested)
	}
}
