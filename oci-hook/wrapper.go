// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sidegate/cgroups"
	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

// What finds the runtime behind the wrapper.
const (
	runtimeEnv  = "SIDEGATE_RUNTIME"
	runtimeFile = "/etc/sidegate/runtime" // one line: a path
)

// runtimeCommands are those of runc and crun.
func runtimeCommands() []string {
	return []string{
		"checkpoint", "create", "delete", "events", "exec", "features", "help", "kill", "list", "pause", "ps", "restore", "resume", "run",
		"spec", "start", "state", "update",
	}
}

// globalValues are the flags before the command that take a value in the next argument: runc's
// and crun's.
func globalValues() []string {
	return []string{"cgroup-manager", "criu", "log", "log-format", "log-level", "root", "rootless"}
}

// invocation is what a runtime was called with, as far as the wrapper needs it.
type invocation struct {
	command        string // "" if there is none, as with --version
	bundle         string
	log, logFormat string
}

// parseInvocation reads a runtime's arguments, without its name. Flags may have one dash or
// two, as urfave/cli takes them. What may be a new container is an error if it is not clear
// where its configuration is: it would not get the hook.
func parseInvocation(args []string) (in invocation, err error) {
	in.bundle = "."
	i := 0
	for ; i < len(args) && in.command == ""; i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			// A word that is no command is the value of a flag that is not known here, or
			// the runtime will refuse it.
			if slices.Contains(runtimeCommands(), arg) {
				in.command = arg
			}
			continue
		}
		name, value, has := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !slices.Contains(globalValues(), name) {
			continue
		}
		if !has && i+1 < len(args) {
			i++
			value = args[i]
		}
		switch name {
		case "log":
			in.log = value
		case "log-format":
			in.logFormat = value
		}
	}
	if !in.creates() {
		return in, nil
	}
	for ; i < len(args) && args[i] != "--"; i++ { // what follows that is a container's id
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			continue
		}
		name, value, has := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case name == "bundle", name == "b":
			if !has {
				if i++; i == len(args) {
					return in, nil // the runtime will say so
				}
				value = args[i]
			}
			in.bundle = value
		case strings.HasPrefix(arg, "--") && (strings.HasPrefix("bundle", name) || strings.HasPrefix("config", name)),
			!strings.HasPrefix(arg, "--") && (name == "config" || len(name) != len("bundle") && strings.ContainsAny(name, "bf") && !slices.Contains(createFlags(), name)):
			// crun's: another file, or a short way to write the bundle.
			return in, fmt.Errorf("flag %s of %s may say where the configuration is: write --bundle DIRECTORY, and config.json into that", arg, in.command)
		}
	}
	return in, nil
}

// creates tells whether a container comes of it.
func (in invocation) creates() bool {
	return in.command == "create" || in.command == "run" || in.command == "restore"
}

// createFlags are runc's flags of create, run and restore with a b or f in their names, which it
// takes with one dash too.
func createFlags() []string {
	return []string{
		"preserve-fds", "pid-file", "pidfd-socket", "no-subreaper", "file-locks", "empty-ns", "auto-dedup", "lazy-pages", "tcp-established",
		"shell-job", "ext-unix-sk", "manage-cgroups-mode", "lsm-profile", "lsm-mount-context", "link-remap",
	}
}

// wraps tells whether these are a runtime's arguments, and not a hook's.
func wraps(args []string) bool {
	if len(args) < 2 {
		return false
	}
	if len(args) == 2 && !strings.HasPrefix(args[1], "-") && !slices.Contains(runtimeCommands(), args[1]) {
		return false // a stage, or a slip of the pen
	}
	return true
}

// wrap is sidegate-oci-hook as a runtime: it gives a new container the hooks, and becomes
// the runtime behind it, to which all arguments go as they are. It returns only an error, which
// is also where callers of a runtime look for one, in its log.
func wrap(e env, exec func(path string, args, environ []string) error) error {
	in, err := parseInvocation(e.args[1:])
	path := ""
	if err == nil {
		path, err = e.runtime()
	}
	if err == nil && in.creates() {
		var annotations map[string]string
		if annotations, err = e.askDocker(in.bundle); err == nil {
			err = e.editBundle(in.bundle, annotations)
		}
	}
	if err == nil {
		err = exec(path, slices.Concat([]string{path}, e.args[1:]), e.environ)
		err = fmt.Errorf("execute %s: %w", path, err)
	}
	if lerr := in.logError(err); lerr != nil {
		err = errors.Join(err, lerr)
	}
	return err
}

// runtime finds the runtime behind the wrapper: what the environment says, or the file in
// /etc/sidegate, or else runc or crun of PATH, whichever is not this program.
func (e env) runtime() (string, error) {
	if path := lookupEnv(e.environ, runtimeEnv); path != "" {
		return e.checkRuntime(path, runtimeEnv)
	}
	b, err := os.ReadFile(e.runtimeFile)
	if path := strings.TrimSpace(string(b)); err == nil && path != "" {
		return e.checkRuntime(path, e.runtimeFile)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("find the runtime to run: %w", err)
	}
	dirs := filepath.SplitList(cmp.Or(lookupEnv(e.environ, "PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
	for _, name := range []string{"runc", "crun"} {
		for _, dir := range dirs {
			if path, err := e.checkRuntime(filepath.Join(dir, name), "PATH"); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("no runtime to run: there is no runc or crun in PATH but this program: write the path of one into %s, or into the environment as %s",
		e.runtimeFile, runtimeEnv)
}

// checkRuntime refuses a path that cannot be meant. from says where it was found.
func (e env) checkRuntime(path, from string) (string, error) {
	fault := func(why string) (string, error) {
		return "", fmt.Errorf("runtime %q of %s %s: write the absolute path of runc or crun", path, from, why)
	}
	if !filepath.IsAbs(path) {
		return fault("is no absolute path")
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("runtime of %s: %w", from, err)
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return fault("is no program")
	}
	if self, err := os.Stat(e.self); err == nil && os.SameFile(self, st) {
		return fault("is this program itself")
	}
	return path, nil
}

func lookupEnv(environ []string, key string) string {
	value := ""
	for _, one := range environ {
		if v, ok := strings.CutPrefix(one, key+"="); ok {
			value = v
		}
	}
	return value
}

// hookEnviron is what the hooks get of this environment: they get nothing else.
func hookEnviron(environ []string) []string {
	out := []string{"GOMAXPROCS=1"}
	for _, key := range []string{"PATH", policy.DirEnv, cgroups.StateEnv, ktls.HostDirEnv} {
		if value := lookupEnv(environ, key); value != "" {
			out = append(out, key+"="+value)
		}
	}
	return out
}

// member is one of a JSON object's.
type member struct {
	key   string
	value json.RawMessage
}

// parseObject reads a JSON object and keeps the order of its members, and their text. null is
// an empty one.
func parseObject(b []byte) (members []member, err error) {
	if !json.Valid(b) {
		return nil, jsonFault(b)
	}
	return splitObject(b)
}

// jsonFault says what is wrong with what is no JSON value.
func jsonFault(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	var any json.RawMessage
	if err := d.Decode(&any); err != nil {
		return err
	}
	return errors.New("something follows the object")
}

// splitObject is parseObject for what is known to be JSON, such as a member of what was parsed. It looks no further into
// it than it has to: a configuration has a hundred kilobytes of seccomp, and a container's start waits.
func splitObject(b []byte) (members []member, err error) {
	b = trimSpace(b)
	if string(b) == "null" {
		return nil, nil
	}
	if b[0] != '{' {
		return nil, fmt.Errorf("it is no JSON object but %.20s", b)
	}
	for b = trimSpace(b[1:]); b[0] != '}'; b = trimSpace(b) {
		if b[0] == ',' {
			b = trimSpace(b[1:])
		}
		n := valueLength(b)
		var m member
		if err := json.Unmarshal(b[:n], &m.key); err != nil {
			return nil, err
		}
		b = trimSpace(trimSpace(b[n:])[1:]) // :
		n = valueLength(b)
		m.value, b = json.RawMessage(b[:n:n]), b[n:]
		// Readers do not agree on which of two counts, and encoding/json takes other cases
		// for the same key.
		if slices.ContainsFunc(members, func(other member) bool { return strings.EqualFold(other.key, m.key) }) {
			return nil, fmt.Errorf("it has %q twice", m.key)
		}
		members = append(members, m)
	}
	return members, nil
}

func trimSpace(b []byte) []byte { return bytes.Trim(b, " \t\r\n") }

// valueLength returns the length of the JSON value that b begins with.
func valueLength(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			if depth == 0 { // of what it is in
				return i
			}
			depth--
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
			continue
		default:
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(b)
}

func writeObject(members []member) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(m.key) // a string
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// set replaces or adds a member.
func set(members []member, key string, value json.RawMessage) []member {
	i := slices.IndexFunc(members, func(m member) bool { return m.key == key })
	if i < 0 {
		return append(members, member{key, value})
	}
	members[i].value = value
	return members
}

// lookup returns a member, null if there is none. One in another case is an error: runc would
// take it, and crun would not.
func lookup(members []member, key string) (json.RawMessage, error) {
	i := slices.IndexFunc(members, func(m member) bool { return strings.EqualFold(m.key, key) })
	if i < 0 {
		return json.RawMessage("null"), nil
	}
	if members[i].key != key {
		return nil, fmt.Errorf("it has %q: write %q", members[i].key, key)
	}
	return members[i].value, nil
}

// stages are those at which the hook runs.
func stages() []string { return []string{"createRuntime", "poststop"} }

// withHooks returns an OCI configuration with the hook at path at both stages, and with these
// annotations, where they are not there yet. All else is as it was, to the byte.
func withHooks(spec []member, path string, environ []string, annotations map[string]string) ([]member, error) {
	old, err := lookup(spec, "hooks")
	if err != nil {
		return nil, err
	}
	hooks, err := splitObject(old)
	if err != nil {
		return nil, fmt.Errorf("hooks: %w", err)
	}
	for _, stage := range stages() {
		var list []json.RawMessage
		old, err := lookup(hooks, stage)
		if err == nil {
			err = json.Unmarshal(old, &list)
		}
		if err != nil {
			return nil, fmt.Errorf("hooks.%s: %w", stage, err)
		}
		if !slices.ContainsFunc(list, func(raw json.RawMessage) bool { return isHook(raw, path, stage) }) {
			ours, err := json.Marshal(map[string]any{"path": path, "args": []string{filepath.Base(path), stage}, "env": environ})
			if err != nil {
				return nil, err
			}
			list = append(list, ours)
		}
		hooks = set(hooks, stage, writeList(list))
	}
	spec = set(spec, "hooks", writeObject(hooks))
	if len(annotations) == 0 {
		return spec, nil
	}
	if old, err = lookup(spec, "annotations"); err != nil {
		return nil, err
	}
	members, err := splitObject(old)
	if err != nil {
		return nil, fmt.Errorf("annotations: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if slices.ContainsFunc(members, func(m member) bool { return m.key == key }) {
			continue // said with --annotation
		}
		value, err := json.Marshal(annotations[key])
		if err != nil {
			return nil, err
		}
		members = set(members, key, value)
	}
	return set(spec, "annotations", writeObject(members)), nil
}

func asBytes(list []json.RawMessage) [][]byte {
	out := make([][]byte, len(list))
	for i, raw := range list {
		out[i] = raw
	}
	return out
}

func isHook(raw json.RawMessage, path, stage string) bool {
	var h struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
	}
	return json.Unmarshal(raw, &h) == nil && h.Path == path && len(h.Args) == 2 && h.Args[1] == stage
}

// edit returns a configuration as the wrapper hands it on: with the hooks, with the rule for splice(2), and with the
// configuration for kTLS.
func (e env) edit(config []byte, annotations map[string]string) ([]byte, error) {
	spec, err := parseObject(config)
	if err != nil {
		return nil, err
	}
	if spec, err = withHooks(spec, e.self, hookEnviron(e.environ), annotations); err != nil {
		return nil, err
	}
	o, ok, err := orderIn(spec)
	if err != nil {
		return nil, err
	}
	if !ok {
		return writeObject(spec), nil
	}
	if spec, _, err = e.withSpliceRule(spec, o); err != nil {
		return nil, err
	}
	if spec, _, err = e.withKTLS(spec, o); err != nil {
		return nil, err
	}
	return writeObject(spec), nil
}

// editBundle changes a bundle's config.json, all or nothing.
func (e env) editBundle(bundle string, annotations map[string]string) (err error) {
	file := filepath.Join(bundle, "config.json")
	fault := func(err error) error {
		return fmt.Errorf("give the container its hook: %s: %w", file, err)
	}
	st, err := os.Stat(file)
	if err != nil {
		return fault(err)
	}
	old, err := os.ReadFile(file)
	if err != nil {
		return fault(err)
	}
	config, err := e.edit(old, annotations)
	if err != nil {
		return fault(err)
	}
	if bytes.Equal(config, old) {
		return nil
	}
	tmp, err := os.CreateTemp(bundle, ".config.json-")
	if err != nil {
		return fault(err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(config)
	err = errors.Join(err, tmp.Chmod(st.Mode().Perm()))
	if owner, ok := st.Sys().(*syscall.Stat_t); ok {
		err = errors.Join(err, tmp.Chown(int(owner.Uid), int(owner.Gid)))
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fault(err)
	}
	return nil
}

// logError appends an error to the log that the runtime was told to write, as runc does:
// containerd's and Docker's shims show people the last one of it.
func (in invocation) logError(err error) error {
	if err == nil || in.log == "" {
		return nil
	}
	f, oerr := os.OpenFile(in.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if oerr != nil {
		return oerr
	}
	defer f.Close()
	msg, now := "sidegate: "+strings.ReplaceAll(err.Error(), "\n", "; "), time.Now().UTC().Format(time.RFC3339)
	line := fmt.Appendf(nil, "time=%q level=error msg=%q\n", now, msg)
	if in.logFormat == "json" {
		b, merr := json.Marshal(map[string]string{"level": "error", "msg": msg, "time": now})
		if merr != nil {
			return merr
		}
		line = append(b, '\n')
	}
	_, werr := f.Write(line)
	return werr
}
