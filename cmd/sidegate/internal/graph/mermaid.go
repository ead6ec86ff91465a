// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// WriteMermaid writes a flowchart.
func WriteMermaid(w io.Writer, g *Graph) error {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for _, p := range g.Pods {
		fmt.Fprintf(&b, "  subgraph %s[\"%s\"]\n", p.ID, escapeMermaid("pod "+p.Name))
		for _, c := range p.Containers {
			fmt.Fprintf(&b, "    %s[\"%s\"]\n", c.ID, escapeMermaid(c.title(" (", ")")))
		}
		b.WriteString("  end\n")
	}
	for _, o := range g.Outside {
		fmt.Fprintf(&b, "  %s([\"%s\"])\n", o.ID, escapeMermaid(strings.TrimSpace(o.Title()+" "+o.Subtitle())))
	}
	if g.endless() {
		fmt.Fprintf(&b, "  %s((\" \"))\n", noEnd)
	}
	for _, e := range g.Edges {
		line := "-->"
		switch {
		case e.Kind == Denied:
			line = "--x"
		case e.Kind == Audited, e.unanswered():
			line = "-.->"
		}
		label := e.label()
		if why := e.why(); why != "" {
			label += ": " + why
		}
		from, to := e.ends()
		fmt.Fprintf(&b, "  %s %s|\"%s\"| %s\n", from, line, escapeMermaid(label), to)
	}
	for i, e := range g.Edges {
		fmt.Fprintf(&b, "  linkStyle %d stroke:%s,stroke-width:%.1fpx,color:%s\n", i, colors[e.Kind], e.width(), colors[e.Kind])
	}
	for _, p := range g.Pods {
		for _, c := range p.Containers {
			if c.Role == roleSidecar {
				fmt.Fprintf(&b, "  style %s fill:#ddf4ff,stroke:#0969da,stroke-width:2px,color:#1f2328\n", c.ID)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// escapeMermaid writes as a number whatever could be the end of a text, or a command in it.
func escapeMermaid(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r) || strings.ContainsRune(" .,:/-_+×·…", r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "#%d;", r)
		}
	}
	return b.String()
}
