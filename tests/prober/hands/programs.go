// SPDX-License-Identifier: Apache-2.0

package hands

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"
)

// What Go programs do with connections: its runtime has them in an edge-triggered epoll, and copies between them by splice(2) if it can.

// serve listens, and does for each connection what its first line says:
//
//	echo           sends back all that comes
//	sum PAUSE      reads to the end, with a pause before each read, and answers with the hash
//	send SIZE      sends so much, and ends
//	reset          reads a line, and resets the connection
func serve(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(4 * Patience))
				_ = answer(c.(*net.TCPConn)) // the client sees it
			}()
		}
	}()
	return nil
}

func answer(c *net.TCPConn) error {
	r := bufio.NewReaderSize(c, 1<<16)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch verb {
	case "echo":
		_, err := r.WriteTo(c) // ends in io.Copy, which splices
		return err
	case "sum":
		pause, err := time.ParseDuration(arg)
		if err != nil {
			return err
		}
		h, buf := sha256.New(), make([]byte, 1<<16)
		for {
			time.Sleep(pause)
			n, err := r.Read(buf)
			h.Write(buf[:n])
			if errors.Is(err, io.EOF) {
				_, err = io.WriteString(c, hex.EncodeToString(h.Sum(nil)))
				return err
			}
			if err != nil {
				return err
			}
		}
	case "send":
		var size int
		if _, err := fmt.Sscan(arg, &size); err != nil {
			return err
		}
		_, err := stream(c, size, 1<<16)
		return err
	case "reset":
		if _, err := r.ReadString('\n'); err != nil {
			return err
		}
		return c.SetLinger(0)
	}
	return errors.New("unknown " + line)
}

// stream writes the bytes of Fill.
func stream(w io.Writer, size, chunk int) (n int, err error) {
	buf := make([]byte, min(chunk, max(size, 1)))
	for n < size {
		b := buf[:min(len(buf), size-n)]
		Fill(b, n, 0)
		k, err := w.Write(b)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// counter looks whether what is written to it are the bytes of Fill.
type counter struct {
	n     int
	wrong bool
	want  []byte
}

func (c *counter) Write(b []byte) (int, error) {
	if len(c.want) < len(b) {
		c.want = make([]byte, len(b))
	}
	Fill(c.want[:len(b)], c.n, 0)
	c.wrong = c.wrong || !bytes.Equal(b, c.want[:len(b)])
	c.n += len(b)
	return len(b), nil
}

// talk is a client of serve, by way of Addr. Size bytes go out, in writes of Chunk.
func talk(o Order) (a Answer, err error) {
	conn, err := net.DialTimeout("tcp", o.Addr, Patience)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(4 * Patience))
	if _, err := io.WriteString(c, o.Mode+"\n"); err != nil {
		return a, err
	}
	written := make(chan string, 1)
	go func() {
		chunk := o.Chunk
		if chunk == 0 {
			chunk = 1 << 16
		}
		n, err := stream(c, o.Size, chunk)
		if err == nil && o.Flags == 0 {
			err = c.CloseWrite()
		}
		written <- strings.TrimSpace(fmt.Sprintf("wrote %d %s", n, ErrName(err)))
	}()
	switch verb, _, _ := strings.Cut(o.Mode, " "); verb {
	case "sum", "reset":
		got, err := io.ReadAll(c)
		a.N, a.Data, a.Text = len(got), got, ErrName(err)
	default:
		got := counter{}
		_, err := io.CopyBuffer(&got, struct{ io.Reader }{c}, make([]byte, 1<<16))
		a.N, a.Text = got.n, ErrName(err)
		if got.wrong {
			a.Text += " other bytes"
		}
	}
	a.Text = strings.TrimSpace(a.Text + " " + <-written)
	return a, nil
}

// crowd opens connections to an echo one after the other, and closes each when its word came back.
func crowd(o Order) (a Answer, err error) {
	failed := map[string]int{}
	for range o.Size {
		if err := greet(o.Addr, o.Mode); err != nil {
			failed[ErrName(err)]++
			continue
		}
		a.N++
	}
	if len(failed) > 0 {
		a.Text = fmt.Sprint(failed)
	}
	return a, nil
}

func greet(addr, mode string) error {
	c, err := net.DialTimeout("tcp", addr, Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	if mode == "reset" {
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			return err
		}
	}
	const text = "echo\nhello"
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len("hello"))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "hello" {
		return fmt.Errorf("echo is %q", got)
	}
	return nil
}

// get asks an HTTP server for the URL in Addr, Size times, and tells of the bodies, and of the connections that it took.
func get(o Order) (a Answer, err error) {
	// One at a time: else it opens another while the first is on its way back.
	transport := &http.Transport{DisableCompression: true, MaxConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 4 * Patience}
	h, opened := sha256.New(), 0
	for range o.Size {
		req, err := http.NewRequest(http.MethodGet, o.Addr, nil)
		if err != nil {
			return a, err
		}
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if !i.Reused {
				opened++
			}
		}}))
		resp, err := client.Do(req)
		if err != nil {
			return a, err
		}
		n, err := io.Copy(h, resp.Body)
		resp.Body.Close()
		a.N += int(n)
		if err != nil || resp.StatusCode != http.StatusOK {
			return a, errors.Join(err, errors.New(resp.Status))
		}
	}
	a.Text = fmt.Sprintf("%d connections, %x", opened, h.Sum(nil)[:8])
	return a, nil
}
