// SPDX-License-Identifier: Apache-2.0

// Command schemagen writes the JSON Schema of policies, from their Go types, for editors, and the reference for people:
//
//	schemagen SCHEMA PAGE
//
// It runs in the directory of package policy, whose doc comments are the descriptions. A schema says less than the
// package checks: what is invalid to it is invalid, but not the other way round. The page is made of the schema, so that
// it has every field, and of an example of each.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"sidegate/policy"
	"sidegate/policy/httprule"
)

// Patterns of text. Only those of names are exact.
const (
	dnsLabel      = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
	containerName = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,252}$"
	labelKey      = "^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
	labelValue    = "^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
	cidr          = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"
	portRange     = "^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$"
	absolutePath  = "^/"
	abstractName  = "^@."
	hostPattern   = "^(\\*\\.)?[A-Za-z0-9_.:\\[\\]-]+$"
	sniPattern    = "^(\\*\\.)?[A-Za-z0-9_.-]+$"
	method        = "^[^a-z \\t]{1,32}$"
	token         = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
	credential    = "^([Aa]uthorization|[Pp]roxy-[Aa]uthorization|([Ss]et-)?[Cc]ookie)$"
	upgrade       = "^[^ \\t,]{1,64}$"
	httpPath      = "^(/|\\*$)"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: schemagen SCHEMA PAGE")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "schemagen:", err)
		os.Exit(1)
	}
}

func write(schemaFile, pageFile string) error {
	s, err := schema(".")
	if err != nil {
		return err
	}
	text, err := schemaText(s)
	if err != nil {
		return err
	}
	reference, err := page(s)
	if err != nil {
		return fmt.Errorf("write the reference: %w", err)
	}
	for file, b := range map[string][]byte{schemaFile: text, pageFile: reference} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func schemaText(s *jsonschema.Schema) ([]byte, error) {
	text, err := json.MarshalIndent(s, "", "  ")
	return append(text, '\n'), err
}

// schema returns the schema; the sources of package policy are in dir, which must be relative and without "..".
func schema(dir string) (*jsonschema.Schema, error) {
	r := &jsonschema.Reflector{Anonymous: true, ExpandedStruct: true, RequiredFromJSONSchemaTags: true, Mapper: mapped}
	if err := r.AddGoComments("sidegate/policy", dir); err != nil {
		return nil, err
	}
	comments := r.CommentMap
	r.CommentMap = nil
	r.LookupComment = func(t reflect.Type, field string) string { return description(comments, t, field) }
	s := r.Reflect(&policy.PodPolicy{})
	s.Title = "Sidegate's PodPolicy"
	constrain(s)
	return s, nil
}

// description makes one line of a doc comment, about the field as it is written in YAML.
func description(comments map[string]string, t reflect.Type, field string) string {
	key := t.PkgPath() + "." + t.Name()
	f, has := reflect.StructField{}, false
	if field != "" {
		key += "." + field
		f, has = t.FieldByName(field)
	}
	text := strings.Join(strings.Fields(comments[key]), " ")
	if rest, ok := strings.CutPrefix(text, field+" "); has && ok {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		text = name + " " + rest
	}
	return text
}

// mapped gives the types that are text or a number in YAML.
func mapped(t reflect.Type) *jsonschema.Schema {
	port := jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "65535"}
	switch t {
	case reflect.TypeFor[uint16]():
		return &port
	case reflect.TypeFor[policy.PortRange]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{&port, {Type: "string", Pattern: portRange}}}
	case reflect.TypeFor[policy.ICMPType]():
		return &jsonschema.Schema{Type: "integer", Minimum: "0", Maximum: "255"}
	case reflect.TypeFor[policy.Acceleration](): // on and off are booleans to some YAML readers
		return &jsonschema.Schema{Enum: []any{"auto", "on", "off", "node", true, false}}
	case reflect.TypeFor[policy.TLSMode](): // as off is
		return &jsonschema.Schema{Enum: []any{"off", "inspect", "deferred", false}}
	case reflect.TypeFor[policy.Operator]():
		return words(string(policy.OpIn), string(policy.OpNotIn), string(policy.OpExists), string(policy.OpDoesNotExist))
	}
	if t.Kind() != reflect.Uint8 || !t.Implements(reflect.TypeFor[fmt.Stringer]()) {
		return nil
	}
	var all []string
	for v := reflect.New(t).Elem(); ; v.SetUint(v.Uint() + 1) {
		word := v.Interface().(fmt.Stringer).String()
		if strings.HasPrefix(word, "invalid(") {
			return words(all...)
		}
		if word != "" {
			all = append(all, word)
		}
	}
}

func words(all ...string) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, w := range all {
		s.Enum = append(s.Enum, w)
	}
	return s
}

// constrain adds what the types do not say.
func constrain(s *jsonschema.Schema) {
	d := s.Definitions
	s.Required = []string{"apiVersion", "kind", "metadata", "spec"}
	prop(s, "apiVersion").Const = policy.APIVersion
	prop(s, "kind").Const = policy.Kind

	d["Metadata"].Required = []string{"name"}
	prop(d["Metadata"], "name").Pattern = dnsLabel
	labels(prop(d["Metadata"], "labels"))
	labels(prop(d["LabelSelector"], "matchLabels"))
	d["Requirement"].Required = []string{"key", "operator"}
	prop(d["Requirement"], "key").Pattern = labelKey
	prop(d["Requirement"], "values").Items.Pattern = labelValue
	d["ContainerRole"].Required = []string{"container", "role"}
	prop(d["ContainerRole"], "container").Pattern = containerName
	most(prop(d["Spec"], "sidecarPorts"), policy.MaxSidecarPorts)

	exclusion := d["Exclusion"]
	prop(exclusion, "cidr").Pattern = cidr
	filled(prop(exclusion, "ports"))
	most(prop(exclusion, "ports"), policy.MaxPorts)
	requireItem(prop(d["Exclude"], "egress"), "cidr")
	requireItem(prop(d["Exclude"], "ingress"), "ports")

	subject := d["SubjectRules"]
	subject.OneOf = oneOf("role", "container")
	subject.AnyOf = oneOf("egress", "ingress", "unix", "processes")
	prop(subject, "container").Pattern = containerName
	most(prop(subject, "processes"), policy.MaxProcesses)
	prop(subject, "processes").UniqueItems = true
	prop(subject, "processes").Items.Pattern = absolutePath

	for name, peers := range map[string]string{"EgressRule": "to", "IngressRule": "from"} {
		filled(prop(d[name], peers))
		traffic(d[name])
	}
	peer := d["Peer"]
	peer.OneOf = oneOf("role", "container", "cidr", "entity")
	peer.DependentRequired = map[string][]string{"except": {"cidr"}}
	prop(peer, "container").Pattern = containerName
	prop(peer, "cidr").Pattern = cidr
	prop(peer, "except").Items.Pattern = cidr

	most(prop(d["Unix"], "allow"), policy.MaxUnix)
	allow := d["UnixAllow"]
	allow.OneOf = oneOf("path", "abstract")
	prop(allow, "path").Pattern = absolutePath
	prop(allow, "abstract").Pattern = abstractName
	filled(prop(allow, "to"))

	tls(d)
}

// tls is what spec.tls has.
func tls(d jsonschema.Definitions) {
	texts := func(list *jsonschema.Schema, items uint64, pattern string) {
		filled(list)
		most(list, items)
		list.Items.Pattern = pattern
	}
	headers := prop(d["TLS"], "headers")
	texts(headers, policy.MaxHeaders, token)
	headers.Items.Not = &jsonschema.Schema{Pattern: credential}
	none := &jsonschema.Schema{Properties: jsonschema.NewProperties()}
	none.Properties.Set("mode", &jsonschema.Schema{Const: policy.TLSDeferred.String()})
	none.Properties.Set("require", &jsonschema.Schema{Const: policy.RequireNone.String()})
	none.Required = []string{"mode", "require"}
	d["TLS"].Not = none

	for _, name := range []string{"SNI", "HTTP"} {
		d[name].Required = []string{"default"}
		most(prop(d[name], "rules"), policy.MaxTLSRules)
		prop(d[name+"Rule"], "name").Pattern = dnsLabel
	}
	sni, http, path := d["SNIRule"], d["HTTPRule"], d["HTTPPath"]
	sni.Required = []string{"name", "action", "hosts"}
	texts(prop(sni, "hosts"), policy.MaxTLSHosts, sniPattern)
	http.Required = []string{"name", "action"}
	texts(prop(http, "hosts"), policy.MaxTLSHosts, hostPattern)
	texts(prop(http, "methods"), policy.MaxTLSWords, method)
	texts(prop(http, "headers"), policy.MaxTLSWords, token)
	texts(prop(http, "sni"), policy.MaxTLSHosts, sniPattern)
	texts(prop(http, "upgrades"), policy.MaxTLSWords, upgrade)
	path.OneOf = oneOf("exact", "prefix", "regex")
	prop(path, "exact").Pattern = httpPath
	prop(path, "prefix").Pattern = absolutePath
	one, longest := uint64(1), uint64(httprule.MaxRegex)
	prop(path, "regex").MinLength, prop(path, "regex").MaxLength = &one, &longest
}

// traffic has ports or types, as its protocol has.
func traffic(rule *jsonschema.Schema) {
	filled(prop(rule, "ports"))
	most(prop(rule, "ports"), policy.MaxPorts)
	filled(prop(rule, "types"))
	protocol := func(is ...string) *jsonschema.Schema {
		s := &jsonschema.Schema{Properties: jsonschema.NewProperties()}
		s.Properties.Set("protocol", words(is...))
		return s
	}
	icmp := protocol(policy.RuleICMP.String(), policy.RuleICMPv6.String())
	icmp.Required = []string{"protocol"}
	rule.DependentSchemas = map[string]*jsonschema.Schema{
		"types": icmp,
		"ports": protocol(policy.RuleTCP.String(), policy.RuleUDP.String(), policy.RuleSCTP.String(), policy.RuleAny.String()),
	}
}

// prop returns a property of an object.
func prop(s *jsonschema.Schema, name string) *jsonschema.Schema {
	p, has := s.Properties.Get(name)
	if !has {
		panic("there is no property " + name)
	}
	return p
}

func labels(s *jsonschema.Schema) {
	s.PropertyNames = &jsonschema.Schema{Pattern: labelKey}
	s.AdditionalProperties.Pattern = labelValue
}

func most(s *jsonschema.Schema, items uint64) { s.MaxItems = &items }

// filled lists are not empty.
func filled(s *jsonschema.Schema) {
	one := uint64(1)
	s.MinItems = &one
}

// oneOf lists schemas that each require a property.
func oneOf(names ...string) (out []*jsonschema.Schema) {
	for _, n := range names {
		out = append(out, &jsonschema.Schema{Required: []string{n}})
	}
	return out
}

// requireItem makes a property required in the items of a list.
func requireItem(list *jsonschema.Schema, name string) {
	list.Items = &jsonschema.Schema{AllOf: []*jsonschema.Schema{list.Items, {Required: []string{name}}}}
}
