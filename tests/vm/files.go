// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// File is one file of a VM's root. Exactly one of Host, Data, Link and Dir
// says what it is; none of them is an empty regular file.
type File struct {
	// Path is absolute, in the guest. As in Debian, /bin, /sbin, /lib and
	// /lib64 are the directories of those names in /usr.
	Path string
	// Host is a regular file on the host, read when the VM is built.
	Host string
	// Data is the content itself.
	Data []byte
	// Link is the target of a symbolic link.
	Link string
	// Dir makes a directory; missing parents of a file need no mention.
	Dir bool
	// Mode has the permission bits; 0 means Host's own, 0755 for a directory
	// and 0644 for Data.
	Mode fs.FileMode
}

// libraryDirs is where Debian's loader looks.
var libraryDirs = []string{
	"/usr/local/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib", "/lib64",
}

// HostProgram is a program of the host, with the loader and the shared
// libraries that its ELF headers ask for (not those that it opens by itself).
// name is a path, or is looked up in PATH and the sbin directories; the
// program has the same path in the guest.
func HostProgram(name string) ([]File, error) {
	file, err := lookProgram(name)
	if err != nil {
		return nil, err
	}
	libraries := map[string]string{}
	if err := addLibraries(file, libraries); err != nil {
		return nil, err
	}
	files := []File{{Path: file, Host: file}}
	for _, guest := range slices.Sorted(maps.Keys(libraries)) {
		files = append(files, File{Path: guest, Host: libraries[guest], Mode: 0o755})
	}
	return files, nil
}

// HostTree is a directory of the host and all below it, at guest in the VM.
// Sockets, pipes and devices are left out.
func HostTree(host, guest string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(host, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(host, name)
		if err != nil {
			return err
		}
		file := File{Path: path.Join(guest, relative)}
		switch entry.Type() {
		case fs.ModeDir:
			file.Dir = true
		case fs.ModeSymlink:
			if file.Link, err = os.Readlink(name); err != nil {
				return err
			}
		case 0:
			file.Host = name
		default:
			return nil
		}
		files = append(files, file)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read tree: %w", err)
	}
	return files, nil
}

func lookProgram(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	if file, err := exec.LookPath(name); err == nil {
		return file, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if file, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("find program %s: not in the path or an sbin directory", name)
}

// addLibraries adds to libraries, by their paths in the guest, the host's files
// that the ELF file needs to start, and what those need.
func addLibraries(name string, libraries map[string]string) error {
	file, err := elf.Open(name)
	if err != nil {
		return fmt.Errorf("read ELF file %s: %w", name, err)
	}
	defer file.Close()

	needed, err := file.ImportedLibraries()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return fmt.Errorf("read libraries of %s: %w", name, err)
	}
	if interpreter, err := programInterpreter(file); err != nil {
		return fmt.Errorf("read interpreter of %s: %w", name, err)
	} else if interpreter != "" {
		libraries[interpreter] = interpreter
	}
	dirs, err := runPath(file, name)
	if err != nil {
		return err
	}
	for _, library := range needed {
		found := ""
		for _, dir := range append(dirs, libraryDirs...) {
			candidate := filepath.Join(dir, library)
			if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() {
				found = candidate
				break
			}
		}
		if found == "" {
			return fmt.Errorf("find library %s of %s: not in %s", library, name, strings.Join(libraryDirs, ", "))
		}
		if _, seen := libraries[found]; seen {
			continue
		}
		libraries[found] = found
		if err := addLibraries(found, libraries); err != nil {
			return err
		}
	}
	return nil
}

// programInterpreter is the loader that the kernel starts for a program; a
// static one has none.
func programInterpreter(file *elf.File) (string, error) {
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		data, err := io.ReadAll(segment.Open())
		return string(bytes.TrimRight(data, "\x00")), err
	}
	return "", nil
}

// runPath is where a file itself says that its libraries are.
func runPath(file *elf.File, name string) ([]string, error) {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := file.DynString(tag)
		if err != nil {
			return nil, fmt.Errorf("read run path of %s: %w", name, err)
		}
		for _, value := range values {
			for dir := range strings.SplitSeq(value, ":") {
				dirs = append(dirs, strings.ReplaceAll(dir, "$ORIGIN", filepath.Dir(name)))
			}
		}
	}
	return dirs, nil
}

// busyboxFiles is busybox and its applets; it has to be a static one.
func busyboxFiles() ([]File, error) {
	program, err := lookProgram("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w (Debian package: busybox-static)", err)
	}
	list, err := exec.Command(program, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of busybox: %w", err)
	}
	files, err := HostProgram(program)
	if err != nil {
		return nil, err
	}
	const guest = "/usr/bin/busybox"
	files[0].Path = guest
	for applet := range strings.FieldsSeq(string(list)) {
		if path.Base(applet) != "busybox" {
			files = append(files, File{Path: "/" + applet, Link: guest})
		}
	}
	return files, nil
}

// baseFiles are those that programs expect of any system.
func baseFiles() []File {
	return []File{
		{Path: "/proc", Dir: true},
		{Path: "/sys", Dir: true},
		{Path: "/dev", Dir: true},
		{Path: "/run", Dir: true},
		{Path: "/tmp", Dir: true, Mode: fs.ModeSticky | 0o777},
		{Path: "/root", Dir: true, Mode: 0o700},
		{Path: "/var/tmp", Dir: true, Mode: fs.ModeSticky | 0o777},
		{Path: "/var/lib", Dir: true},
		{Path: "/var/run", Link: "/run"},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")},
		{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost vm\n::1 localhost\n")},
		{Path: "/etc/nsswitch.conf", Data: []byte("passwd: files\ngroup: files\nhosts: files\n")},
		{Path: "/etc/resolv.conf", Data: []byte("# no network\n")},
		{Path: "/etc/os-release", Data: []byte("ID=sidegate-vm\nNAME=\"Sidegate test VM\"\n")},
	}
}

// mergedUsr are the directories that are links into /usr.
var mergedUsr = []string{"bin", "sbin", "lib", "lib64"}

// guestPath is the one name of a file, in an archive: relative and merged.
func guestPath(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, rest, nested := strings.Cut(name, "/")
	if nested && slices.Contains(mergedUsr, first) {
		return "usr/" + first + "/" + rest
	}
	return name
}

// writeInitramfs writes files, of which a later one takes the place of an
// earlier one with the same path, and all directories that they need.
func writeInitramfs(out io.Writer, files []File) error {
	tree := map[string]File{}
	for _, dir := range mergedUsr {
		tree[dir] = File{Link: "usr/" + dir}
		tree["usr/"+dir] = File{Dir: true}
	}
	for _, file := range files {
		tree[guestPath(file.Path)] = file
	}
	for name := range maps.Clone(tree) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, there := tree[dir]; !there {
				tree[dir] = File{Dir: true}
			}
		}
	}
	delete(tree, "")

	archive := newNewc(out)
	// In sorted order, a directory comes before what is in it.
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		if err := writeFile(archive, name, tree[name]); err != nil {
			return err
		}
	}
	// Until devtmpfs is mounted, PID 1 writes here.
	archive.entry("dev/console", unixMode(fs.ModeCharDevice|0o600), 5, 1, nil)
	return archive.close()
}

func writeFile(archive *newc, name string, file File) error {
	mode := file.Mode
	switch {
	case file.Dir:
		if mode == 0 {
			mode = 0o755
		}
		archive.entry(name, unixMode(fs.ModeDir|mode), 0, 0, nil)
	case file.Link != "":
		archive.entry(name, unixMode(fs.ModeSymlink|0o777), 0, 0, []byte(file.Link))
	case file.Host != "":
		data, err := os.ReadFile(file.Host)
		if err != nil {
			return fmt.Errorf("read file for the VM: %w", err)
		}
		if mode == 0 {
			info, err := os.Stat(file.Host)
			if err != nil {
				return fmt.Errorf("read file for the VM: %w", err)
			}
			mode = info.Mode().Perm()
		}
		archive.entry(name, unixMode(mode), 0, 0, data)
	default:
		if mode == 0 {
			mode = 0o644
		}
		archive.entry(name, unixMode(mode), 0, 0, file.Data)
	}
	return archive.err
}
