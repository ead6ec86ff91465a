// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"regexp"
	"strings"
	"unicode"
)

var (
	pemBlock = regexp.MustCompile(`(?s)-{4,5} ?BEGIN [A-Z0-9 ]+-{4,5}.*?(?:-{4,5} ?END [A-Z0-9 ]+-{4,5}|\z)`)
	// The end of one whose beginning was cut off.
	pemEnd = regexp.MustCompile(`(?m)(?:^[^\n]*[A-Za-z0-9+/=]{16,}\r?\n)*^[^\n]*-{4,5} ?END [A-Z0-9 ]+-{4,5}`)
	// What TLS libraries write for SSLKEYLOGFILE.
	keyLog = regexp.MustCompile(`(?m)\b(CLIENT_RANDOM|[A-Z_]*(?:TRAFFIC|EXPORTER)_SECRET[A-Z0-9_]*|RSA Session-ID:)[ \t][^\n]*`)
)

// blocks takes out what has more than one line.
func blocks(text string) string {
	text = pemBlock.ReplaceAllLiteralString(text, Mark)
	if strings.Contains(text, "-END ") || strings.Contains(text, "- END ") {
		text = pemEnd.ReplaceAllLiteralString(text, Mark)
	}
	return keyLog.ReplaceAllString(text, "${1} "+Mark)
}

var (
	scheme = regexp.MustCompile(`(?i)\b(bearer|basic|negotiate|ntlm|digest)[ \t]+[A-Za-z0-9._~+/=-]{6,}`)
	// The user of a URL, and of what is one without its scheme.
	userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*:(?:\\?/){2})[^\s"'<>]*@`)
	userhost = regexp.MustCompile(`([A-Za-z0-9._%+-]+:[^\s:@/"']+)(@[A-Za-z0-9.\[-]+)`)
	known    = regexp.MustCompile(strings.Join([]string{
		`\beyJ[A-Za-z0-9_.+/=-]{8,}`,                       // JSON in base64: tokens, Docker's credentials
		`\bew[ok][A-Za-z0-9+/=_-]{16,}`,                    // the same, indented
		`\b(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,}`, // AWS
		`\b(?:ghp|gho|ghu|ghs|ghr|github_pat|glpat|glrt|npm|dckr_pat|dckr_oat|hvs|hvb|xox[abeoprs]|sk|rk|pypi|shpat)[_.-][A-Za-z0-9_.-]{10,}`,
		`\bAIza[A-Za-z0-9_-]{20,}`, // Google
		`\bya29\.[A-Za-z0-9_.-]{10,}`,
		`\$[0-9a-z]{1,8}\$[A-Za-z0-9./$=,+-]{16,}`, // crypt(5)
	}, "|"))
	run = regexp.MustCompile(`[A-Za-z0-9+/_=-]{32,}`)
)

// looks takes out of a line what is known without its name.
func looks(text string) string {
	if len(text) < 8 {
		return text
	}
	if strings.Contains(text, "@") {
		text = userinfo.ReplaceAllString(text, "${1}"+Mark+"@")
		text = userhost.ReplaceAllStringFunc(text, func(m string) string {
			i := strings.LastIndexByte(m, '@')
			if host := m[i+1:]; host == "sha256" || host == "sha512" { // an image's digest
				return m
			}
			return Mark + m[i:]
		})
	}
	text = scheme.ReplaceAllString(text, "${1} "+Mark)
	text = known.ReplaceAllLiteralString(text, Mark)
	return run.ReplaceAllStringFunc(text, func(m string) string {
		if !strings.HasPrefix(m, "/") || strings.Count(m, "/") < 3 {
			if random(m) {
				return Mark
			}
			return m
		}
		parts := strings.Split(m, "/") // a path, more likely
		for i, p := range parts {
			if len(p) >= 32 && random(p) {
				parts[i] = Mark
			}
		}
		return strings.Join(parts, "/")
	})
}

// random tells what nobody writes by hand: letters of both cases and digits, in one
// run. Hexadecimal numbers are not: the ids of containers are.
func random(s string) bool {
	return strings.ContainsFunc(s, unicode.IsUpper) && strings.ContainsFunc(s, unicode.IsLower) && strings.ContainsFunc(s, unicode.IsDigit)
}
