// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
)

// DefaultRecordDir is where events are recorded, and read from, where nothing else is said.
const DefaultRecordDir = "/run/sidegate/events"

const (
	recordSegments = 8 // files that share the size
	// MinRecordSize is the least size of a record, in bytes.
	MinRecordSize = 1 << 20
	RecordPause   = 100 * time.Millisecond // how long a line may wait to be written
	recordBuffer  = 64 << 10               // or so many bytes of lines
)

// Recorder writes events as lines of JSON to a directory that is root's alone: the last ones that fit into a size. It
// owns the directory until Close: there is one recorder for each. Its methods may be called at the same time.
type Recorder struct {
	dir     *os.File // locked
	segment int64    // size of a file

	mu      sync.Mutex
	files   []recordFile // that are there, the oldest first; the last one is open
	open    *os.File
	waiting bytes.Buffer  // lines
	enc     *json.Encoder // to waiting
	lines   uint64        // in waiting
	dropped uint64        // lines that could not be written
	unsaid  uint64        // of them, those that the record does not tell of yet
	err     error         // of the last attempt to write

	stop   chan struct{}
	ticker sync.WaitGroup
}

// recordFile is one file of a record. Names have a number, so that they sort.
type recordFile struct {
	number int64
	size   int64
}

const recordName = "events-%012d.jsonl"

// lostLine is what a record has where events are missing.
type lostLine struct {
	Kind string    `json:"kind"`
	Time time.Time `json:"time"`
	Lost uint64    `json:"lost"`
}

const kindLost = "lost"

// NewRecorder goes on with what is in dir, which it makes if it is not there, with size bytes at most. Of a line that was
// half written when the machine, or the recorder before, went away nothing stays.
func NewRecorder(dir string, size int64) (_ *Recorder, err error) {
	if size < MinRecordSize {
		return nil, fmt.Errorf("record events in %d bytes: %d are the least", size, MinRecordSize)
	}
	if err := makePrivate(dir); err != nil {
		return nil, err
	}
	r := &Recorder{segment: size / recordSegments, stop: make(chan struct{})}
	r.enc = json.NewEncoder(&r.waiting)
	r.enc.SetEscapeHTML(false)
	if r.dir, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("open directory for events: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.dir.Close())
		}
	}()
	if err := unix.Flock(int(r.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: another exporter records there, name another directory by --record: %w", dir, err)
	}
	if r.files, err = recordFiles(dir); err != nil {
		return nil, err
	}
	if err := r.resume(); err != nil {
		return nil, err
	}
	r.ticker.Go(r.tick)
	return r, nil
}

// makePrivate makes a directory for root alone. Those above are for everybody to pass.
func makePrivate(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make directory for events: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory for events: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at directory for events: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("record events in %s: it is no directory, or somebody else's: remove it, or name another one", dir)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("keep events private: %w", err)
	}
	return nil
}

// recordFiles lists them, the oldest first. What has another name is not looked at.
func recordFiles(dir string) (list []recordFile, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list recorded events: %w", err)
	}
	for _, e := range entries {
		var f recordFile
		if _, err := fmt.Sscanf(e.Name(), recordName, &f.number); err != nil || fmt.Sprintf(recordName, f.number) != e.Name() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was just removed, being the oldest
		}
		if err != nil {
			return nil, fmt.Errorf("list recorded events: %w", err)
		}
		f.size = info.Size()
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b recordFile) int { return cmp.Compare(a.number, b.number) })
	return list, nil
}

func (r *Recorder) path(f recordFile) string {
	return filepath.Join(r.dir.Name(), fmt.Sprintf(recordName, f.number))
}

// resume opens the last file, without what follows its last whole line, or the first one.
func (r *Recorder) resume() error {
	if len(r.files) == 0 {
		return r.rotate()
	}
	last := &r.files[len(r.files)-1]
	f, err := os.OpenFile(r.path(*last), os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open recorded events: %w", err)
	}
	if last.size, err = wholeLines(f, last.size); err == nil {
		err = f.Truncate(last.size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("read recorded events: %w", err), f.Close())
	}
	r.open = f
	return nil
}

// wholeLines is the size of a file without the rest of a line at its end.
func wholeLines(f io.ReaderAt, size int64) (int64, error) {
	b := make([]byte, recordBuffer)
	for size > 0 {
		from := max(0, size-int64(len(b)))
		n, err := f.ReadAt(b[:size-from], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		size = from
	}
	return 0, nil
}

// rotate begins a new file, after the oldest ones have made room for it.
func (r *Recorder) rotate() error {
	if r.open != nil {
		if err := r.open.Close(); err != nil {
			return fmt.Errorf("close recorded events: %w", err)
		}
		r.open = nil
	}
	total := int64(0)
	for _, f := range r.files {
		total += f.size
	}
	for len(r.files) > 0 && total > (recordSegments-1)*r.segment {
		if err := os.Remove(r.path(r.files[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove recorded events: %w", err)
		}
		total -= r.files[0].size
		r.files = r.files[1:]
	}
	next := recordFile{number: 1}
	if n := len(r.files); n > 0 {
		next.number = r.files[n-1].number + 1
	}
	f, err := os.OpenFile(r.path(next), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make file for events: %w", err)
	}
	r.open, r.files = f, append(r.files, next)
	return nil
}

// Event records one, soon. It does not keep v.
func (r *Recorder) Event(v *cgroups.Event) { r.line(v) }

// Lost records that events are missing.
func (r *Recorder) Lost(n uint64) { r.line(lostLine{kindLost, time.Now(), n}) }

func (r *Recorder) line(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.enc.Encode(v); err != nil { // what is written is whole lines
		r.err = fmt.Errorf("write event: %w", err)
		r.dropped++
		return
	}
	if r.lines++; r.waiting.Len() >= recordBuffer {
		r.flush()
	}
}

// Dropped is how many lines could not be written, and why not the last time that it was tried; nil if it was done.
func (r *Recorder) Dropped() (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped, r.err
}

func (r *Recorder) tick() {
	t := time.NewTicker(RecordPause)
	defer t.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-t.C:
			r.mu.Lock()
			r.flush()
			r.mu.Unlock()
		}
	}
}

// flush writes the lines that wait. Those that cannot be written are dropped, counted, and told of in the record when it
// goes on.
func (r *Recorder) flush() {
	if r.lines == 0 {
		return
	}
	if r.unsaid > 0 {
		_ = r.enc.Encode(lostLine{kindLost, time.Now(), r.unsaid}) // numbers and a time
	}
	if r.err = r.write(); r.err == nil {
		r.unsaid = 0
	} else {
		r.dropped += r.lines
		r.unsaid += r.lines
	}
	r.waiting.Reset()
	r.lines = 0
}

func (r *Recorder) write() error {
	if r.open == nil || r.files[len(r.files)-1].size > 0 && r.files[len(r.files)-1].size+int64(r.waiting.Len()) > r.segment {
		if err := r.rotate(); err != nil {
			return err
		}
	}
	f := &r.files[len(r.files)-1]
	n, err := r.open.Write(r.waiting.Bytes())
	if err != nil {
		// Half a line would spoil the next one.
		return errors.Join(fmt.Errorf("write events (%d bytes of %d): %w", n, r.waiting.Len(), err), r.open.Truncate(f.size))
	}
	f.size += int64(n)
	return nil
}

// Close writes what is left.
func (r *Recorder) Close() error {
	close(r.stop)
	r.ticker.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flush()
	errs := []error{r.err}
	if r.open != nil {
		errs = append(errs, r.open.Close())
	}
	return errors.Join(append(errs, r.dir.Close())...)
}

// Recorded returns what was recorded in dir, the oldest first: not before since, unless that is zero, and if last is above
// zero, no more than so many, the last ones. lost is how many events are missing among them. Lines that are no events, as
// half a one at the end, are skipped. If nothing was ever recorded there, the error is an fs.ErrNotExist.
func Recorded(dir string, since time.Time, last int) (list []cgroups.Event, lost uint64, err error) {
	files, err := recordFiles(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%w: nothing is recorded there; `sidegate exporter --record` does", err)
	}
	if err != nil {
		return nil, 0, err
	}
	var losses []lostLine
	for _, f := range slices.Backward(files) {
		if last > 0 && len(list) >= last {
			break
		}
		events, lines, whole, err := readRecord(filepath.Join(dir, fmt.Sprintf(recordName, f.number)), since)
		if err != nil {
			return nil, 0, err
		}
		list, losses = append(events, list...), append(lines, losses...)
		if !whole { // what is in older ones is older
			break
		}
	}
	if over := len(list) - last; last > 0 && over > 0 {
		list = slices.Clip(list[over:])
	}
	if last > 0 && len(list) == last && since.Before(list[0].Time) {
		since = list[0].Time
	}
	for _, l := range losses {
		if !l.Time.Before(since) {
			lost += l.Lost
		}
	}
	return list, lost, nil
}

// readRecord reads one file. whole is false if all that it has is from before since.
func readRecord(path string, since time.Time) (list []cgroups.Event, losses []lostLine, whole bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, false, nil // being the oldest, it was just removed
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("open recorded events: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, false, fmt.Errorf("read recorded events: %w", err)
	}
	if info.ModTime().Add(time.Second).Before(since) { // an event is written after it happened; that clock is coarse
		return nil, nil, false, nil
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, false, fmt.Errorf("read recorded events: %w", err)
	}
	for line := range bytes.Lines(b) {
		var v cgroups.Event
		var l lostLine
		switch {
		case !bytes.HasSuffix(line, []byte("\n")), json.Unmarshal(line, &v) != nil, v.Kind == "":
		case v.Kind == kindLost:
			if json.Unmarshal(line, &l) == nil {
				losses = append(losses, l)
			}
		case !v.Time.Before(since):
			list = append(list, v)
		}
	}
	return list, losses, true, nil
}

var (
	recordBytesDesc   = desc("record_bytes", "Size of the recorded events.")
	recordDroppedDesc = desc("record_dropped_total", "Events that could not be written to the record.")
)

// Describe implements prometheus.Collector.
func (r *Recorder) Describe(ch chan<- *prometheus.Desc) {
	ch <- recordBytesDesc
	ch <- recordDroppedDesc
}

// Collect implements prometheus.Collector.
func (r *Recorder) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	size := int64(0)
	for _, f := range r.files {
		size += f.size
	}
	ch <- gauge(recordBytesDesc, float64(size))
	ch <- counter(recordDroppedDesc, r.dropped)
}
