// SPDX-License-Identifier: Apache-2.0

package judge

import "fmt"

// The limits of a chunked body (RFC 9112, 7.1).
const (
	maxDigits     = 8 // of a chunk's size: beyond 32 bits, some servers drop the upper ones
	maxChunk      = 1<<31 - 1
	maxExtensions = 2 << 10 // bytes in one body; net/http takes lines of 4 KiB
)

// chunks follows a chunked body. It keeps nothing of it but trailers.
type chunks struct {
	state      func(*chunks, []byte) (int, bool, string)
	size       int64 // of this chunk: what is left of it
	digits     int
	extensions int
	trailers   lines
}

func newChunks() *chunks {
	return &chunks{state: (*chunks).sizeLine, trailers: lines{most: MaxTrailers, empty: true}}
}

// add takes what belongs to the body. ready is how many bytes, with those of earlier calls that were held, may go on: a
// trailer waits for the end of all. Where it returns a problem, it is about the byte after those.
func (c *chunks) add(p []byte) (n, ready int, done bool, problem string) {
	for n < len(p) && !done && problem == "" {
		held := len(c.trailers.buf)
		var used int
		used, done, problem = c.state(c, p[n:])
		n += used
		switch {
		case problem != "":
		case done:
			ready += held + used
		case len(c.trailers.buf) == 0:
			ready += used
		}
	}
	return n, ready, done, problem
}

// sizeLine reads one byte of the line before a chunk.
func (c *chunks) sizeLine(p []byte) (int, bool, string) {
	switch b := p[0]; {
	case hexDigit(b) >= 0:
		c.size = c.size<<4 | int64(hexDigit(b))
		if c.digits++; c.digits > maxDigits || c.size > maxChunk {
			return 0, false, "the size of a chunk is beyond 31 bits"
		}
	case c.digits == 0:
		return 0, false, "a chunk has no size in hexadecimal"
	case b == '\r':
		c.state = (*chunks).sizeEnd
	case b == ';':
		c.state = (*chunks).extension
		return c.extension(p)
	default:
		return 0, false, fmt.Sprintf("the character 0x%02x follows the size of a chunk", b)
	}
	return 1, false, ""
}

func (c *chunks) extension(p []byte) (int, bool, string) {
	switch b := p[0]; {
	case b == '\r':
		c.state = (*chunks).sizeEnd
	case b < ' ' && b != '\t' || b >= 0x7f:
		return 0, false, fmt.Sprintf("a chunk extension has the character 0x%02x", b)
	default:
		if c.extensions++; c.extensions > maxExtensions {
			return 0, false, fmt.Sprintf("the chunk extensions of a body have more than %d bytes", maxExtensions)
		}
	}
	return 1, false, ""
}

func (c *chunks) sizeEnd(p []byte) (int, bool, string) {
	if p[0] != '\n' {
		return 0, false, "the size of a chunk has a CR that no LF follows"
	}
	c.digits = 0
	c.state = (*chunks).data
	if c.size == 0 {
		c.state = (*chunks).trailer
	}
	return 1, false, ""
}

func (c *chunks) data(p []byte) (int, bool, string) {
	n := min(c.size, int64(len(p)))
	if c.size -= n; c.size == 0 {
		c.state = (*chunks).dataCR
	}
	return int(n), false, ""
}

func (c *chunks) dataCR(p []byte) (int, bool, string) {
	c.state = (*chunks).dataLF
	return c.want(p, '\r')
}

func (c *chunks) dataLF(p []byte) (int, bool, string) {
	c.state = (*chunks).sizeLine
	return c.want(p, '\n')
}

func (c *chunks) want(p []byte, b byte) (int, bool, string) {
	if p[0] != b {
		return 0, false, "a chunk is longer than its size says"
	}
	return 1, false, ""
}

func (c *chunks) trailer(p []byte) (int, bool, string) {
	n, done, problem := c.trailers.add(p)
	if problem != "" {
		return n, false, "trailers: " + problem
	}
	if !done {
		return n, false, ""
	}
	for _, line := range c.trailers.take() {
		f, problem := parseField(line)
		if problem == "" {
			problem = trailerProblem(f.name)
		}
		if problem != "" {
			return n, false, "trailers: " + problem
		}
	}
	return n, true, ""
}

// hexDigit returns the value of a digit, or -1.
func hexDigit(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b - 'a' + 10)
	case 'A' <= b && b <= 'F':
		return int(b - 'A' + 10)
	}
	return -1
}
