// SPDX-License-Identifier: Apache-2.0

package redact_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"sidegate/cmd/sidegate/internal/redact"
)

// Each has the secret HIDDEN, and says KEPT where something has to stay.
var texts = []struct{ name, text string }{
	{"YAML", "a: KEPT\npassword: HIDDEN words HIDDEN\nb: KEPT\n"},
	{"YAML, quoted", "password: \"HID\\\"DEN HIDDEN\"\nb: KEPT"},
	{"YAML, single quotes", "password: 'it''s HIDDEN' # KEPT"},
	{"YAML, in a flow", `{user: KEPT, db_password: "HIDDEN", x: KEPT}`},
	{"YAML, block", "x: KEPT\nsecret: |\n  HIDDEN\n\n  HIDDEN\ny: KEPT"},
	{"YAML, block in a comment", "# secret: |\n#   HIDDEN\n# y: KEPT"},
	{"YAML, plain over lines", "a:\n  secret: one\n    HIDDEN\n  b: KEPT"},
	{"YAML, list", "tokens:\n- HIDDEN\n- HIDDEN\nx: KEPT"},
	{"YAML, quoted over lines", "password: \"HIDDEN\nHIDDEN\" KEPT\nx: KEPT"},
	{"YAML, name and value", "env:\n- name: DB_PASSWORD\n  value: HIDDEN\n- name: OTHER\n  value: KEPT"},
	{"YAML, value and name", "- value: HIDDEN\n  name: DB_PASSWORD\n- name: OTHER\n  value: KEPT"},
	{"YAML, name and value in a flow", "x: KEPT\n- {name: API_TOKEN, value: HIDDEN}\n- {name: x, value: KEPT}"},
	{"prose", "KEPT\n# the password of the first one was HIDDEN, HIDDEN\nKEPT"},
	{"YAML, a header of a rule", "- name: authorization\n  action: KEPT\n  exact: HIDDEN\n- name: x\n  exact: KEPT"},
	{"JSON, name and value", "[{\n  \"name\": \"token\",\n  \"value\": \"HIDDEN\"\n}, {\n  \"name\": \"x\",\n  \"value\": \"KEPT\"\n}]"},
	{"comment", "# KEPT\n# the password is HIDDEN\n# KEPT"},
	{"JSON", `{"a":"KEPT","client_secret":"HIDDEN","b":"KEPT"}`},
	{"JSON, indented", "{\n  \"auths\": {\n    \"registry\": {\n      \"x\": \"HIDDEN\"\n    }\n  },\n  \"b\": \"KEPT\"\n}"},
	{"JSON in JSON", `{"msg":"{\"apiKey\":\"HIDDEN\",\"b\":\"KEPT\"}"}`},
	{"JSON, quote in JSON", `{"msg":"{\"apiKey\":\"a\\\"HIDDEN\",\"b\":\"KEPT\"}"}`},
	{"JSON, number", `{"passwd": 4711HIDDEN}`},
	{"environment", "A=KEPT\nexport API_KEY=HIDDEN\nB=KEPT"},
	{"logfmt", "level=KEPT access_token=HIDDEN msg=KEPT"},
	{"logfmt, quoted", `level=KEPT password="HIDDEN HIDDEN" msg=KEPT`},
	{"TOML", "user = \"KEPT\"\npassword = \"HIDDEN\"\nx = \"KEPT\""},
	{"TOML over lines", "password = \"\"\"\nHIDDEN\n\"\"\"\nx = \"KEPT\""},
	{"flag", "run --api-key HIDDEN --KEPT"},
	{"flag with =", "run --token=HIDDEN KEPT"},
	{"flag in JSON", `["run","--token","HIDDEN","KEPT"]`},
	{"continued", "password: HIDDEN\\\nHIDDEN\nKEPT"},
	{"header", "> Authorization: Basic HIDDEN HIDDEN\n> KEPT"},
	{"header in quotes", `curl -H 'Authorization: Digest a="HIDDEN", b="HIDDEN"'`},
	{"cookie", "KEPT\nCookie: a=\"HIDDEN\"; b=HIDDEN"},
	{"set-cookie", "set-cookie: HIDDEN; Path=/"},
	{"cookie as a key", "cookie=a=1; b=HIDDEN"},
	{"bearer", "KEPT with bearer HIDDEN-HIDDEN"},
	{"JWT", "KEPT eyJhbGciOiJIUzI1NiJ9.eyHIDDENzdWIiOi.HIDDEN KEPT"},
	{"URL", "KEPT http://user:HIDDEN@proxy.example:3128/KEPT"},
	{"URL with what it may not have", "KEPT http://user:HID/HIDDEN@HIDDEN@proxy.example:3128/KEPT"},
	{"URL in JSON", `"http:\/\/user:HIDDEN@proxy.example\/KEPT"`},
	{"URL without a scheme", "proxy user:HIDDEN@proxy.example KEPT"},
	{"AWS", "KEPT AKIAHIDDENHIDDENHIDD KEPT"},
	{"random", "KEPT dGhpcyBpcyBhIHRlc3Q9HIDDENdGhpcyBpcyBhIHRlc3Q9 KEPT"},
	{"GitHub", "KEPT ghp_HIDDENHIDDENHIDDEN0123"},
	{"crypt", "KEPT:$6$saltHIDDEN$HIDDENHIDDENHIDDEN:19000:KEPT"},
	{"PEM", "KEPT\n-----BEGIN RSA PRIVATE KEY-----\nHIDDEN\nHIDDEN\n-----END RSA PRIVATE KEY-----\nKEPT"},
	{"PEM in a log", "t u[1]: KEPT\nt u[1]: -----BEGIN PRIVATE KEY-----\nt u[1]: HIDDEN\nt u[1]: -----END PRIVATE KEY-----\nKEPT"},
	{"PEM in JSON", `{"a":"-----BEGIN PRIVATE KEY-----\nHIDDEN\n-----END PRIVATE KEY-----\n","b":"KEPT"}`},
	{"PEM cut off behind", "KEPT\n-----BEGIN EC PRIVATE KEY-----\nHIDDEN\n"},
	{"PEM cut off before", "HIDDENHIDDENHIDDEN\nHIDDENHIDDENHIDDEN==\n-----END EC PRIVATE KEY-----\nKEPT"},
	{"key log", "KEPT\nCLIENT_TRAFFIC_SECRET_0 00 HIDDEN\nCLIENT_RANDOM 00 HIDDEN\nKEPT"},
	{"journal of JSON", `2026 unit[1]: {"level":"KEPT","error":"login: token: HIDDEN"}` + "\n2026 unit[1]: KEPT"},
}

func TestText(t *testing.T) {
	for _, c := range texts {
		got := redact.Text(c.text)
		if strings.Contains(got, "HIDDEN") {
			t.Errorf("%s: the secret is in\n%s", c.name, got)
		}
		if n, want := strings.Count(got, "KEPT"), strings.Count(c.text, "KEPT"); n != want {
			t.Errorf("%s: %d of %d words are kept in\n%s", c.name, n, want, got)
		}
		if c.text == got {
			t.Errorf("%s: nothing is changed", c.name)
		}
	}
}

// What maintainers read stays as it is.
func TestTextKeeps(t *testing.T) {
	for _, text := range []string{
		"",
		"\n\n",
		"kind: PodPolicy\nmetadata: {name: auth-service}\nspec:\n  nonTCP: deny\n  rules:\n  - role: app\n",
		"netnsCookie: 4026\nauthor: me\nauthority: x\npasses: 3\ncompass: n\n",
		"Loaded (ABI 5, /sys/fs/bpf/sidegate), guard on the root cgroup: 7 programs, pods: 2\n",
		"  0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef  app\n",
		"/sys/fs/cgroup/machine.slice/libpod-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n",
		"CONFIG_DEBUG_INFO_BTF_MODULES=y\nCONFIG_SECURITY_NETWORK=y\n",
		"image: docker.io/library/busybox:1@sha256:0123456789abcdef\n",
		"  - to: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]\n    ports: [443, 8000-8100]\n",
		"listen 127.0.0.1:15001 [::1]:15001 2001:db8::1\n",
	} {
		if got := redact.Text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestJSON(t *testing.T) {
	b, err := redact.JSON(map[string]any{
		"netnsCookie": uint64(1<<64 - 1), "password": map[string]any{"x": "HIDDEN"}, "token=HIDDEN": "KEPT",
		"list": []any{"password: HIDDEN", "KEPT"}, "env": map[string]any{"name": "DB_PASSWORD", "value": "HIDDEN"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	if strings.Contains(got, "HIDDEN") || strings.Count(got, "KEPT") != 2 || !strings.Contains(got, "18446744073709551615") {
		t.Errorf("got %s", got)
	}
}

// TestTextOfAnySize: what a container can make a log of takes no longer than its size.
func TestTextOfAnySize(t *testing.T) {
	const size = 1 << 16
	for name, unit := range map[string]string{
		"lines": "x y\n", "one line": "x y ", "keys": "password=a ", "pairs": "value: a\nname: password\n", "quotes": `"token": "\\`, "ends": "aaaaaaaaaaaaaaaaaaaaaaa\n",
		"begins": "-----BEGIN X-----", "addresses": "a:b@", "URLs": "http://", "random": "aB3",
	} {
		text := strings.Repeat(unit, size/len(unit)) + "\n-----END X-----\n"
		begin := time.Now()
		redact.Text(text)
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: %s", name, took)
		}
	}
}

// FuzzText plants a secret in anything, by name and by looks, each on lines of its own.
func FuzzText(f *testing.F) {
	for _, c := range texts {
		f.Add(c.text, "correct-horse-battery")
	}
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, around, secret string) {
		for _, r := range secret {
			if r < '0' || r > 'z' { // each in its form is for the table
				t.Skip()
			}
		}
		if len(secret) < 12 || strings.ContainsAny(secret, "\\'`[]{}@<>:;=?^|") || strings.Contains(around, secret) || strings.Contains(redact.Mark, secret) {
			t.Skip()
		}
		forms := []string{
			"password: " + secret, "token=" + secret, "\"secret\": \"" + secret + "\"", "Authorization: Bearer " + secret,
			"http://user:" + secret + "@proxy.example/", "-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----",
		}
		for _, form := range forms {
			got := redact.Text(around + "\n" + form + "\n" + around)
			if strings.Contains(got, secret) {
				t.Errorf("%q: %q is in %q", around, form, got)
			}
		}
		b, err := redact.JSON(map[string]any{"x": around + "\npassword: " + secret, around: "token=" + secret})
		if err != nil || !json.Valid(b) || strings.Contains(string(b), secret) {
			t.Errorf("%q: %v, JSON is %s", around, err, b)
		}
	})
}
