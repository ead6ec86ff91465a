// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// An image is the files of a container image, to be written as a tar.
type image struct {
	entries []imageEntry
	dirs    map[string]bool
	command []string // the default one; podman's import has none
}

type imageEntry struct {
	header tar.Header
	source string // file to copy, or
	text   string // contents
}

// dir adds a directory and those above it.
func (i *image) dir(name string, mode int64) {
	name = strings.Trim(path.Clean(name), "/")
	if name == "" || name == "." || i.dirs[name] {
		return
	}
	i.dir(path.Dir(name), 0o755)
	if i.dirs == nil {
		i.dirs = map[string]bool{}
	}
	i.dirs[name] = true
	i.entries = append(i.entries, imageEntry{header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}})
}

// file adds a copy of a file of this machine; a symbolic link is followed.
func (i *image) file(name, source string) {
	i.dir(path.Dir(name), 0o755)
	i.entries = append(i.entries, imageEntry{header: tar.Header{Typeflag: tar.TypeReg, Name: strings.Trim(name, "/"), Mode: 0o755}, source: source})
}

// text adds a small file.
func (i *image) text(name, text string) {
	i.dir(path.Dir(name), 0o755)
	header := tar.Header{Typeflag: tar.TypeReg, Name: strings.Trim(name, "/"), Mode: 0o644, Size: int64(len(text))}
	i.entries = append(i.entries, imageEntry{header: header, text: text})
}

// symlink adds a symbolic link.
func (i *image) symlink(name, target string) {
	i.dir(path.Dir(name), 0o755)
	i.entries = append(i.entries, imageEntry{header: tar.Header{Typeflag: tar.TypeSymlink, Name: strings.Trim(name, "/"), Linkname: target, Mode: 0o777}})
}

// write writes the image as a tar.
func (i *image) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, e := range i.entries {
		if err := e.write(tw); err != nil {
			return fmt.Errorf("write %s: %w", e.header.Name, err)
		}
	}
	return tw.Close()
}

func (e *imageEntry) write(tw *tar.Writer) error {
	header := e.header
	if e.source == "" {
		if err := tw.WriteHeader(&header); err != nil {
			return err
		}
		_, err := io.WriteString(tw, e.text)
		return err
	}
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	header.Size = st.Size()
	if err := tw.WriteHeader(&header); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}

// allImages returns the lab's images by name.
func allImages(prober string) (map[string]*image, error) {
	app, err := appImage(prober)
	if err != nil {
		return nil, err
	}
	haproxy, err := haproxyImage()
	if err != nil {
		return nil, err
	}
	pause, err := pauseImage()
	if err != nil {
		return nil, err
	}
	return map[string]*image{pauseName: pause, AppImage + ":latest": app, SidecarImage + ":latest": haproxy}, nil
}

// appImage has busybox and the prober.
func appImage(prober string) (*image, error) {
	i := &image{}
	busybox := "/bin/busybox"
	if err := wantStatic(busybox, "busybox-static"); err != nil {
		return nil, err
	}
	i.file("/bin/busybox", busybox)
	for _, applet := range []string{"sh", "cat", "ls", "ip", "ps", "sleep", "true", "env", "mount"} {
		i.symlink("/bin/"+applet, "busybox")
	}
	i.file("/bin/prober", prober)
	i.text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\nproxy:x:1337:1337::/:/bin/sh\n")
	i.dir("/tmp", 0o1777)
	return i, nil
}

// pauseImage has what podman makes its infra containers from: it waits, and reaps the orphans of a pod with one PID namespace.
func pauseImage() (*image, error) {
	const program = "/usr/bin/catatonit"
	if err := wantStatic(program, "catatonit"); err != nil {
		return nil, err
	}
	i := &image{command: []string{program, "-P"}}
	i.file(program, program)
	return i, nil
}

// wantStatic returns nil if program, of a Debian package, needs no libraries.
func wantStatic(program, pkg string) error {
	needed, err := neededBy(program)
	if err != nil {
		return fmt.Errorf("%w (install %s)", err, pkg)
	}
	if len(needed) > 0 {
		return fmt.Errorf("%s is not static (install %s)", program, pkg)
	}
	return nil
}

// haproxyImage has Debian's HAProxy and the libraries that it needs.
func haproxyImage() (*image, error) {
	const program = "/usr/sbin/haproxy"
	libraries, err := sharedObjects(program)
	if err != nil {
		return nil, err
	}
	i := &image{}
	i.file(program, program)
	for _, library := range libraries {
		i.file(library, library)
	}
	i.text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
	i.dir("/tmp", 0o1777)
	i.dir("/etc/haproxy", 0o755)
	return i, nil
}
