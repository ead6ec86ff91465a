// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidegate/cgroups"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func record(t *testing.T, dir string, size int64) *Recorder {
	t.Helper()
	r, err := NewRecorder(dir, size)
	must(t, err)
	return r
}

// at is an event of that number, a second after the one before.
func at(n int) *cgroups.Event {
	return &cgroups.Event{Time: time.Unix(1_000_000+int64(n), 0).UTC(), Kind: "connect", Verdict: cgroups.Denied, Pod: "shop", PID: n, Reason: "udp"}
}

// wantRecorded fails the test unless the record has events first to last, and nothing else.
func wantRecorded(t *testing.T, dir string, first, last int, lost uint64) {
	t.Helper()
	list, n, err := Recorded(dir, time.Time{}, 0)
	must(t, err)
	if len(list) != last-first+1 || n != lost {
		t.Fatalf("%d events, %d lost, want %d and %d", len(list), n, last-first+1, lost)
	}
	for i, v := range list {
		if v.PID != first+i || !v.Time.Equal(at(first+i).Time) || v.Pod != "shop" {
			t.Fatalf("event %d is %+v", first+i, v)
		}
	}
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "events")
	r := record(t, dir, MinRecordSize)
	if _, err := NewRecorder(dir, MinRecordSize); err == nil || !strings.Contains(err.Error(), "another exporter") {
		t.Errorf("a second recorder: %v", err)
	}
	for i := 1; i <= 10; i++ {
		r.Event(at(i))
		if i == 5 {
			r.Lost(7)
		}
	}
	must(t, r.Close())
	wantRecorded(t, dir, 1, 10, 7)
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Dir(dir): 0o755, filepath.Join(dir, fmt.Sprintf(recordName, 1)): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	for _, c := range []struct {
		since       int
		last        int
		first, size int
	}{{0, 3, 8, 3}, {4, 0, 4, 7}, {4, 2, 9, 2}, {9, 5, 9, 2}, {11, 5, 0, 0}, {0, 50, 1, 10}} {
		list, _, err := Recorded(dir, at(c.since).Time, c.last)
		must(t, err)
		if len(list) != c.size || c.size > 0 && list[0].PID != c.first {
			t.Errorf("since %d, the last %d: %d events: %+v", c.since, c.last, len(list), list)
		}
	}
	// Of those that were lost before what is asked for nobody wants to know.
	if _, lost, err := Recorded(dir, time.Now().Add(time.Hour), 0); err != nil || lost != 0 {
		t.Errorf("%d are lost in the future: %v", lost, err)
	}
	if _, _, err := Recorded(filepath.Join(dir, "none"), time.Time{}, 0); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "sidegate exporter") {
		t.Errorf("nothing recorded: %v", err)
	}
}

// A recorder goes on where one before it was killed, in the middle of a line.
func TestRecordGoesOn(t *testing.T) {
	dir := t.TempDir()
	r := record(t, dir, MinRecordSize)
	for i := 1; i <= 3; i++ {
		r.Event(at(i))
	}
	must(t, r.Close())
	path := filepath.Join(dir, fmt.Sprintf(recordName, 1))
	whole, err := os.ReadFile(path)
	must(t, err)
	for _, rest := range []string{`{"time":"2026-01-02T03:04:05Z","ki`, "", strings.Repeat("x", 3*recordBuffer)} {
		must(t, os.WriteFile(path, append(whole[:len(whole):len(whole)], rest...), 0o600))
		wantRecorded(t, dir, 1, 3, 0)
		r = record(t, dir, MinRecordSize)
		r.Event(at(4))
		must(t, r.Close())
		wantRecorded(t, dir, 1, 4, 0)
	}
	must(t, os.WriteFile(path, []byte(strings.Repeat("y", recordBuffer+1)), 0o600))
	r = record(t, dir, MinRecordSize)
	r.Event(at(1))
	must(t, r.Close())
	wantRecorded(t, dir, 1, 1, 0)
}

// However many events come, the last ones stay, in no more than the size.
func TestRecordIsBounded(t *testing.T) {
	dir := t.TempDir()
	const n = 30_000 // more than two megabytes
	r := record(t, dir, MinRecordSize)
	for i := 1; i <= n; i++ {
		r.Event(at(i))
		if i == n/2 { // and goes on
			must(t, r.Close())
			r = record(t, dir, MinRecordSize)
		}
	}
	must(t, r.Close())
	entries, err := os.ReadDir(dir)
	must(t, err)
	size := int64(0)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		size += info.Size()
	}
	if size > MinRecordSize || size < MinRecordSize*3/4 || len(entries) < 2 {
		t.Errorf("%d bytes in %d files", size, len(entries))
	}
	list, lost, err := Recorded(dir, time.Time{}, 0)
	must(t, err)
	if lost != 0 {
		t.Errorf("%d are lost", lost)
	}
	wantRecorded(t, dir, n-len(list)+1, n, 0)
	if got, _, err := Recorded(dir, time.Time{}, 100); err != nil || len(got) != 100 || got[99].PID != n {
		t.Errorf("the last 100: %d, %v", len(got), err)
	}
}

// On a disk that is full nothing is half written, what is missing is counted, and told when there is room again.
func TestRecordOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	dir := t.TempDir()
	must(t, syscall.Mount("none", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, syscall.Unmount(dir, 0)) })
	r := record(t, filepath.Join(dir, "events"), MinRecordSize)
	fill := filepath.Join(dir, "fill")
	must(t, os.WriteFile(fill, make([]byte, 200<<10), 0o600))
	n := 0
	for dropped := uint64(0); dropped == 0 && n < 100_000; dropped, _ = r.Dropped() {
		n++
		r.Event(at(n))
	}
	dropped, err := r.Dropped()
	if dropped == 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%d of %d are dropped, %v", dropped, n, err)
	}
	must(t, os.Remove(fill))
	r.Event(at(n + 1))
	must(t, r.Close())
	list, lost, err := Recorded(filepath.Join(dir, "events"), time.Time{}, 0)
	must(t, err)
	if lost != dropped || len(list)+int(lost) != n+1 || list[len(list)-1].PID != n+1 {
		t.Errorf("%d events and %d lost of %d, %d were dropped", len(list), lost, n+1, dropped)
	}
}

func TestRecordIsPrivate(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	must(t, os.Mkdir(other, 0o700))
	link := filepath.Join(dir, "link")
	must(t, os.Symlink(other, link))
	if _, err := NewRecorder(link, MinRecordSize); err == nil {
		t.Error("a link is followed")
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(other, 1, 1))
		if _, err := NewRecorder(other, MinRecordSize); err == nil {
			t.Error("somebody else's directory is taken")
		}
	}
	open := filepath.Join(dir, "open")
	must(t, os.Mkdir(open, 0o755))
	must(t, record(t, open, MinRecordSize).Close())
	if info, err := os.Stat(open); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := NewRecorder(open, MinRecordSize-1); err == nil {
		t.Error("a size for nothing is taken")
	}
}

func BenchmarkRecord(b *testing.B) {
	r, err := NewRecorder(b.TempDir(), 64<<20)
	must(b, err)
	v := at(1)
	for b.Loop() {
		r.Event(v)
	}
	must(b, r.Close())
}
