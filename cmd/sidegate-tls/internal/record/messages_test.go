// SPDX-License-Identifier: Apache-2.0

package record

import (
	"fmt"
	"strings"
	"testing"
)

// msg makes a handshake message.
func msg(t MessageType, body string) string {
	return string([]byte{byte(t), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}) + body
}

// TestMessages cuts a flight everywhere.
func TestMessages(t *testing.T) {
	flight := msg(MessageServerHello, "hello") + msg(11, strings.Repeat("c", 300)) + msg(14, "") + msg(MessageFinished, "f")
	const want = "[{2 hello} {11 300} {14 } {20 f}]"
	for a := 1; a < len(flight); a++ {
		for _, b := range []int{a + 1, a + 2, len(flight) - 1, len(flight)} {
			var m Messages
			var got []string
			var all []Message
			for _, part := range []string{flight[:a], flight[a:max(a, min(b, len(flight)))], flight[max(a, min(b, len(flight))):]} {
				if part == "" {
					continue
				}
				record := []byte(part)
				whole, err := m.Add(record)
				if err != nil {
					t.Fatal(err)
				}
				clear(record) // which is not kept
				all = append(all, whole...)
			}
			for _, one := range all {
				text := string(one.Body)
				if len(text) > 9 {
					text = fmt.Sprint(len(strings.Trim(text, "c")) + strings.Count(text, "c"))
				}
				got = append(got, fmt.Sprintf("{%d %s}", one.Type, text))
			}
			if s := "[" + strings.Join(got, " ") + "]"; s != want || m.Partial() {
				t.Fatalf("cut at %d and %d: %s, partial %v", a, b, s, m.Partial())
			}
		}
	}
}

func TestMessagesPartial(t *testing.T) {
	var m Messages
	for i, part := range []string{"\x02", "\x00\x00\x02", "a"} {
		if whole, err := m.Add([]byte(part)); err != nil || len(whole) > 0 || !m.Partial() {
			t.Fatalf("part %d: %v, %v, %v", i, whole, err, m.Partial())
		}
	}
	if whole, err := m.Add([]byte("b\x04")); err != nil || len(whole) != 1 || string(whole[0].Body) != "ab" || !m.Partial() {
		t.Fatalf("%v, %v, %v", whole, err, m.Partial())
	}
}

func TestMessagesErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		records []string
		alert   Alert
	}{
		"empty record":                {[]string{""}, UnexpectedMessage},
		"empty in between":            {[]string{"\x02\x00", ""}, UnexpectedMessage},
		"oversize record":             {[]string{msg(MessageServerHello, strings.Repeat("x", maxPlaintext-3))}, RecordOverflow},
		"oversize message":            {[]string{"\x02\x01\x00\x01"}, IllegalParameter},
		"largest message":             {[]string{"\x02\xff\xff\xff"}, IllegalParameter},
		"after another":               {[]string{msg(1, "x") + "\x02\x01\x00\x01"}, IllegalParameter},
		"key update of two bytes":     {[]string{msg(MessageKeyUpdate, "\x00\x00")}, IllegalParameter},
		"key update of none":          {[]string{msg(MessageKeyUpdate, "")}, IllegalParameter},
		"key update of 2":             {[]string{msg(MessageKeyUpdate, "\x02")}, IllegalParameter},
		"key update, then a message":  {[]string{msg(MessageKeyUpdate, "\x00") + msg(MessageNewSessionTicket, "t")}, UnexpectedMessage},
		"key update, then a byte":     {[]string{msg(MessageKeyUpdate, "\x00") + "\x04"}, UnexpectedMessage},
		"key update in two, then one": {[]string{msg(MessageKeyUpdate, "\x00")[:3], msg(MessageKeyUpdate, "\x00")[3:] + "\x04"}, UnexpectedMessage},
		"key update twice":            {[]string{msg(MessageKeyUpdate, "\x00") + msg(MessageKeyUpdate, "\x00")}, UnexpectedMessage},
	} {
		var m Messages
		for i, r := range tt.records {
			whole, err := m.Add([]byte(r))
			if last := i == len(tt.records)-1; !last && err != nil || last && (alertOf(t, err) != tt.alert || whole != nil) {
				t.Errorf("%s: record %d: %v, %v", name, i, whole, err)
			}
		}
	}
}

func TestKeyUpdateAndTicket(t *testing.T) {
	var m Messages
	ticket, update := msg(MessageNewSessionTicket, "ticket"), msg(MessageKeyUpdate, "\x01")
	whole, err := m.Add([]byte(ticket + ticket + update[:2]))
	if err != nil || len(whole) != 2 || whole[0].Type != MessageNewSessionTicket {
		t.Fatalf("%v, %v", whole, err)
	}
	whole, err = m.Add([]byte(update[2:]))
	if err != nil || len(whole) != 1 || whole[0].Type != MessageKeyUpdate || whole[0].Body[0] != 1 || m.Partial() {
		t.Fatalf("%v, %v", whole, err)
	}
}

// The largest message, in the smallest records, costs no more memory than its size.
func TestMessagesLargest(t *testing.T) {
	large := msg(MessageServerHello, strings.Repeat("x", maxMessage))
	got := testing.AllocsPerRun(1, func() {
		var m Messages
		for i := range len(large) {
			whole, err := m.Add([]byte(large[i : i+1]))
			if err != nil || (len(whole) == 1) != (i == len(large)-1) {
				t.Fatalf("byte %d: %d, %v", i, len(whole), err)
			}
		}
	})
	if got > 100 {
		t.Errorf("%v allocations", got)
	}
}
