// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"io"
	"strings"
)

// The colours of kinds, on white.
var colors = map[string]string{
	Redirected: "#0969da", Via: "#0969da", Direct: "#1a7f37", Inbound: "#8250df", Local: "#6e7781", Audited: "#bc4c00", Denied: "#cf222e",
}

// noEnd is the node of edges that end nowhere in particular.
const noEnd = "nobody"

// ends are an edge's, each a node.
func (e *Edge) ends() (from, to string) {
	from, to = e.From, e.To
	if from == "" {
		from = noEnd
	}
	if to == "" {
		to = noEnd
	}
	return from, to
}

func (g *Graph) endless() bool {
	for _, e := range g.Edges {
		if e.From == "" || e.To == "" {
			return true
		}
	}
	return false
}

// WriteDOT writes the graph for Graphviz.
func WriteDOT(w io.Writer, g *Graph) error {
	var b strings.Builder
	b.WriteString("digraph sidegate {\n\trankdir=LR;\n\tnode [shape=box, style=rounded, fontname=\"sans-serif\"];\n\tedge [fontname=\"sans-serif\", fontsize=10];\n")
	for _, p := range g.Pods {
		fmt.Fprintf(&b, "\tsubgraph cluster_%s {\n\t\tlabel=%s;\n", p.ID, quoteDOT("pod "+p.Name))
		for _, c := range p.Containers {
			style := ""
			if c.Role == roleSidecar {
				style = ", style=\"rounded,filled,bold\", fillcolor=\"#ddf4ff\""
			}
			fmt.Fprintf(&b, "\t\t%s [label=%s%s];\n", c.ID, quoteDOT(c.title("\n", "")), style)
		}
		b.WriteString("\t}\n")
	}
	for _, o := range g.Outside {
		fmt.Fprintf(&b, "\t%s [label=%s];\n", o.ID, quoteDOT(strings.TrimSpace(o.Title()+"\n"+o.Subtitle())))
	}
	if g.endless() {
		fmt.Fprintf(&b, "\t%s [label=\"\", shape=point];\n", noEnd)
	}
	for _, e := range g.Edges {
		style := "solid"
		switch {
		case e.Kind == Audited:
			style = "dashed"
		case e.unanswered():
			style = "dotted"
		}
		from, to := e.ends()
		fmt.Fprintf(&b, "\t%s -> %s [label=%s, tooltip=%s, color=%q, fontcolor=%q, penwidth=%.1f, style=%s];\n",
			from, to, quoteDOT(strings.TrimSpace(e.label()+"\n"+e.why())), quoteDOT(g.Sentence(e)), colors[e.Kind], colors[e.Kind], e.width(), style)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// quoteDOT makes a string of it. What Graphviz takes for an entity is none.
func quoteDOT(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "&", "&amp;").Replace(s) + `"`
}
