// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"sidegate/cmd/sidegate/internal/text"
)

// style is for light and for dark pages. Renderers that know no media queries draw the light one.
const style = `
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1f2328}
.bg{fill:#fff}.title{font-weight:600}.name{font-weight:500}.pod{font-weight:600}.muted{fill:#59636e}
.cluster{fill:#f6f8fa;stroke:#d1d9e0}.box{fill:#fff;stroke:#afb8c1}.sidecar{fill:#ddf4ff;stroke:#0969da;stroke-width:1.6}.ghost{stroke-dasharray:4 3}
.w text{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}.in text{stroke:#f6f8fa}
.l{fill:none;stroke-linecap:round}.h,.x{stroke:none}
.redirected .l,.via .l{stroke:#0969da}.direct .l{stroke:#1a7f37}.inbound .l{stroke:#8250df}.local .l{stroke:#6e7781}
.denied .l,.denied .x{stroke:#cf222e}.audited .l,.audited .x{stroke:#bc4c00}.audited .l{stroke-dasharray:7 4}
.redirected .h,.via .h{fill:#0969da}.direct .h{fill:#1a7f37}.inbound .h{fill:#8250df}.local .h{fill:#6e7781}.denied .h{fill:#cf222e}.audited .h{fill:#bc4c00}
.asked .l{stroke-dasharray:1 5}
text.redirected,text.via{fill:#0550ae}text.direct{fill:#116329}text.inbound{fill:#6639ba}text.local{fill:#59636e}text.denied{fill:#a40e26}text.audited{fill:#953800}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.bg{fill:#0d1117}.muted{fill:#9198a1}
.cluster{fill:#151b23;stroke:#3d444d}.box{fill:#0d1117;stroke:#656c76}.sidecar{fill:#12294d;stroke:#4493f8}
.w text{stroke:#0d1117}.in text{stroke:#151b23}
.redirected .l,.via .l{stroke:#4493f8}.direct .l{stroke:#3fb950}.inbound .l{stroke:#ab7df8}.local .l{stroke:#9198a1}
.denied .l,.denied .x{stroke:#f85149}.audited .l,.audited .x{stroke:#db6d28}
.redirected .h,.via .h{fill:#4493f8}.direct .h{fill:#3fb950}.inbound .h{fill:#ab7df8}.local .h{fill:#9198a1}.denied .h{fill:#f85149}.audited .h{fill:#db6d28}
text.redirected,text.via{fill:#79c0ff}text.direct{fill:#7ee787}text.inbound{fill:#d2a8ff}text.local{fill:#9198a1}text.denied{fill:#ff7b72}text.audited{fill:#ffa657}
}
`

// legendText is what kinds mean.
var legendText = map[string]string{
	Redirected: "by the sidecar", Direct: "direct", Inbound: "from outside, to the sidecar",
	Local: "inside the pod", Audited: "would be denied", Denied: "denied",
}

// WriteSVG draws a self-contained picture. The same graph makes the same picture.
func WriteSVG(w io.Writer, g *Graph) error {
	var b bytes.Buffer
	p := layout(g)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img" aria-labelledby="t d">`,
		p.w, p.h, p.w, p.h)
	fmt.Fprintf(&b, "\n<title id=\"t\">%s</title>\n<desc id=\"d\">%s</desc>\n<style>%s</style>\n", escape(g.title()), escape(g.describe()), style)
	fmt.Fprintf(&b, "<rect class=\"bg\" width=\"%.0f\" height=\"%.0f\"/>\n", p.w, p.h)
	writeLabel(&b, label{cut(g.title(), p.w-2*margin, titleSize), "title", titleSize, point{margin, 32}})
	writeLabel(&b, label{cut(g.summary(), p.w-2*margin, nameSize), "muted", nameSize - 1, point{margin, 51}})
	for _, pod := range p.pods {
		writeBox(&b, pod, 10)
	}
	// Lines first, so that no line is over a text.
	for _, w := range p.wires {
		writeWire(&b, g, w)
	}
	for _, box := range p.boxes {
		writeBox(&b, box, 6)
	}
	for _, w := range p.wires {
		writeWireLabels(&b, g, w)
	}
	writeLegend(&b, p)
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

func writeBox(b *bytes.Buffer, box box, radius int) {
	fmt.Fprintf(b, "<g><title>%s</title><rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"%d\"/>",
		escape(strings.TrimSpace(box.tip)), box.class, box.x, box.y, box.w, box.h, radius)
	for _, l := range box.labels {
		writeLabel(b, l)
	}
	b.WriteString("</g>\n")
}

func writeLabel(b *bytes.Buffer, l label) {
	fmt.Fprintf(b, "<text class=\"%s\" font-size=\"%.0f\" x=\"%.1f\" y=\"%.1f\">%s</text>", l.class, l.size, l.at.x, l.at.y, escape(l.text))
}

func writeWire(b *bytes.Buffer, g *Graph, w *wire) {
	class := w.edge.Kind
	if w.edge.unanswered() {
		class += " asked"
	}
	fmt.Fprintf(b, "<g class=\"%s\"><title>%s</title><path class=\"l\" stroke-width=\"%.1f\" d=\"%s\"/><path class=\"h\" d=\"%s\"/>",
		class, escape(g.Sentence(w.edge)), w.edge.width(), w.data(), w.head())
	if c := w.cross; c != nil {
		fmt.Fprintf(b, "<path class=\"x\" stroke-width=\"2\" d=\"M%.1f,%.1fl7,7m0,-7l-7,7\"/>", c.x-3.5, c.y-3.5)
	}
	b.WriteString("</g>\n")
}

func writeWireLabels(b *bytes.Buffer, g *Graph, w *wire) {
	class := "w"
	if w.edge.From[0] == 'c' && w.edge.To[0] == 'c' { // over a pod's colour
		class += " in"
	}
	fmt.Fprintf(b, "<g class=\"%s\"><title>%s</title>", class, escape(g.Sentence(w.edge)))
	for _, l := range w.labels {
		writeLabel(b, l)
	}
	b.WriteString("</g>\n")
}

func writeLegend(b *bytes.Buffer, p *picture) {
	at := p.lane
	for _, kind := range p.legend {
		words := legendText[kind]
		if kind == Redirected && slices.ContainsFunc(p.wires, func(w *wire) bool { return w.edge.unanswered() }) {
			words += " (dotted: which did not go on)"
		}
		fmt.Fprintf(b, "<g class=\"%s\"><path class=\"l\" stroke-width=\"2\" d=\"M%.1f,%.1fh22\"/></g>", kind, at.x, at.y-4)
		writeLabel(b, label{words, "muted", smallSize, point{at.x + 28, at.y}})
		at.x += 28 + textWidth(words, smallSize) + 18
	}
	b.WriteByte('\n')
}

func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // into a Builder, which takes everything
	return b.String()
}

// width grows with the logarithm of how often.
func (e *Edge) width() float64 { return min(1.2+0.6*math.Log10(float64(max(e.times(), 1))), 4.5) }

// unanswered tells whether an app asked for what its sidecar, which is watched, did not connect to.
func (e *Edge) unanswered() bool { return e.Watched && e.Carried == 0 }

// title is what the picture is about.
func (g *Graph) title() string {
	switch len(g.Pods) {
	case 0:
		return "Nobody has talked to anybody"
	case 1:
		return "Who talks to whom in pod " + g.Pods[0].Name
	}
	return fmt.Sprintf("Who talks to whom in %d pods", len(g.Pods))
}

// summary is one line.
func (g *Graph) summary() string {
	var good, denied, audited uint64
	for _, e := range g.Edges {
		switch e.Kind {
		case Via: // counted at its first part
		case Denied:
			denied += e.Count
		case Audited:
			audited += e.Count
		default:
			good += e.times()
		}
	}
	s := plural(good, "connection")
	if denied > 0 {
		s += " · " + short(denied) + " denied"
	}
	if audited > 0 {
		s += " · " + short(audited) + " that would be denied"
	}
	return s
}

func plural(n uint64, what string) string {
	if n != 1 {
		what += "s"
	}
	return short(n) + " " + what
}

// describe says in words what the picture shows, for those who do not see it.
func (g *Graph) describe() string {
	const most = 200
	lines := []string{g.summary() + "."}
	for i, e := range g.Edges {
		if i == most {
			lines = append(lines, fmt.Sprintf("And %d more.", len(g.Edges)-most))
			break
		}
		lines = append(lines, g.Sentence(e)+".")
	}
	return strings.Join(lines, "\n")
}

// name is of an end of an edge.
func (g *Graph) name(id string) string {
	for _, p := range g.Pods {
		for _, c := range p.Containers {
			if c.ID == id {
				return c.Name
			}
		}
	}
	for _, o := range g.Outside {
		if o.ID == id {
			return strings.TrimSpace(o.Title() + " " + o.Subtitle())
		}
	}
	return "nobody in particular"
}

// Sentence is all about an edge.
func (g *Graph) Sentence(e *Edge) string {
	s := fmt.Sprintf("%s to %s, %s", g.name(e.From), g.name(e.To), e.Kind)
	if len(e.Ports) > 0 {
		s += ": " + strings.Join(e.Ports, ", ")
	}
	s += ", " + plural(e.times(), "time")
	if len(e.By) > 0 {
		s += ", for " + strings.Join(e.By, ", ")
	}
	if e.Kind == Via {
		s += "; the sidecar took " + plural(e.Accepted, "connection")
	}
	if e.Watched {
		s += " and connected there " + plural(e.Carried, "time")
	}
	return s + ": " + cmp.Or(e.Text, e.Reason)
}

// textWidth is an estimate, of a font wider than most.
func textWidth(s string, size float64) (w float64) {
	for _, r := range s {
		w += runeWidth(r)
	}
	return w * size
}

func runeWidth(r rune) float64 {
	switch {
	case strings.ContainsRune("ijl.,:;'|!I", r):
		return 0.36
	case strings.ContainsRune("ft()[]-/ r·\"", r):
		return 0.44
	case strings.ContainsRune("mwMW%@…–", r):
		return 0.98
	case r >= 'A' && r <= 'Z':
		return 0.74
	case r < 0x80:
		return 0.64
	case text.Width(string(r)) > 1:
		return 1.1
	case r < 0x250:
		return 0.78
	}
	return 1.0
}

// cut keeps what is no wider, and marks what is missing.
func cut(s string, width, size float64) string {
	if textWidth(s, size) <= width {
		return s
	}
	w := textWidth("…", size)
	for i, r := range s {
		if w += runeWidth(r) * size; w > width {
			return s[:i] + "…"
		}
	}
	return s
}
