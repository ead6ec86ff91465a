// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
)

var errEOF = io.EOF

// defaultNonce makes an attempt recognisable when the caller does not.
func defaultNonce() string { return rand.Text() }

// runTCP connects, sends a nonce as a line and reads it back.
func runTCP(_ context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("tcp", flag.ContinueOnError)
	d.flags(fs)
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	res := newResult()
	line := []byte(*nonce + "\n")
	c, sent, err := d.dial(line)
	if err != nil {
		return res, err
	}
	defer c.Close()
	c.report(res)
	if _, err := c.Write(line[sent:]); err != nil {
		return res, err
	}
	// An MSG_FASTOPEN connect may be under way still when its addresses were asked for.
	got, err := bufio.NewReader(c).ReadBytes('\n')
	c.addresses()
	c.report(res)
	if err != nil {
		return res, fmt.Errorf("echo: %w", err)
	}
	if !bytes.Equal(got, line) {
		return res, fmt.Errorf("echo is %q, not %q", got, line)
	}
	return res, nil
}

// get sends one request and returns the response, whose body is still to be read.
func get(d *dialer, path string) (*conn, *http.Response, error) {
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: prober\r\nConnection: close\r\n\r\n", path, d.to)
	c, sent, err := d.dial(request)
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.Write(request[sent:]); err != nil {
		c.Close()
		return nil, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 256<<10), nil)
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("response: %w", err)
	}
	c.addresses()
	return c, resp, nil
}

// runHTTP gets a small page.
func runHTTP(_ context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("http", flag.ContinueOnError)
	d.flags(fs)
	path := fs.String("path", "/", "what to ask for")
	want := fs.String("contains", "", "what the body must contain")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	res := newResult()
	c, resp, err := get(&d, *path)
	if err != nil {
		return res, err
	}
	defer c.Close()
	c.report(res)
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	res.Data["status"], res.Data["body"] = resp.StatusCode, string(body)
	switch {
	case err != nil:
		return res, fmt.Errorf("body: %w", err)
	case resp.StatusCode != http.StatusOK:
		return res, fmt.Errorf("status is %s", resp.Status)
	case !bytes.Contains(body, []byte(*want)):
		return res, fmt.Errorf("body has no %q", *want)
	}
	return res, nil
}

// runDownload gets a file of any size.
func runDownload(_ context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("download", flag.ContinueOnError)
	d.flags(fs)
	path := fs.String("path", "/", "what to ask for")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	res := newResult()
	c, resp, err := get(&d, *path)
	if err != nil {
		return res, err
	}
	defer c.Close()
	c.report(res)
	hash := sha256.New()
	n, err := io.CopyBuffer(hash, resp.Body, make([]byte, 256<<10))
	res.Data["bytes"], res.Data["sha256"] = n, hex.EncodeToString(hash.Sum(nil))
	switch {
	case err != nil:
		return res, fmt.Errorf("body: %w", err)
	case resp.StatusCode != http.StatusOK:
		return res, fmt.Errorf("status is %s", resp.Status)
	}
	return res, nil
}
