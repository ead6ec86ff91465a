// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// Emitter tells who reads events of what user space alone knows. It owns descriptors and memory until Close.
type Emitter struct {
	program *ebpf.Program
	control []byte
}

// newEmitter needs the maps of the state that the program is of.
func newEmitter(m *bpf.Maps, program func(string) (*ebpf.Program, error)) (*Emitter, error) {
	e := new(Emitter)
	var err error
	if e.control, err = mapControl(m, unix.PROT_READ); err != nil {
		return nil, err
	}
	if e.program, err = program(bpf.EmitProgram); err != nil {
		return nil, errors.Join(fmt.Errorf("open program %s: %w", bpf.EmitProgram, err), e.Close())
	}
	return e, nil
}

// Wanted tells whether anybody reads.
func (e *Emitter) Wanted() bool {
	return atomic.LoadUint64(&controlOf(e.control).Any) > uint64(bootTime())
}

// emitTLS tells of what the relay saw of a container's connection.
func (e *Emitter) emitTLS(cookie, cgroup uint64, v *Event) error {
	kind := uint8(bpf.KindTLS)
	if v.TLS.HTTP != nil {
		kind = bpf.KindHTTP
	}
	head := bpf.Event{Kind: kind, NetnsCookie: cookie, CgroupId: cgroup, Pid: uint32(v.PID)}
	text, err := textOf(v)
	for _, names := range []int{255, 40} { // bytes of names of servers
		if err == nil && len(text) > maxEventText {
			text, err = textOf(cutEvent(v, names))
		}
	}
	if err != nil {
		return err
	}
	return e.emit(head, text)
}

// textOf is what is merged into the event that the kernel's record becomes, which has the rest.
func textOf(v *Event) ([]byte, error) {
	text := struct {
		Verdict  string    `json:"verdict"`
		Address  string    `json:"address,omitempty"`
		Protocol string    `json:"protocol"`
		Reason   string    `json:"reason"`
		Text     string    `json:"text"`
		Rule     string    `json:"rule,omitempty"`
		TLS      *TLSEvent `json:"tls"`
	}{v.Verdict, "", "tcp", v.Reason, v.Text, v.Rule, v.TLS}
	if v.Address.IsValid() {
		text.Address = v.Address.String()
	}
	return marshal(text)
}

// marshal is json.Marshal without what is for HTML, which makes six bytes of one.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("write event: %w", err)
	}
	return out.Bytes(), nil
}

var maxEventText = len(bpf.EventText{}.Text)

// cutEvent fits, whatever is in it: nobody's request goes unseen for its length. Whose it is is cut last.
func cutEvent(v *Event, names int) *Event {
	const most = 20 // bytes, of which JSON makes six each
	cutAt := func(s *string, most int) { *s = strings.ToValidUTF8((*s)[:min(len(*s), most)], "") }
	cut := func(s *string) { cutAt(s, most) }
	short, tls := *v, *v.TLS
	short.TLS = &tls
	tls.Truncated = true
	for _, s := range []*string{&short.Text, &short.Rule, &short.Reason, &tls.Suite, &tls.ALPN} {
		cut(s)
	}
	cutAt(&tls.SNI, names)
	if tls.HTTP != nil {
		http := *tls.HTTP
		cutAt(&http.Host, names)
		tls.HTTP = &http
		for _, s := range []*string{&http.Method, &http.Path} {
			cut(s)
		}
	}
	return &short
}

// emit tells of text, JSON that is merged into the Event that head becomes.
func (e *Emitter) emit(head bpf.Event, text []byte) error {
	if len(text) > maxEventText {
		return fmt.Errorf("event of %d bytes: at most %d are told", len(text), maxEventText)
	}
	what := bpf.EmitArgs{E: head, Text: uint64(uintptr(unsafe.Pointer(&text[0]))), Len: uint32(len(text))}
	_, err := e.program.Run(&ebpf.RunOptions{Context: &what})
	runtime.KeepAlive(text)
	if err != nil {
		return fmt.Errorf("tell event: %w", err)
	}
	return nil
}

// Close does nothing to what has been told.
func (e *Emitter) Close() error {
	var errs []error
	if e.control != nil {
		errs = append(errs, unix.Munmap(e.control))
	}
	if e.program != nil {
		errs = append(errs, e.program.Close())
	}
	return errors.Join(errs...)
}

// tellContainer tells who reads that a container comes or goes. That nobody can be told is no reason to refuse it.
func (s *Store) tellContainer(kind uint8, cookie, cgroup uint64) {
	var control bpf.EventControl
	if err := s.maps.EventControl.Lookup(uint32(0), &control); err != nil || control.Any < uint64(bootTime()) {
		return
	}
	info, err := s.info(cgroup)
	if err != nil {
		return
	}
	text, err := marshal(struct {
		Verdict   string `json:"verdict"`
		Direction string `json:"direction"`
		Pod       string `json:"pod"`
		Container string `json:"container"`
		ID        string `json:"containerID"`
		Role      string `json:"role"`
		Runtime   string `json:"runtime"`
		Policy    string `json:"policy"`
		Reason    string `json:"reason"`
		Text      string `json:"text"`
	}{
		Allowed, "", bpf.CString(info.Pod[:]), infoName(info), bpf.CString(info.Id[:]), policy.Role(info.Role).String(),
		bpf.CString(info.Runtime[:]), bpf.CString(info.Policy[:]), EventKinds()[kind], "",
	})
	if err != nil {
		return
	}
	e, err := newEmitter(s.maps, s.program)
	if err != nil {
		return
	}
	defer e.Close()
	_ = e.emit(bpf.Event{Kind: kind, NetnsCookie: cookie, CgroupId: cgroup, Pid: info.Pid}, text)
}
