// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"golang.org/x/sys/unix"
	"sidegate/observe/cli"
)

func newBugtool(e *env) *cobra.Command {
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "bugtool",
		Short: "Write an archive with what a maintainer needs, and without secrets",
		Long: "Write a tar.gz with the state, the checks of doctor, the policies, what runs and what the kernel and the runtimes say.\n" +
			"Passwords, tokens and keys are taken out, traffic keys of TLS and environments are never read. Look through it before you send it.\n" +
			"What cannot be collected is in its errors.txt, and no failure.",
		Example: "  sidegate bugtool\n  sidegate bugtool -o - | ssh desk 'cat >sidegate.tar.gz'",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return cli.Usage(fmt.Errorf("timeout %s: write a time above 0", timeout))
			}
			if os.Geteuid() != 0 {
				return errors.New("read the state in the kernel: only root may: run `sudo sidegate bugtool`")
			}
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			now := time.Now().UTC()
			name := "sidegate-bugtool-" + now.Format("20060102T150405Z")
			if output == "" {
				output = name + ".tar.gz"
			}
			write := func(w io.Writer) (string, error) {
				b := newBundle()
				collect(ctx, timeout, b, collectors(e))
				if err := ctx.Err(); err != nil {
					return "", errors.New("collect: interrupted: nothing is written")
				}
				return b.summary(), b.write(w, name, now)
			}
			if output == "-" {
				_, err := write(e.stdout)
				return err
			}
			summary, err := writeNew(output, write)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.stdout, "%s: %s. Look through it before you send it.\n", output, summary)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write, which must not be there yet, or - (default sidegate-bugtool-TIME.tar.gz)")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "for all of it; what is not collected by then is left out")
	return cmd
}

// writeNew makes a file that is root's alone, and is there only when it is whole. It
// takes nobody's place, not that of a link either.
func writeNew(path string, write func(io.Writer) (string, error)) (summary string, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) { // before it takes the time
		if err == nil {
			err = fs.ErrExist
		}
		return "", fmt.Errorf("write archive %s: %w: name another file by -o", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".sidegate-bugtool-*") // O_EXCL, 0600
	if err != nil {
		return "", fmt.Errorf("make archive: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove unfinished archive: %w", rerr))
		}
	}()
	if summary, err = write(f); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", fmt.Errorf("write archive: %w", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return "", fmt.Errorf("write archive %s: %w: name another file by -o", path, err)
	}
	return summary, nil
}

const (
	maxFile   = 4 << 20  // bytes of a file
	maxBundle = 64 << 20 // bytes of all
)

// write writes the archive: one directory, which says when, and not where.
func (b *bundle) write(w io.Writer, dir string, now time.Time) error {
	files, errs := b.close()
	files["errors.txt"] = []byte(strings.Join(errs, "\n") + "\n")
	if len(errs) == 0 {
		files["errors.txt"] = []byte("none\n")
	}
	files["README"] = readme()
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: dir + "/" + name, Size: int64(len(files[name])), Mode: 0o600, ModTime: now.Truncate(time.Second)}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("write archive: %s: %w", name, err)
		}
		if _, err := io.Copy(t, bytes.NewReader(files[name])); err != nil {
			return fmt.Errorf("write archive: %s: %w", name, err)
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}
