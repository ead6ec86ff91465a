// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"sidegate/policy"
)

const file = "../contrib/schema/podpolicy.schema.json"

// compiled returns the schema's text, as it should be, and what validates by it. The test then runs where go generate does.
func compiled(t *testing.T) ([]byte, *jsonschema.Schema) {
	t.Helper()
	t.Chdir("../..")
	made, err := schema(".")
	if err != nil {
		t.Fatal(err)
	}
	text, err := schemaText(made)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("policy.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	return text, s
}

// documents reads YAML as an editor does.
func documents(t *testing.T, data []byte) (docs []any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	for {
		var v any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, doc)
	}
}

func TestCurrent(t *testing.T) {
	want, _ := compiled(t)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not current: run go generate ./policy (%v)", file, err)
	}
}

func TestValid(t *testing.T) {
	_, s := compiled(t)
	count := 0
	for _, pattern := range []string{"testdata/compile/*.yaml", "../contrib/examples/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, doc := range documents(t, data) {
				if err := s.Validate(doc); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				count++
			}
			if strings.Contains(pattern, "examples") && !bytes.Contains(data, []byte("# yaml-language-server: $schema=../schema/podpolicy.schema.json\n")) {
				t.Errorf("%s does not name its schema", name)
			}
		}
	}
	if count < 10 {
		t.Errorf("only %d documents", count)
	}
}

// What the schema refuses, Parse refuses as well.
func TestInvalid(t *testing.T) {
	_, s := compiled(t)
	const head = "apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: web}\n"
	for _, text := range []string{
		"{}",
		"[]",
		"apiVersion: sidegate/v2\nkind: PodPolicy\nmetadata: {name: web}\nspec: {}",
		"apiVersion: sidegate/v1alpha1\nkind: Pod\nmetadata: {name: web}\nspec: {}",
		"apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: Web}\nspec: {}",
		"apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {}\nspec: {}",
		"apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: web, labels: {a: b c}}\nspec: {}",
		"apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: web, labels: {-a: b}}\nspec: {}",
		head,
		head + "status: {}\nspec: {}",
		head + "spec: {mode: permissive}",
		head + "spec: {noTCP: allow}",
		head + "spec: {podSelector: {matchLabels: {a: 1}}}",
		head + "spec: {podSelector: {matchExpressions: [{key: a, operator: Gt}]}}",
		head + "spec: {podSelector: {matchExpressions: [{operator: Exists}]}}",
		head + "spec: {roles: [{container: a}]}",
		head + "spec: {roles: [{container: a, role: proxy}]}",
		head + "spec: {redirect: {outbound: 0}}",
		head + "spec: {redirect: {outbound: 65536}}",
		head + "spec: {redirect: {outbound: \"15001\"}}",
		head + "spec: {redirect: {getsockname: other}}",
		head + "spec: {sidecarPorts: [0]}",
		head + "spec: {sidecarPorts: [1-]}",
		head + "spec: {sidecarPorts: [1, 3, 5, 7, 9, 11, 13, 15, 17]}",
		head + "spec: {exclude: {egress: [{ports: [1]}]}}",
		head + "spec: {exclude: {ingress: [{cidr: 10.0.0.0/8}]}}",
		head + "spec: {exclude: {egress: [{cidr: example.com}]}}",
		head + "spec: {exclude: {egress: [{cidr: 10.0.0.0/8, protocol: icmp}]}}",
		head + "spec: {exclude: {egress: [{cidr: 10.0.0.0/8, ports: []}]}}",
		head + "spec: {rules: [{egress: []}]}",
		head + "spec: {rules: [{role: app}]}",
		head + "spec: {rules: [{role: app, container: web, egress: []}]}",
		head + "spec: {rules: [{role: app, egres: []}]}",
		head + "spec: {rules: [{container: -, egress: []}]}",
		head + "spec: {rules: [{role: app, egress: [{to: []}]}]}",
		head + "spec: {rules: [{role: app, egress: [{from: [{role: app}]}]}]}",
		head + "spec: {rules: [{role: app, ingress: [{to: [{role: app}]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{to: [{}]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{to: [{role: app, container: web}]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{to: [{role: app, except: [10.0.0.0/8]}]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{to: [{cidr: 10.0.0.1}]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{to: [{entity: internet}]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{protocol: http}]}]}",
		head + "spec: {rules: [{role: app, egress: [{protocol: icmp, ports: [8]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{types: [8]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{protocol: udp, types: [8]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{protocol: icmp, types: [256]}]}]}",
		head + "spec: {rules: [{role: app, egress: [{ports: []}]}]}",
		head + "spec: {rules: [{role: app, unix: {allow: [{}]}}]}",
		head + "spec: {rules: [{role: app, unix: {allow: [{path: /x, abstract: \"@x\"}]}}]}",
		head + "spec: {rules: [{role: app, unix: {allow: [{path: x}]}}]}",
		head + "spec: {rules: [{role: app, unix: {allow: [{abstract: x}]}}]}",
		head + "spec: {rules: [{role: app, unix: {allow: [{path: /x, type: raw}]}}]}",
		head + "spec: {rules: [{role: app, unix: {optional: \"yes\"}}]}",
		head + "spec: {rules: [{role: app, processes: [sh]}]}",
		head + "spec: {rules: [{role: app, processes: [/sh, /sh]}]}",
		head + "spec: {tls: inspect}",
		head + "spec: {tls: {mode: mitm}}",
		head + "spec: {tls: {mode: true}}",
		head + "spec: {tls: {port: 0}}",
		head + "spec: {tls: {mode: deferred, require: none}}",
		head + "spec: {tls: {hosts: any}}",
		head + "spec: {tls: {plaintext: \"\"}}",
		head + "spec: {tls: {headers: []}}",
		head + "spec: {tls: {headers: [a b]}}",
		head + "spec: {tls: {headers: [Set-Cookie]}}",
		head + "spec: {tls: {sni: {}}}",
		head + "spec: {tls: {sni: {default: deny, rules: [{name: a, action: allow}]}}}",
		head + "spec: {tls: {sni: {default: deny, rules: [{name: a, action: allow, hosts: []}]}}}",
		head + "spec: {tls: {sni: {default: deny, rules: [{name: a, action: allow, hosts: [\"*\"]}]}}}",
		head + "spec: {tls: {sni: {default: deny, rules: [{name: A, action: allow, hosts: [a.example]}]}}}",
		head + "spec: {tls: {http: {rules: []}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{action: deny}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: deny, methods: [get]}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: deny, path: {}}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: deny, path: {exact: /a, regex: /b}}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: deny, path: {prefix: a}}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: deny, path: {regex: \"\"}}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: deny, hosts: [https://a.example]}]}}}",
		head + "spec: {tls: {http: {default: deny, rules: [{name: a, action: allow, upgrades: [\"a, b\"]}]}}}",
	} {
		if err := s.Validate(documents(t, []byte(text))[0]); err == nil {
			t.Errorf("the schema takes %s", text)
		}
		if _, err := policy.Parse("f", []byte(text)); err == nil {
			t.Errorf("Parse takes %s", text)
		}
	}
}
