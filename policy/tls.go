// SPDX-License-Identifier: Apache-2.0

package policy

import "fmt"

// DefaultTLS is the relay's port where a policy names none. Istio's images use many between 15000 and 15090, and 15443 at
// its gateways; this is none of them, nor one of Linkerd's, Consul's or Kuma's, and the kernel gives it to no client, whose
// ports begin at 32768.
const DefaultTLS = 15043

// Limits of spec.tls.
const (
	MaxTLSRules = 256      // rules about SNI and HTTP together
	MaxTLSHosts = 256      // entries of one list of hosts
	MaxTLSWords = 16       // methods, headers or upgrades of one rule
	MaxHeaders  = 32       // headers that are in events
	MaxTLSSize  = 64 << 10 // bytes that the relay is given
)

// TLS says what becomes of the connections on which apps speak TLS, on their way to the sidecar. An app's TLS library hands
// its keys to the kernel (kTLS), and Sidegate's relay, which is on the way, reads with them what the app sends before it
// goes on.
type TLS struct {
	// Mode says what the relay does: nothing, so that it is not there (off, the default), judge what it reads and pass
	// it on as it is (inspect), or give the sidecar the plaintext, and encrypt again what that sends on (deferred).
	Mode TLSMode `yaml:"mode,omitempty" json:"mode,omitempty"`
	// Port is where the relay listens on the pod's loopback; 15043 by default. No container may bind it.
	Port uint16 `yaml:"port,omitempty" json:"port,omitempty"`
	// Require says what becomes of connections whose keys do not come: they end (ktls), or are judged by their SNI alone
	// (none). The default is ktls if http is there or the mode is deferred, which cannot be without keys, and none else.
	Require TLSRequire `yaml:"require,omitempty" json:"require,omitempty"`
	// Plaintext is what happens to connections on which the app speaks no TLS; allow by default. What they say is for the
	// sidecar to judge.
	Plaintext Verdict `yaml:"plaintext,omitempty" json:"plaintext,omitempty"`
	// Other is what happens to what is not HTTP inside TLS. No rule of http matches it, so the default is that of http;
	// it is allow if http is not there.
	Other Verdict `yaml:"other,omitempty" json:"other,omitempty"`
	// Fronting is what happens to requests for another host than the SNI of their connection; deny by default. Clients
	// that ask one server for several hosts on one connection, as browsers do, need allow.
	Fronting Verdict `yaml:"fronting,omitempty" json:"fronting,omitempty"`
	// SNI judges connections by the server name that the client sends in the clear. All are allowed if it is not there.
	SNI *SNI `yaml:"sni,omitempty" json:"sni,omitempty"`
	// HTTP judges requests. None is judged if it is not there.
	HTTP *HTTP `yaml:"http,omitempty" json:"http,omitempty"`
	// Headers are those of requests whose values are in events, at most 32. Credentials never are: authorization,
	// proxy-authorization, cookie and set-cookie are errors.
	Headers []string `yaml:"headers,omitempty" json:"headers,omitempty"`
}

// SNI is the rules about server names. One that denies wins over those that allow.
type SNI struct {
	// Default is what happens to names that no rule matches. It has to be written.
	Default Verdict `yaml:"default" json:"default,omitempty"`
	// Absent is what happens to clients that send no name; deny by default, as there is none to judge.
	Absent Verdict `yaml:"absent,omitempty" json:"absent,omitempty"`
	// Rules are those about names; at most 256, with those of http.
	Rules []SNIRule `yaml:"rules,omitempty" json:"rules,omitempty"`
}

// SNIRule allows or denies server names.
type SNIRule struct {
	// Name is what events say, of which there is one in spec.tls: at most 63 of a-z 0-9 -.
	Name string `yaml:"name" json:"name"`
	// Action is what happens to these names.
	Action Verdict `yaml:"action" json:"action,omitempty"`
	// Hosts are names such as api.example, or *.example for all names below example; at most 256.
	Hosts []string `yaml:"hosts" json:"hosts"`
}

// HTTP is the rules about requests. One that denies wins over those that allow, of which the first one that matches is in
// events. CONNECT and upgrades, after which bytes are no longer HTTP, are denied unless a rule names them.
type HTTP struct {
	// Default is what happens to requests that no rule matches. It has to be written.
	Default Verdict `yaml:"default" json:"default,omitempty"`
	// Rules are those about requests; at most 256, with those of sni.
	Rules []HTTPRule `yaml:"rules,omitempty" json:"rules,omitempty"`
}

// HTTPRule allows or denies the requests that all of its fields match. What is not there matches all.
type HTTPRule struct {
	// Name is what events say, of which there is one in spec.tls: at most 63 of a-z 0-9 -.
	Name string `yaml:"name" json:"name"`
	// Action is what happens to these requests.
	Action Verdict `yaml:"action" json:"action,omitempty"`
	// Hosts are names, such as api.example or *.example for all names below example, and addresses; at most 256.
	Hosts []string `yaml:"hosts,omitempty" json:"hosts,omitempty"`
	// Methods are words such as GET; at most 16. CONNECT is allowed only where it is named.
	Methods []string `yaml:"methods,omitempty" json:"methods,omitempty"`
	// Path is about the path, decoded and without its query.
	Path HTTPPath `yaml:"path,omitempty" json:"path,omitzero"`
	// Headers are names of headers that all have to be there; at most 16.
	Headers []string `yaml:"headers,omitempty" json:"headers,omitempty"`
	// SNI are server names, as in hosts, one of which the connection has to have; at most 256.
	SNI []string `yaml:"sni,omitempty" json:"sni,omitempty"`
	// Upgrades are protocols to upgrade to that the rule allows, such as websocket; at most 16.
	Upgrades []string `yaml:"upgrades,omitempty" json:"upgrades,omitempty"`
}

// HTTPPath is one of: a path, what paths begin with, or an expression.
type HTTPPath struct {
	// Exact is the path itself; "*" is that of OPTIONS *.
	Exact string `yaml:"exact,omitempty" json:"exact,omitempty"`
	// Prefix is whole segments that the path begins with: /v1 matches /v1 and /v1/x, but not /v10.
	Prefix string `yaml:"prefix,omitempty" json:"prefix,omitempty"`
	// Regex is a regular expression of the whole path, as RE2 has them; at most 1024 bytes.
	Regex string `yaml:"regex,omitempty" json:"regex,omitempty"`
}

// TLSMode is what the relay does.
type TLSMode uint8

// The modes; the default is TLSOff.
const (
	TLSOff TLSMode = iota
	TLSInspect
	TLSDeferred
)

// TLSRequire is what a connection has to have. The zero value stands for the default, which depends on other fields, and
// does not occur in [TLSRules].
type TLSRequire uint8

// RequireKTLS ends connections whose keys do not come, RequireNone judges them by their SNI alone.
const (
	RequireUnset TLSRequire = iota
	RequireKTLS
	RequireNone
)

// Verdict is what happens to what TLS has in it. The zero value stands for the default, which is not the same for all
// fields; where there is none it is an error. It does not occur in [TLSRules].
type Verdict uint8

// The verdicts.
const (
	VerdictUnset Verdict = iota
	VerdictAllow
	VerdictDeny
)

func tlsModeWords() []string    { return []string{"off", "inspect", "deferred"} }
func tlsRequireWords() []string { return []string{"", "ktls", "none"} }
func verdictWords() []string    { return []string{"", "allow", "deny"} }

// fromWord is the other way of word.
func fromWord(words []string, text []byte) (uint8, error) {
	for i, w := range words {
		if w != "" && w == string(text) {
			return uint8(i), nil
		}
	}
	return 0, fmt.Errorf("%s is not known: write %s", show(string(text)), or(written(words)))
}

// written are the words that can be written.
func written(words []string) []string {
	if words[0] == "" {
		return words[1:]
	}
	return words
}

// String gives the word that is written in a policy.
func (m TLSMode) String() string { return word(tlsModeWords(), uint8(m)) }

// MarshalText writes what String gives.
func (m TLSMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (m *TLSMode) UnmarshalText(text []byte) error {
	i, err := fromWord(tlsModeWords(), text)
	*m = TLSMode(i)
	return err
}

// String gives the word that is written in a policy.
func (r TLSRequire) String() string { return word(tlsRequireWords(), uint8(r)) }

// MarshalText writes what String gives.
func (r TLSRequire) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *TLSRequire) UnmarshalText(text []byte) error {
	i, err := fromWord(tlsRequireWords(), text)
	*r = TLSRequire(i)
	return err
}

// String gives the word that is written in a policy.
func (v Verdict) String() string { return word(verdictWords(), uint8(v)) }

// MarshalText writes what String gives.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (v *Verdict) UnmarshalText(text []byte) error {
	i, err := fromWord(verdictWords(), text)
	*v = Verdict(i)
	return err
}
