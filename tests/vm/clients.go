// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// python is Debian's, whose ssl module has its OpenSSL.
const python = "/usr/bin/python3.11"

// loadedModules says of what a Python program uses where it is: the imports of the
// standard input, and what any program needs at its start.
const loadedModules = `
import os, sys
exec(sys.stdin.read())
import encodings.ascii, encodings.idna, encodings.latin_1, encodings.utf_8, site
for m in list(sys.modules.values()):
    for name in (getattr(m, "__file__", None), getattr(m, "__cached__", None)):
        if name and os.path.exists(name):
            print(name)
`

// PythonFiles is as much of Debian's Python as a program with these imports uses. All
// of its library would take an emulated CPU longer to unpack than to run the program.
func PythonFiles(ctx context.Context, imports string) ([]File, error) {
	files, err := HostProgram(python)
	if err != nil {
		return nil, err
	}
	// -I and -S: as Python is without this machine's own packages.
	cmd := exec.CommandContext(ctx, python, "-I", "-S", "-c", loadedModules)
	cmd.Stdin = strings.NewReader(imports)
	complaints := &bytes.Buffer{}
	cmd.Stderr = complaints
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("find modules of Python: %w: %s (Debian package: libpython3-stdlib)", err, bytes.TrimSpace(complaints.Bytes()))
	}
	for name := range strings.FieldsSeq(string(list)) {
		if !strings.HasSuffix(name, ".so") {
			files = append(files, File{Path: name, Host: name})
			continue
		}
		extension, err := HostProgram(name)
		if err != nil {
			return nil, err
		}
		files = append(files, extension...)
	}
	return files, nil
}

// HostPrograms are HostProgram of each name.
func HostPrograms(names ...string) ([]File, error) {
	var files []File
	for _, name := range names {
		program, err := HostProgram(name)
		if err != nil {
			return nil, err
		}
		files = append(files, program...)
	}
	return files, nil
}
