// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"sidegate/policy/httprule"
)

// ruleFunc makes Rules of a function.
type ruleFunc func(*httprule.Request) httprule.Decision

func (f ruleFunc) Decide(r *httprule.Request) httprule.Decision { return f(r) }

var (
	everything = ruleFunc(func(*httprule.Request) httprule.Decision {
		return httprule.Decision{Allow: true, Rule: "all", Tunnel: true}
	})
	noTunnels = ruleFunc(func(*httprule.Request) httprule.Decision { return httprule.Decision{Allow: true, Rule: "all"} })
)

// step is what one side sends.
type step struct {
	server bool
	text   string
}

func client(text string) step { return step{text: text} }
func server(text string) step { return step{true, text} }

// outcome is all that is seen of a Judge.
type outcome struct {
	ready  int64
	err    error
	events []Event // without durations
}

func (o outcome) reason() string {
	if d, ok := errors.AsType[*Denied](o.err); ok {
		return d.Reason
	}
	if m, ok := errors.AsType[*Malformed](o.err); ok {
		return m.Reason
	}
	return ""
}

// kinds lists the events in short.
func (o outcome) kinds() string {
	var list []string
	for _, e := range o.events {
		s := string(e.Kind)
		switch e.Kind {
		case KindRequest:
			s = fmt.Sprintf("%d %s %s%s", e.Stream, e.Method, e.Host, e.Path)
			if !e.Allowed {
				s += " denied"
			}
		case KindResponse:
			s = fmt.Sprintf("%d %d", e.Stream, e.Status)
		case KindOpaque, KindBlind, KindRefused:
			s += ": " + e.Reason
		}
		list = append(list, s)
	}
	return strings.Join(list, "\n")
}

// run feeds the steps, each cut in pieces.
func run(t testing.TB, c Config, steps []step, size func() int) outcome {
	t.Helper()
	var o outcome
	c.Events = func(e Event) {
		e.Duration = 0
		o.events = append(o.events, e)
	}
	j := New(c)
	feed := func(p []byte, take func([]byte) (int64, error)) {
		before := o.ready
		o.ready, o.err = take(p)
		for i := range p {
			p[i] = '!' // it may not be kept
		}
		if o.ready < before || o.ready > j.given {
			t.Fatalf("ready went from %d to %d of %d", before, o.ready, j.given)
		}
	}
	for _, s := range steps {
		take := j.Client
		if s.server {
			take = j.Server
		}
		for p := []byte(s.text); len(p) > 0; {
			n := min(size(), len(p))
			feed(p[:n:n], take)
			p = p[n:]
		}
	}
	j.End()
	j.End()
	if ready, err := j.Server([]byte("more")); ready != o.ready || err != o.err {
		t.Fatalf("after the end: %d, %v instead of %d, %v", ready, err, o.ready, o.err)
	}
	if ready, err := j.Client([]byte("more")); ready != o.ready || err != o.err {
		t.Fatalf("after the end: %d, %v instead of %d, %v", ready, err, o.ready, o.err)
	}
	last := &o.events[len(o.events)-1]
	if last.Kind != KindEnd || last.ClientBytes != o.ready {
		t.Fatalf("the last event is %+v", last)
	}
	last.HeldBytes = 0 // after an error, what comes is not counted
	return o
}

// runAll feeds the steps whole, byte by byte, and in pieces of random sizes, and wants the same outcome of all.
func runAll(t testing.TB, c Config, steps ...step) outcome {
	t.Helper()
	whole := run(t, c, steps, func() int { return 1 << 30 })
	for seed := range uint64(6) {
		size := func() int { return 1 }
		if seed > 0 {
			r := rand.New(rand.NewPCG(seed, 1))
			size = func() int { return 1 + r.IntN(1<<(2*seed)) }
		}
		o := run(t, c, steps, size)
		if o.ready != whole.ready || o.reason() != whole.reason() || !reflect.DeepEqual(o.events, whole.events) {
			t.Fatalf("cut with seed %d: %d ready, %v, %+v\nwhole: %d ready, %v, %+v", seed, o.ready, o.err, o.events, whole.ready, whole.err, whole.events)
		}
	}
	return whole
}

// parts splits a text before the mark, which is where the bytes that are ready end.
func parts(t testing.TB, text string) (all string, ready int64) {
	t.Helper()
	before, after, ok := strings.Cut(text, "§")
	if !ok || strings.Contains(after, "§") {
		t.Fatalf("there is not one § in %q", text)
	}
	return before + after, int64(len(before))
}

const ok1 = "GET /before HTTP/1.1\r\nHost: a.example\r\n\r\n"

// wantRefused wants a text to be refused at its mark.
func wantRefused(t *testing.T, c Config, text, reason string) {
	t.Helper()
	all, ready := parts(t, text)
	o := runAll(t, c, client(all))
	if o.reason() != reason || o.ready != ready {
		t.Errorf("%q\n%d bytes are ready, %q\nwant %d, %q", all, o.ready, o.reason(), ready, reason)
	}
	if o.err != nil && !strings.Contains(o.err.Error(), reason) {
		t.Errorf("the error is %q", o.err)
	}
	e := o.events[max(0, len(o.events)-2)]
	if e.Reason != reason || e.Allowed {
		t.Errorf("the last event but one is %+v", e)
	}
}

func TestSniff(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "",
		"P":                                  "",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r":     "",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":   protoHTTP2,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r":   protoHTTP1, // which refuses it
		"PRI":                                "",
		"PRIX":                               "",
		"GET":                                "",
		"GET ":                               protoHTTP1,
		"get\t":                              protoHTTP1,
		"GET\r":                              protoHTTP1,
		"\r\nGET ":                           protoHTTP1,
		" \t\x00\nGET ":                      protoHTTP1,
		"GETX /":                             "",
		"GETX / http/1.1\n":                  protoHTTP1,
		"GETX / HTTP/1.1\r\n":                protoHTTP1,
		"EHLO example\r\n":                   protoOther,
		"PING\r\n":                           protoOther,
		"a001 LOGIN":                         "",
		"a001 LOGIN\n":                       protoOther,
		"12:hello":                           protoOther,
		"\x16\x03\x01":                       protoOther,
		"\x00\x00\x00\x08\x04\xd2\x16\x2f":   protoOther,
		"SSH-2.0-x\r\n":                      protoOther,
		"*1\r\n$4\r\nPING\r\n":               protoOther,
		"\x80":                               protoOther,
		"X \n HTTP/1.1\n":                    protoOther,
		"X " + strings.Repeat("x", maxSniff): "neither HTTP nor clearly something else: the first line does not end",
		strings.Repeat(" ", maxSniff+1):      "neither HTTP nor clearly something else: the first line does not end",
	} {
		proto, problem := sniff([]byte(text))
		if proto+problem != want {
			t.Errorf("%.40q: %q %q", text, proto, problem)
		}
	}
}

func TestProtocols(t *testing.T) {
	h2 := preface + settings2
	for name, tt := range map[string]struct {
		c      Config
		text   string
		reason string
		kinds  string
	}{
		"http/1.1":                 {c: Config{ALPN: "http/1.1"}, text: ok1 + "§", kinds: "1 GET a.example/before\nend"},
		"http/1.0":                 {c: Config{ALPN: "http/1.0"}, text: ok1 + "§", kinds: "1 GET a.example/before\nend"},
		"http/1.1 by its bytes":    {text: ok1 + "§", kinds: "1 GET a.example/before\nend"},
		"h2":                       {c: Config{ALPN: "h2"}, text: h2 + "§", kinds: "end"},
		"h2 by its bytes":          {text: h2 + "§", kinds: "end"},
		"http/1.1 that is h2":      {c: Config{ALPN: "http/1.1"}, text: "§" + h2, reason: `the version is neither HTTP/1.1 nor HTTP/1.0: "HTTP/2.0"`, kinds: "refused: the version is neither HTTP/1.1 nor HTTP/1.0: \"HTTP/2.0\"\nend"},
		"h2 that is http/1.1":      {c: Config{ALPN: "h2"}, text: "§" + ok1, reason: "it does not begin with the preface of HTTP/2", kinds: "refused: it does not begin with the preface of HTTP/2\nend"},
		"http/1.1 after all":       {c: Config{ALPN: "mqtt"}, text: ok1 + "§", kinds: "1 GET a.example/before\nend"},
		"other":                    {text: "§\x10\x00\x00", reason: "it is not HTTP, and nothing else is allowed", kinds: "refused: it is not HTTP, and nothing else is allowed\nend"},
		"other is allowed":         {c: Config{Other: true, ALPN: "mqtt"}, text: "\x10\x00\x00§", kinds: "opaque: it is not HTTP\nend"},
		"other, and HTTP after it": {c: Config{Other: true}, text: "EHLO a\r\n" + ok1 + "§", kinds: "opaque: it is not HTTP\nend"},
		"other in http/1.1":        {c: Config{Other: true, ALPN: "http/1.1"}, text: "§\x10\x00\x00", reason: "a line has the control character 0x10", kinds: "refused: a line has the control character 0x10\nend"},
		"neither":                  {c: Config{Other: true}, text: "§X " + strings.Repeat("x", maxSniff), reason: "neither HTTP nor clearly something else: the first line does not end", kinds: "refused: neither HTTP nor clearly something else: the first line does not end\nend"},
		"not clear yet":            {c: Config{Other: true}, text: "§hello", kinds: "end"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.c.Rules, tt.c.AnyHost = noTunnels, true
			all, ready := parts(t, tt.text)
			o := runAll(t, tt.c, client(all))
			if o.ready != ready || o.reason() != tt.reason || o.kinds() != tt.kinds {
				t.Errorf("%d ready, %q\n%s\nwant %d", o.ready, o.reason(), o.kinds(), ready)
			}
		})
	}
}

func TestHostMustBeTheSNI(t *testing.T) {
	rules, err := httprule.Compile(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		sni, host, reason string
		any               bool
	}{
		{sni: "a.example", host: "a.example"},
		{sni: "A.Example", host: "a.EXAMPLE:8443"},
		{sni: "a.example", host: "b.example", reason: `it is for "b.example", and the connection for "a.example" (SNI)`},
		{sni: "a.example", host: "b.example", any: true},
		{sni: "a.example", host: "sub.a.example", reason: `it is for "sub.a.example", and the connection for "a.example" (SNI)`},
		{sni: "a.example", host: "10.0.0.1", reason: `it is for "10.0.0.1", and the connection for "a.example" (SNI)`},
		{host: "a.example", reason: `it is for "a.example", and the connection does not say for whom (no SNI)`},
		{host: "a.example", any: true},
		{host: "10.0.0.1"},
		{sni: "\u212a.example", host: "k.example", reason: "it is for \"k.example\", and the connection for \"K.example\" (SNI)"},
		{host: "[2001:DB8:0::1]:443"},
	} {
		c := Config{Rules: rules, SNI: tt.sni, AnyHost: tt.any}
		o := runAll(t, c, client("GET / HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n"))
		if o.reason() != tt.reason || o.events[0].Allowed != (tt.reason == "") {
			t.Errorf("SNI %q, host %q, any %t: %q", tt.sni, tt.host, tt.any, o.reason())
		}
		o = runAll(t, c, client(preface+settings2+request2(1, "GET", tt.host, "/")))
		if o.reason() != tt.reason {
			t.Errorf("HTTP/2, SNI %q, host %q, any %t: %q", tt.sni, tt.host, tt.any, o.reason())
		}
	}
	// The target of CONNECT is another server, but for extended CONNECT.
	c := Config{Rules: everything, SNI: "a.example"}
	for text, want := range map[string]string{
		"CONNECT b.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n":                                                           "",
		preface + settings2 + head2of(endHeaders, m, "CONNECT", a, "b.example:443"):                                           "",
		preface + settings2 + head2of(endHeaders, m, "CONNECT", ":protocol", "websocket", s, "https", a, "b.example", p, "/"): `it is for "b.example", and the connection for "a.example" (SNI)`,
		"GET / HTTP/1.1\r\nHost: b.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n":                              `it is for "b.example", and the connection for "a.example" (SNI)`,
	} {
		if o := runAll(t, c, client(text)); o.reason() != want {
			t.Errorf("%q: %q", text, o.reason())
		}
	}
}

// TestWhatRulesKnow is what a request is to them.
func TestWhatRulesKnow(t *testing.T) {
	var got httprule.Request
	c := Config{SNI: "A.example", Rules: ruleFunc(func(r *httprule.Request) httprule.Decision {
		got = *r
		return httprule.Decision{Allow: true, Tunnel: true}
	})}
	names := []string{"accept", "b", "host", "z"}
	for text, want := range map[string]httprule.Request{
		"PUT /%61?b=%63 HTTP/1.1\r\nZ: 1\r\nHost: A.example:8443\r\nb: 1\r\nAccept: 1\r\nz: 2\r\n\r\n":                                                  {Method: "PUT", Scheme: "https", Host: "a.example", Port: 8443, Path: "/a", RawQuery: "b=%63", Names: names, SNI: "a.example", Stream: 1},
		preface + settings2 + request2(7, "PUT", "A.example:8443", "/%61?b=%63", "z", "1", "host", "A.example:8443", "b", "1", "accept", "1", "z", "2"): {Method: "PUT", Scheme: "https", Host: "a.example", Port: 8443, Path: "/a", RawQuery: "b=%63", Names: names, SNI: "a.example", Stream: 7},
		"CONNECT b.example:22 HTTP/1.1\r\nHost: b.example:22\r\n\r\n":                                                                                   {Method: "CONNECT", Host: "b.example", Port: 22, Names: []string{"host"}, SNI: "a.example", Stream: 1},
		preface + settings2 + head2of(endHeaders, m, "CONNECT", a, "b.example:22"):                                                                      {Method: "CONNECT", Host: "b.example", Port: 22, Names: []string{}, SNI: "a.example", Stream: 1},
		preface + settings2 + head2of(endHeaders, m, "CONNECT", ":protocol", "WebSocket", s, "https", a, "a.example", p, "/"):                           {Method: "CONNECT", Scheme: "https", Host: "a.example", Port: 443, Path: "/", Names: []string{}, SNI: "a.example", Upgrade: "websocket", Stream: 1},
	} {
		if o := runAll(t, c, client(text)); o.err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v\n%+v\nwant\n%+v", text, o.err, got, want)
		}
	}
}

func TestEvents(t *testing.T) {
	c := Config{
		Rules: noTunnels, SNI: "a.example", Answers: true,
		Show: []string{"User-Agent", "Authorization", "proxy-authorization", "COOKIE", "Set-Cookie", "X-Long", "x-bytes"},
	}
	long := strings.Repeat("ä", 300)
	text := "POST /p%61th/" + strings.Repeat("%C3%A4", 300) + "?token=secret HTTP/1.1\r\nHost: a.example:8443\r\nuser-agent: me\r\nAuthorization: secret\r\n" +
		"Proxy-Authorization: secret\r\nCookie: secret\r\nSet-Cookie: secret\r\nX-Other: secret\r\nX-Long: " + long + "\r\nX-Bytes: \xff\r\nContent-Length: 6\r\n\r\nsecret"
	answer := "HTTP/1.1 200 OK\r\nSet-Cookie: secret\r\nContent-Length: 6\r\n\r\nsecret"
	o := runAll(t, c, client(text), server(answer), client(ok1), client("GET /in"))
	want := []Event{
		{
			Kind: KindRequest, Protocol: "http/1.1", Stream: 1, Method: "POST", Host: "a.example", Port: 8443,
			Path: "/path/" + long[:506], Query: true, Rule: "all", Allowed: true, Truncated: true,
			Headers: []Header{{"user-agent", "me"}, {"x-long", long[:256]}, {"x-bytes", "\uFFFD"}},
		},
		{Kind: KindResponse, Protocol: "http/1.1", Stream: 1, Status: 200},
		{Kind: KindRequest, Protocol: "http/1.1", Stream: 2, Method: "GET", Host: "a.example", Port: 443, Path: "/before", Rule: "all", Allowed: true},
		{Kind: KindEnd, Protocol: "http/1.1", ClientBytes: int64(len(text) + len(ok1)), ServerBytes: int64(len(answer))},
	}
	if !reflect.DeepEqual(o.events, want) {
		t.Errorf("%+v\nwant\n%+v", o.events, want)
	}
	line, err := json.Marshal(o.events)
	if err != nil || strings.Contains(string(line), "secret") {
		t.Errorf("%s, %v", line, err)
	}
}

func TestEventsMeasure(t *testing.T) {
	var events []Event
	j := New(Config{Rules: noTunnels, AnyHost: true, Answers: true, Events: func(e Event) { events = append(events, e) }})
	if _, err := j.Client([]byte(ok1 + "GET")); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Server([]byte("HTTP/1.1 204 No Content\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	j.End()
	if len(events) != 3 || events[1].Duration <= 0 || events[2].Duration < events[1].Duration || events[2].HeldBytes != 3 {
		t.Errorf("%+v", events)
	}
}

func TestEventsAreBounded(t *testing.T) {
	var show []string
	text := "GET / HTTP/1.1\r\nHost: a.example\r\n"
	for i := range maxHeaders + 1 {
		show = append(show, fmt.Sprintf("x-%d", i))
		text += fmt.Sprintf("X-%d: %s\r\n", i, strings.Repeat("x", i))
	}
	text += "X-Long: x" + strings.Repeat("ä", 200) + "\r\n\r\n"
	o := runAll(t, Config{Rules: noTunnels, AnyHost: true, Show: show}, client(text))
	if e := o.events[0]; len(e.Headers) != maxHeaders || !e.Truncated || e.Headers[maxHeaders-1] != (Header{"x-31", strings.Repeat("x", 31)}) {
		t.Errorf("%+v", e)
	}
	o = runAll(t, Config{Rules: noTunnels, AnyHost: true, Show: []string{"X-Long"}}, client(text))
	if e := o.events[0]; !e.Truncated || e.Headers[0].Value != "x"+strings.Repeat("ä", 127) {
		t.Errorf("%+v", e)
	}
	for err, want := range map[error]string{
		&Denied{Reason: "why"}: "connection denied: why",
		&Denied{Reason: "why", Request: &httprule.Request{Method: "GET", Host: "a.example", Path: "/"}}: `GET "a.example/" denied: why`,
		&Malformed{Reason: "why"}:                            "malformed bytes: why",
		&Malformed{Reason: "why", Protocol: "h2", Stream: 3}: "malformed h2 request 3: why",
		&Malformed{Reason: "why", Protocol: "http/1.1"}:      "malformed http/1.1: why",
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
	}
}

func TestErrorsShowNoSecrets(t *testing.T) {
	rules := ruleFunc(func(*httprule.Request) httprule.Decision { return httprule.Decision{Rule: "no"} })
	for _, text := range []string{
		"GET /?secret HTTP/1.1\r\nHost: a.example\r\nCookie: secret\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a.example\r\nCookie: secret\r\nCookie secret\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a.example\r\nCookie: secret\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		o := runAll(t, Config{Rules: rules, AnyHost: true}, client(text))
		line, err := json.Marshal(o.events)
		if err != nil || o.err == nil || strings.Contains(o.err.Error()+string(line), "secret") {
			t.Errorf("%v, %s, %v", o.err, line, err)
		}
	}
	o := runAll(t, Config{Rules: rules, AnyHost: true}, client("GET /x%22"+strings.Repeat("y", 9000)+"?secret HTTP/1.1\r\nHost: a.example\r\n\r\n"))
	if want := `GET "a.example/x\"` + strings.Repeat("y", 256-12) + `" denied: rule "no" denies it`; o.err == nil || o.err.Error() != want {
		t.Errorf("%v", o.err)
	}
}

// TestReadings wants each thing that servers make of a path to be allowed.
func TestReadings(t *testing.T) {
	rules, err := httprule.Compile([]httprule.Rule{
		{Name: "admin", Path: httprule.Path{Prefix: "/admin"}},
		{Name: "api", Allow: true, Path: httprule.Path{Prefix: "/api"}},
		{Name: "empty segment", Allow: true, Path: httprule.Path{Exact: "//"}},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/api":                 "",
		"/api/":                "",
		"/api/x":               "",
		"/api//x":              "",
		"/api;v=1/x":           `no rule allows it`, // the segment is api;v=1
		"/api/x;v=1":           "",
		"/api/x;/..y":          "",
		"/%61pi/%78":           "",
		"/apix":                "no rule allows it",
		"/":                    "no rule allows it",
		"/admin":               `rule "admin" denies it`,
		"/%61dmin":             `rule "admin" denies it`,
		"//admin":              "no rule allows it",
		"//":                   `no rule allows it, where a server reads the path as "/"`,
		"/api/%2561":           "",
		"//api/x":              "no rule allows it",
		"/api/;/x":             "",
		"/%2561dmin":           "no rule allows it", // it is the text %61dmin
		"/API":                 "no rule allows it",
		"/api?/../admin":       "",
		"/api/%3f/%23/%20/%2b": "",
	} {
		text := "GET " + path + " HTTP/1.1\r\nHost: a.example\r\n\r\n"
		if o := runAll(t, Config{Rules: rules, AnyHost: true}, client(text)); o.reason() != want {
			t.Errorf("%s: %q", path, o.reason())
		}
		if o := runAll(t, Config{Rules: rules, AnyHost: true}, client(preface+settings2+request2(1, "GET", "a.example", path))); o.reason() != want {
			t.Errorf("HTTP/2 %s: %q", path, o.reason())
		}
	}

	deny, err := httprule.Compile([]httprule.Rule{{Name: "admin", Path: httprule.Path{Prefix: "/admin"}}}, true)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/api//x":     "",
		"//admin":     `rule "admin" denies it, where a server reads the path as "/admin"`,
		"/admin;x/y":  `rule "admin" denies it, where a server reads the path as "/admin/y"`,
		"/;x/admin":   `rule "admin" denies it, where a server reads the path as "/admin"`,
		"///%61dmin;": `rule "admin" denies it, where a server reads the path as "/admin"`,
		"/x;/admin":   "",
		"/administer": "",
		"/admin%3Bx":  "", // which no server takes for a parameter
		"/x/admin":    "",
		"/%2561dmin":  "",
	} {
		text := "GET " + path + " HTTP/1.1\r\nHost: a.example\r\n\r\n"
		if o := runAll(t, Config{Rules: deny, AnyHost: true}, client(text)); o.reason() != want {
			t.Errorf("%s: %q", path, o.reason())
		}
	}
}
