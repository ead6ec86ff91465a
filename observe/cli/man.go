// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manSections is the annotation of a command with what its page has and its help has not: Markdown, whose headings are
// sections.
const manSections = "sidegate/man"

// Sections of the manual: of what people run, and of what the system runs.
const (
	ManCommand = "1"
	ManDaemon  = "8"
)

// Sections that pages share.
const (
	ManExitStatus = `# EXIT STATUS
**0**
:   fine

**1**
:   it could not be done

**2**
:   wrong usage, of options or of the configuration

**3**
:   this kernel does not support it

`
	ManEnvironment = `# ENVIRONMENT
**SIDEGATE_STATE_DIR**
:   directory of pins on a BPF file system, /sys/fs/bpf/sidegate if not given

**SIDEGATE_POLICY_DIR**
:   directory of policies, /etc/sidegate/policies if not given

**SIDEGATE_LOG_LEVEL**, **SIDEGATE_LOG_FORMAT**
:   what **--log-level** and **--log-format** are, where these are not given

`
	ManLog = `# LOG
It is on standard error, a line for each message. As JSON a line has **time** (RFC 3339, nanoseconds), **level**, **msg**, **error** with
the cause and what to do, and what it is about: **pod**, **podID**, **netnsCookie**, **container**, **containerID**, **role**, **policy**,
**network**, **endpoint**, **path**, **address**, and others that docs/logs.md lists. As text the same fields follow the message.

`
)

// AddSections adds sections to a command's page: Markdown, such as "# FILES" and what follows.
func AddSections(cmd *cobra.Command, markdown string) {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations[manSections] += strings.TrimSpace(markdown) + "\n\n"
}

// AddMan adds the hidden command `man DIRECTORY`, which writes the pages of all commands there are. They are of the day
// that SOURCE_DATE_EPOCH says, so that who builds the same gets the same.
func AddMan(root *cobra.Command, version, section string) {
	root.AddCommand(&cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "Write manual pages",
		Hidden: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return Usage(fmt.Errorf("%s needs a directory", cmd.CommandPath()))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			epoch, err := strconv.ParseInt(cmp.Or(os.Getenv("SOURCE_DATE_EPOCH"), "0"), 10, 64)
			if err != nil {
				return Usage(fmt.Errorf("SOURCE_DATE_EPOCH: %w: write seconds since 1970", err))
			}
			date := time.Unix(epoch, 0).UTC()
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("make directory of manual pages: %w", err)
			}
			return writeMan(root, args[0], doc.GenManHeader{
				Section: section, Date: &date, Source: "Sidegate " + version, Manual: "Sidegate",
			})
		},
	})
}

// writeMan writes the page of a command and of those below it.
func writeMan(cmd *cobra.Command, dir string, header doc.GenManHeader) error {
	cmd.DisableAutoGenTag = true // a date in each page
	header.Title = strings.ToUpper(strings.ReplaceAll(cmd.CommandPath(), " ", "-"))
	var page bytes.Buffer
	if err := doc.GenMan(cmd, &header, &page); err != nil {
		return fmt.Errorf("write the page of %s: %w", cmd.CommandPath(), err)
	}
	// The day as mandoc(1) wants it too; cobra has the month.
	text := bytes.Replace(page.Bytes(), []byte(header.Date.Format("Jan 2006")), []byte(header.Date.Format(time.DateOnly)), 1)
	path := filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+"."+header.Section)
	if err := os.WriteFile(path, withSections(asList(text), cmd), 0o644); err != nil {
		return fmt.Errorf("write manual page: %w", err)
	}
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := writeMan(c, dir, header); err != nil {
			return err
		}
	}
	return nil
}

var (
	// cobra has an option and what it does in one paragraph, with a tab between.
	optionLines = regexp.MustCompile(`(?m)^(?:\.PP\n)?(\\fB-.*)\n\t(.*)$`)
	noDefault   = regexp.MustCompile(`(?m)^(\\fB-.*\\fP)(?:=""|\[=false\]|=\[\]|=0)$`)
)

// asList makes a list of the options of a page, and leaves out defaults that are none.
func asList(page []byte) []byte {
	page = optionLines.ReplaceAll(page, []byte(".TP\n$1\n$2"))
	return noDefault.ReplaceAll(page, []byte("$1"))
}

// withSections puts a command's own sections where pages have such: before SEE ALSO, the last one.
func withSections(page []byte, cmd *cobra.Command) []byte {
	markdown := cmd.Annotations[manSections]
	if markdown == "" {
		return page
	}
	// The first heading is taken for the page's title.
	_, own, _ := bytes.Cut(md2man.Render([]byte("# PAGE\n\n"+markdown)), []byte(".SH "))
	own = append([]byte(".SH "), own...)
	before, after, last := bytes.Cut(page, []byte("\n.SH SEE ALSO\n"))
	out := append(bytes.TrimRight(before, "\n"), '\n')
	out = append(out, own...)
	if last {
		out = append(append(out, "\n.SH SEE ALSO\n"...), after...)
	}
	return out
}
