// SPDX-License-Identifier: Apache-2.0

// Package ktls is what a container gets whose annotations say sidegate/ktls=mount: a directory of the host, read-only,
// with the system-wide configuration of OpenSSL and GnuTLS that makes them hand their keys to the kernel, and the
// variables of the environment that name it. Front-ends put that into a container's configuration, each in its way;
// what it is, and when it cannot be, is said here.
package ktls

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Dir is where a container sees the files. No distribution has it.
const Dir = "/run/sidegate/ktls"

// The files, below the host's directory and Dir.
const (
	fileOpenSSL = "openssl.cnf"
	fileGnuTLS  = "gnutls.conf"
)

// HostDirEnv is the environment variable of the host's directory.
const HostDirEnv = "SIDEGATE_KTLS_DIR"

// defaultHostDir is where `make install` puts the files. It is set by the build, which knows PREFIX.
var defaultHostDir = "/usr/local/share/sidegate/ktls"

// HostDir is the host's directory: what the environment says, or where `make install` puts the files.
func HostDir() string { return cmp.Or(os.Getenv(HostDirEnv), defaultHostDir) }

// Files lists the names of the files. The caller owns the slice.
func Files() []string { return []string{fileOpenSSL, fileGnuTLS} }

// Variable is one of the environment's.
type Variable struct{ Name, Value string }

func (v Variable) String() string { return v.Name + "=" + v.Value }

// Variables lists those that name the files in the container. The caller owns the slice.
func Variables() []Variable {
	return []Variable{
		{"OPENSSL_CONF", path.Join(Dir, fileOpenSSL)},
		{"GNUTLS_SYSTEM_PRIORITY_FILE", path.Join(Dir, fileGnuTLS)},
	}
}

// MountType is the mount's, and MountOptions are its options, in runtime-spec's words. The caller owns the slice.
const MountType = "bind"

// MountOptions are those of the mount. Nothing is relabelled for SELinux, which would change the host's files: those
// below /usr/share are such as a container may read.
func MountOptions() []string { return []string{"bind", "ro", "nosuid", "nodev", "noexec", "rprivate"} }

// Has tells whether a container with this environment, of NAME=VALUE, and mounts at these destinations has what it is
// to have. If it has not, an error says what is in the way.
func Has(environ, destinations []string) (bool, error) {
	var errs []error
	found := 0
	for _, v := range Variables() {
		for _, one := range environ {
			switch name, value, _ := strings.Cut(one, "="); {
			case name != v.Name:
			case value == v.Value:
				found++
			default:
				errs = append(errs, fmt.Errorf("the container has %s=%.200q already, which would be overwritten: "+
					"take the variable away, or opt in where it points to and write sidegate/ktls=off (docs/tls.md)", name, value))
			}
		}
	}
	mounted := false
	for _, destination := range destinations {
		destination = path.Clean(destination)
		switch {
		case destination == Dir:
			mounted = true
		case strings.HasPrefix(destination, Dir+"/"):
			errs = append(errs, fmt.Errorf("the container has a mount at %.200q, which would be hidden: mount it elsewhere", destination))
		}
	}
	all := len(Variables())
	switch {
	case len(errs) > 0:
	case mounted && found >= all:
		return true, nil
	case mounted:
		errs = append(errs, fmt.Errorf("the container has a mount at %s already: mount it elsewhere, or write sidegate/ktls=off", Dir))
	case found > 0:
		errs = append(errs, fmt.Errorf("the container has variables that name files of %s, and nothing is mounted there: take %s away", Dir, names()))
	}
	return false, errors.Join(errs...)
}

func names() string {
	var list []string
	for _, v := range Variables() {
		list = append(list, v.Name)
	}
	return strings.Join(list, " and ")
}

// CheckHost tells whether dir has the files, such as the runtime will mount. A process in a container that shares the
// host's processes finds the host's files below another root too, such as /proc/1/root.
func CheckHost(dir string, roots ...string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%s: %q is no absolute path", HostDirEnv, dir)
	}
	var first error
	for _, root := range append([]string{""}, roots...) {
		err := checkFiles(root + dir)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

func checkFiles(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o005 != 0o005 {
		return fmt.Errorf("%s cannot be read by all users, whom a container may run as: chmod a+rx it", dir)
	}
	for _, name := range Files() {
		file := filepath.Join(dir, name)
		st, err := os.Stat(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s is not there: install it there (make install), or set %s (sidegate-nri: ktlsDir) to the directory that has %s",
				file, HostDirEnv, strings.Join(Files(), " and "))
		case err != nil:
			return err
		case !st.Mode().IsRegular():
			return fmt.Errorf("%s is no file", file)
		case st.Mode().Perm()&0o004 == 0:
			return fmt.Errorf("%s cannot be read by all users, whom a container may run as: chmod a+r it", file)
		}
	}
	return nil
}

// Mounted tells whether a process sees something mounted at Dir.
func Mounted(pid int) (bool, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return false, fmt.Errorf("look at the mounts of process %d: %w", pid, err)
	}
	defer f.Close()
	return mountedIn(f)
}

func mountedIn(r io.Reader) (bool, error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // an overlay's options are long
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 4 && fields[4] == Dir {
			return true, nil
		}
	}
	return false, s.Err()
}
