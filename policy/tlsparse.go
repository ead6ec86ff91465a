// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

func (d *decoder) tls(path string, n ast.Node) *TLS {
	out := &TLS{}
	f, ok := d.object(path, n, "mode", "port", "require", "plaintext", "other", "fronting", "sni", "http", "headers")
	if !ok {
		return out
	}
	out.Mode = d.tlsMode(path+".mode", f["mode"])
	if n := f["port"]; n != nil {
		out.Port = d.port(path+".port", n)
	}
	out.Require = TLSRequire(d.oneOf(path+".require", f["require"], tlsRequireWords()))
	out.Plaintext = d.verdict(path+".plaintext", f["plaintext"])
	out.Other = d.verdict(path+".other", f["other"])
	out.Fronting = d.verdict(path+".fronting", f["fronting"])
	if n := f["sni"]; n != nil {
		out.SNI = d.sni(path+".sni", n)
	}
	if n := f["http"]; n != nil {
		out.HTTP = d.http(path+".http", n)
	}
	out.Headers = d.texts(path+".headers", f["headers"], "the name of a header", "no header at all", "list some, or leave it out for none")
	return out
}

// tlsMode reads its words, one of which is false to some YAML readers, so that this is taken too.
func (d *decoder) tlsMode(path string, n ast.Node) TLSMode {
	if n != nil {
		tk := n.GetToken()
		scalar := n.Type() == ast.StringType || n.Type() == ast.BoolType
		quoted := tk.Type == token.SingleQuoteType || tk.Type == token.DoubleQuoteType
		if scalar && !quoted && (tk.Value == "off" || tk.Value == "false") {
			return TLSOff
		}
	}
	return TLSMode(d.oneOf(path, n, tlsModeWords()))
}

func (d *decoder) verdict(path string, n ast.Node) Verdict {
	return Verdict(d.oneOf(path, n, verdictWords()))
}

// texts reads a list of text. An empty one would match nothing, while none at all matches everything: that must not look
// alike.
func (d *decoder) texts(path string, n ast.Node, want, what, instead string) (out []string) {
	d.list(path, n, func(path string, n ast.Node) {
		s, _ := d.str(path, n, want)
		out = append(out, s)
	})
	d.notEmpty(path, n, what, instead)
	return out
}

const (
	wantHost = "a name such as api.example, or \"*.example\" for those below one"
	leaveOut = "list some, or leave it out for all of them"
)

func (d *decoder) sni(path string, n ast.Node) *SNI {
	out := &SNI{}
	f, ok := d.object(path, n, "default", "absent", "rules")
	if !ok {
		return out
	}
	out.Default = d.verdict(path+".default", f["default"])
	out.Absent = d.verdict(path+".absent", f["absent"])
	d.list(path+".rules", f["rules"], func(path string, n ast.Node) {
		var r SNIRule
		if f, ok := d.object(path, n, "name", "action", "hosts"); ok {
			r.Name, r.Action = d.ruleName(path, f), d.verdict(path+".action", f["action"])
			r.Hosts = d.texts(path+".hosts", f["hosts"], wantHost, "no name at all", "list some")
		}
		out.Rules = append(out.Rules, r)
	})
	return out
}

func (d *decoder) ruleName(path string, f fields) (name string) {
	if n := f["name"]; n != nil {
		name, _ = d.str(path+".name", n, "a name such as api")
	}
	return name
}

func (d *decoder) http(path string, n ast.Node) *HTTP {
	out := &HTTP{}
	f, ok := d.object(path, n, "default", "rules")
	if !ok {
		return out
	}
	out.Default = d.verdict(path+".default", f["default"])
	d.list(path+".rules", f["rules"], func(path string, n ast.Node) {
		out.Rules = append(out.Rules, d.httpRule(path, n))
	})
	return out
}

func (d *decoder) httpRule(path string, n ast.Node) (r HTTPRule) {
	f, ok := d.object(path, n, "name", "action", "hosts", "methods", "path", "headers", "sni", "upgrades")
	if !ok {
		return r
	}
	r.Name, r.Action = d.ruleName(path, f), d.verdict(path+".action", f["action"])
	r.Hosts = d.texts(path+".hosts", f["hosts"], wantHost, "no host at all", leaveOut)
	r.Methods = d.texts(path+".methods", f["methods"], "a method such as GET", "no method at all", leaveOut)
	r.Headers = d.texts(path+".headers", f["headers"], "the name of a header", "no header at all", "list some, or leave it out")
	r.SNI = d.texts(path+".sni", f["sni"], wantHost, "no name at all", leaveOut)
	r.Upgrades = d.texts(path+".upgrades", f["upgrades"], "a protocol such as websocket", "no protocol at all", "list some, or leave it out for none")
	if n := f["path"]; n != nil {
		r.Path = d.httpPath(path+".path", n)
	}
	return r
}

func (d *decoder) httpPath(path string, n ast.Node) (out HTTPPath) {
	f, ok := d.object(path, n, "exact", "prefix", "regex")
	if !ok {
		return out
	}
	for _, kind := range []struct {
		name, want string
		to         *string
	}{
		{"exact", "a path such as /v1/users", &out.Exact},
		{"prefix", "the beginning of a path, such as /v1", &out.Prefix},
		{"regex", "a regular expression such as \"/v[0-9]+/.*\"", &out.Regex},
	} {
		n := f[kind.name]
		if n == nil {
			continue
		}
		s, ok := d.str(path+"."+kind.name, n, kind.want)
		if ok && s == "" {
			d.fault(nodePosition(n), path+"."+kind.name, "is empty: write %s, or leave path out for all of them", kind.want)
		}
		*kind.to = s
	}
	if len(f) == 0 {
		d.fault(nodePosition(n), path, "has no kind of match: write one of exact, prefix and regex")
	}
	return out
}
