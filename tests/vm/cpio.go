// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// newc is a writer of the one archive format that the kernel unpacks: "newc"
// cpio, without hard links. It keeps the first error.
type newc struct {
	out    *bufio.Writer
	inode  uint32
	offset int64
	err    error
}

func newNewc(out io.Writer) *newc {
	return &newc{out: bufio.NewWriterSize(out, 1<<20)}
}

// entry writes one member. mode is the kernel's, type bits included; dev is
// that of a device node. The archive belongs to root, of 1970.
func (w *newc) entry(path string, mode uint32, major, minor uint32, data []byte) {
	w.inode++
	links := 1
	if mode&unix.S_IFMT == unix.S_IFDIR {
		links = 2
	}
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		w.inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(path)+1, 0)
	w.write([]byte(header))
	w.write([]byte(path))
	w.write([]byte{0})
	w.pad()
	w.write(data)
	w.pad()
}

// close ends the archive; the underlying writer is the caller's.
func (w *newc) close() error {
	w.inode = ^uint32(0)
	w.entry("TRAILER!!!", 0, 0, 0, nil)
	if w.err != nil {
		return fmt.Errorf("write initramfs: %w", w.err)
	}
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

func (w *newc) write(data []byte) {
	if w.err != nil {
		return
	}
	var n int
	n, w.err = w.out.Write(data)
	w.offset += int64(n)
}

// pad goes on to the next multiple of four bytes.
func (w *newc) pad() {
	w.write(make([]byte, -w.offset&3))
}

// unixMode is a Go file mode as the kernel writes it.
func unixMode(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	switch {
	case mode.IsDir():
		bits |= unix.S_IFDIR
	case mode&fs.ModeSymlink != 0:
		bits |= unix.S_IFLNK
	case mode&fs.ModeCharDevice != 0:
		bits |= unix.S_IFCHR
	default:
		bits |= unix.S_IFREG
	}
	if mode&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	if mode&fs.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	return bits
}
