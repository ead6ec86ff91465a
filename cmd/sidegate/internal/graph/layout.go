// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"cmp"
	"slices"
)

// Sizes, in pixels.
const (
	margin     = 24.0
	titleSize  = 17.0
	nameSize   = 13.0
	smallSize  = 11.0
	headHeight = 64.0 // title of the picture
	podHead    = 34.0 // name of the pod
	podPad     = 18.0
	podGap     = 26.0
	boxGap     = 14.0
	boxPad     = 12.0
	outsideGap = 8.0
	lane       = 9.0 // between lines side by side
	row        = 21.0
	whyRow     = 14.0 // more, for a label's second line
	minCurve   = 84.0 // room for lines to change height
	maxCurve   = 220.0
	arrow      = 8.0
	minBox     = 96.0
	maxName    = 230.0
	maxNote    = 290.0
	maxWhy     = 250.0
	legendRow  = 44.0
)

type point struct{ x, y float64 }

type rect struct{ x, y, w, h float64 }

func (r rect) overlaps(o rect) bool {
	const touching = 0.01
	return r.x+r.w > o.x+touching && o.x+o.w > r.x+touching && r.y+r.h > o.y+touching && o.y+o.h > r.y+touching
}

// A line of text. x is where it begins, y its base line.
type label struct {
	text  string
	class string
	size  float64
	at    point
}

func (l label) rect() rect {
	return rect{l.at.x, l.at.y - l.size*0.8, textWidth(l.text, l.size), l.size}
}

// A box is a node, with the texts in it.
type box struct {
	rect
	class  string
	tip    string
	labels []label
}

// A wire is an edge as it is drawn.
type wire struct {
	edge   *Edge
	path   []point // corners, joined by straight lines with round corners
	bends  []bend  // or by a curve, from the corner before
	labels []label
	cross  *point // where it is stopped
}

// A bend says that the way to corner is a curve.
type bend struct{ corner int }

// A picture is all that is drawn.
type picture struct {
	w, h   float64
	pods   []box
	boxes  []box
	wires  []*wire
	legend []string // kinds
	lane   point    // of the legend
}

// A side is one side of a box, from top to bottom.
type side struct {
	wires []*wire
	rows  []float64 // heights
}

func (s *side) add(w *wire, height float64) {
	s.wires, s.rows = append(s.wires, w), append(s.rows, height)
}

func (s *side) height() (h float64) {
	for _, r := range s.rows {
		h += r
	}
	return h
}

// place calls fn with the height of each line. Labels are above theirs, so it is at the end of its row.
func (s *side) place(top, height float64, fn func(i int, w *wire, y float64)) {
	y := top + max(0, (height-s.height())/2)
	for i, w := range s.wires {
		why := 0.0
		if s.rows[i] > row {
			why = whyRow
		}
		y += s.rows[i]
		fn(i, w, y-why-4)
	}
}

// A part is a container being laid out.
type part struct {
	c           *Container
	box         rect
	left, right side
	notes       []*Edge
}

type cluster struct {
	pod     *Pod
	parts   []*part // but the sidecar
	sidecar *part
	over    []*wire // into the sidecar, above the other containers
	under   []*wire // round the sidecar
	back    []*wire // from a container to another one that is no sidecar
	rect    rect
}

// A stop is an outside node being laid out.
type stop struct {
	o    *Outside
	box  rect
	side side
	want float64 // height of its other ends
}

type layouter struct {
	g        *Graph
	clusters []*cluster
	parts    map[string]*part
	home     map[*part]*cluster
	stops    map[string]*stop
	callers  []*stop
	callees  []*stop
	wires    []*wire
	pic      picture
	// Columns: where they begin, and how wide labels are.
	podX, podW, appX, appW, midX, midW, sideX, sideW, calleeX, calleeW, callerW float64
	inCurve, outCurve, inLabels, outLabels, backLabels                          float64
}

// layout places everything: callers, pods, and who is called, from left to right.
func layout(g *Graph) *picture {
	l := &layouter{g: g, parts: make(map[string]*part), home: make(map[*part]*cluster), stops: make(map[string]*stop)}
	l.nodes()
	l.route()
	l.columns()
	l.rows()
	l.draw()
	return &l.pic
}

func (l *layouter) nodes() {
	for _, p := range l.g.Pods {
		c := &cluster{pod: p}
		for _, k := range p.Containers {
			part := &part{c: k}
			l.parts[k.ID], l.home[part] = part, c
			if k.Role == roleSidecar && c.sidecar == nil {
				c.sidecar = part
			} else {
				c.parts = append(c.parts, part)
			}
		}
		l.clusters = append(l.clusters, c)
	}
	for _, o := range l.g.Outside {
		s := &stop{o: o}
		l.stops[o.ID] = s
		if o.Caller {
			l.callers = append(l.callers, s)
		} else {
			l.callees = append(l.callees, s)
		}
	}
}

// rowOf is what a wire with labels takes.
func rowOf(w *wire) float64 {
	if len(w.labels) > 1 {
		return row + whyRow
	}
	return row
}

func labelsOf(e *Edge) []label {
	list := []label{{text: cut(e.label(), maxWhy, smallSize), class: e.Kind, size: smallSize}}
	if why := e.why(); why != "" {
		list = append(list, label{text: cut(why, maxWhy, smallSize-1), class: e.Kind + " why", size: smallSize - 1})
	}
	return list
}

// route decides which way each edge goes.
func (l *layouter) route() {
	for _, e := range l.g.Edges {
		from, to := l.parts[e.From], l.parts[e.To]
		w := &wire{edge: e}
		switch {
		case from != nil && (e.To == "" || from == to):
			from.notes = append(from.notes, e)
			continue
		case to != nil && e.From == "":
			to.notes = append(to.notes, e)
			continue
		}
		w.labels = labelsOf(e)
		l.wires = append(l.wires, w)
		switch {
		case from == nil: // a caller
			c := l.home[to]
			if to == c.sidecar {
				c.over = append(c.over, w)
			} else {
				to.left.add(w, 2*lane)
			}
		case to == nil:
			c := l.home[from]
			if from == c.sidecar {
				from.right.add(w, lane)
			} else {
				c.under = append(c.under, w)
			}
		default:
			c := l.home[from]
			switch c.sidecar {
			case from:
				to.right.add(w, rowOf(w))
			case to:
				from.right.add(w, rowOf(w))
			default:
				c.back = append(c.back, w)
				from.left.add(w, lane)
				to.left.add(w, rowOf(w))
			}
		}
	}
	for _, c := range l.clusters { // below what goes to the sidecar
		for _, w := range c.under {
			l.parts[w.edge.From].right.add(w, lane)
		}
	}
}

func widest(width float64, ws []*wire) float64 {
	for _, w := range ws {
		for _, b := range w.labels {
			width = max(width, textWidth(b.text, b.size))
		}
	}
	return width
}

// columns finds out how wide each is, for all pods alike.
func (l *layouter) columns() {
	var backs, unders, overs int
	l.appW, l.sideW, l.calleeW, l.callerW = minBox, 0, minBox, 0
	podW := 0.0
	for _, c := range l.clusters {
		backs, unders, overs = max(backs, len(c.back)), max(unders, len(c.under)), max(overs, len(c.over))
		l.backLabels = widest(l.backLabels, c.back)
		podW = max(podW, textWidth(cut("pod "+c.pod.Name, maxName, nameSize), nameSize)+2*podPad)
		for _, p := range c.parts {
			l.appW = max(l.appW, p.width())
			for _, w := range p.right.wires {
				if l.parts[w.edge.To] != nil {
					l.midW = widest(l.midW, []*wire{w})
				}
			}
		}
		if c.sidecar != nil {
			l.sideW = max(l.sideW, c.sidecar.width(), minBox)
		}
	}
	for _, w := range l.wires {
		if l.stops[w.edge.From] != nil {
			l.inLabels = widest(l.inLabels, []*wire{w})
		}
		if l.stops[w.edge.To] != nil {
			l.outLabels = widest(l.outLabels, []*wire{w})
		}
	}
	for _, s := range l.callers {
		l.callerW = max(l.callerW, s.width(), minBox)
	}
	for _, s := range l.callees {
		l.calleeW = max(l.calleeW, s.width())
	}
	l.inCurve, l.outCurve = curveOf(l.callers), curveOf(l.callees)
	l.podX = margin
	if len(l.callers) > 0 {
		l.podX += l.callerW + l.inLabels + 16 + l.inCurve
	}
	l.appX = l.podX + podPad
	if backs > 0 {
		l.appX += float64(backs)*lane + l.backLabels + arrow + 12
	}
	l.midX = l.appX + l.appW
	l.sideX = l.midX + podPad
	if l.sideW > 0 || unders > 0 {
		l.sideX = l.midX + l.midW + arrow + 28 + float64(unders)*lane
	}
	end := l.sideX
	if l.sideW > 0 {
		end += l.sideW + podPad
	}
	l.podW = max(end-l.podX, podW)
	l.calleeX = l.podX + l.podW + l.outCurve + l.outLabels + arrow + 16
	l.pic.w = l.calleeX + l.calleeW + margin
	if len(l.callees) == 0 {
		l.pic.w = l.podX + l.podW + margin
	}
	l.pic.w = max(l.pic.w, 640)
}

// curveOf is wide where lines have far to go.
func curveOf(stops []*stop) float64 {
	return min(minCurve+4*float64(max(len(stops)-8, 0)), maxCurve)
}

func (p *part) width() float64 {
	w := textWidth(cut(p.c.Name, maxName, nameSize), nameSize)
	for _, n := range p.notes {
		w = max(w, textWidth(noteText(n), smallSize))
	}
	return max(w, textWidth(p.role(), smallSize)) + 2*boxPad
}

func (p *part) role() string {
	if p.c.Gone {
		return roleSidecar + ", gone"
	}
	return cmp.Or(p.c.Role, "no container")
}

// noteText is of an edge without another end.
func noteText(e *Edge) string {
	what := e.label()
	if e.From == e.To {
		what = "with itself: " + what
	}
	if why := e.why(); why != "" {
		what += ": " + why
	}
	return cut(what, maxNote, smallSize)
}

// height is that of the box around the name and the notes.
func (p *part) height() float64 {
	inside := 2*boxPad + nameSize + 4 + smallSize + float64(len(p.notes))*(smallSize+5)
	return max(inside, p.left.height()+2*6, p.right.height()+2*6)
}

func (s *stop) width() float64 {
	w := textWidth(cut(s.o.Title(), maxName, nameSize), nameSize)
	return max(w, textWidth(cut(s.o.Subtitle(), maxName, smallSize), smallSize)) + 2*boxPad
}

func (s *stop) height() float64 {
	h := nameSize + boxPad
	if s.o.Subtitle() != "" {
		h += smallSize + 3
	}
	return max(h, s.side.height()+4)
}

// rows finds out how high everything is, and where.
func (l *layouter) rows() {
	y := headHeight
	for _, c := range l.clusters {
		y += l.pile(c, y) + podGap
	}
	pods := y - podGap - headHeight
	for _, w := range l.wires {
		if s := l.stops[w.edge.From]; s != nil {
			s.side.add(w, rowOf(w))
		}
		if s := l.stops[w.edge.To]; s != nil {
			s.side.add(w, rowOf(w))
		}
	}
	high := max(pods, heightOf(l.callers), heightOf(l.callees))
	for _, c := range l.clusters { // in the middle
		c.move((high - pods) / 2)
	}
	l.stack(l.callers, margin, l.callerW, high)
	l.stack(l.callees, l.calleeX, l.calleeW, high)
	l.pic.lane = point{margin, headHeight + high + 34}
	l.pic.h = headHeight + high + legendRow + margin
}

// pile puts a pod's containers over each other and returns its height.
func (l *layouter) pile(c *cluster, top float64) float64 {
	y := top + podHead
	begin := y
	if n := len(c.over); n > 0 {
		y += float64(n)*lane + boxPad
	}
	for _, p := range c.parts {
		p.box = rect{l.appX, y, l.appW, p.height()}
		y += p.box.h + boxGap
	}
	if len(c.parts) > 0 {
		y -= boxGap
	}
	if s := c.sidecar; s != nil {
		if len(c.parts) > 0 && len(c.over) == 0 {
			begin = c.parts[0].box.y
		}
		s.box = rect{l.sideX, begin, l.sideW, max(y-begin, s.height())}
		y = begin + s.box.h
	}
	if n := len(c.under); n > 0 {
		y += float64(n)*lane + 4
	}
	c.rect = rect{l.podX, top, l.podW, y + podPad - top}
	return c.rect.h
}

func (c *cluster) move(by float64) {
	c.rect.y += by
	for _, p := range append(c.parts[:len(c.parts):len(c.parts)], c.sidecar) {
		if p != nil {
			p.box.y += by
		}
	}
}

func heightOf(stops []*stop) (h float64) {
	for _, s := range stops {
		h += s.height() + outsideGap
	}
	return max(0, h-outsideGap)
}

// stack puts outside nodes over each other, each as near to its other ends as there is room.
func (l *layouter) stack(stops []*stop, x, width, high float64) {
	for _, s := range stops {
		n := 0.0
		for _, w := range s.side.wires {
			s.want += l.heightOfEnd(w)
			n++
		}
		s.want /= max(n, 1)
	}
	slices.SortStableFunc(stops, func(a, b *stop) int {
		return cmp.Or(cmp.Compare(min(a.o.More, 1), min(b.o.More, 1)), cmp.Compare(a.want, b.want))
	})
	y := headHeight
	for _, s := range stops {
		h := s.height()
		y = max(y, s.want-h/2)
		s.box = rect{x, y, width, h}
		y += h + outsideGap
	}
	end := headHeight + high
	for _, s := range slices.Backward(stops) {
		s.box.y = min(s.box.y, end-s.box.h)
		end = s.box.y - outsideGap
	}
	for _, s := range stops { // by the heights of their other ends, so that lines cross less
		type line struct {
			w *wire
			h float64
		}
		lines := make([]line, len(s.side.wires))
		for i, w := range s.side.wires {
			lines[i] = line{w, s.side.rows[i]}
		}
		slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(l.heightOfEnd(a.w), l.heightOfEnd(b.w)) })
		for i, line := range lines {
			s.side.wires[i], s.side.rows[i] = line.w, line.h
		}
	}
}

// heightOfEnd is where a wire leaves its pod, about.
func (l *layouter) heightOfEnd(w *wire) float64 {
	p := l.parts[w.edge.From]
	if p == nil {
		p = l.parts[w.edge.To]
		if c := l.home[p]; c.sidecar == p {
			return c.rect.y + podHead
		}
		return p.box.y + p.box.h/2
	}
	c := l.home[p]
	if c.sidecar == p {
		return p.box.y + p.box.h/2
	}
	return c.rect.y + c.rect.h - podPad
}
