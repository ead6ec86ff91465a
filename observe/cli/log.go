// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
)

// Names of fields. docs/logs.md says what is in them; time, level, msg and error are logrus' own.
const (
	FieldPod         = "pod"
	FieldPodID       = "podID"
	FieldNetnsCookie = "netnsCookie"
	FieldContainer   = "container"
	FieldContainerID = "containerID"
	FieldRole        = "role"
	FieldPolicy      = "policy"
	FieldNetwork     = "network"
	FieldEndpoint    = "endpoint"
	FieldRequest     = "request"
	FieldTook        = "took"
	FieldPath        = "path"
	FieldAddress     = "address"
	FieldPID         = "pid"
	FieldSockets     = "sockets"
	FieldLeft        = "left"
	FieldPort        = "port"
	FieldFrom        = "from"
	FieldDestination = "destination"
)

// What the environment says, where there is no option.
const (
	LogLevelEnv  = "SIDEGATE_LOG_LEVEL"
	LogFormatEnv = "SIDEGATE_LOG_FORMAT"
)

// Formats of logs.
const (
	FormatText = "text"
	FormatJSON = "json"
)

// timeFormat is RFC 3339 with nanoseconds, all nine digits, so that lines sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// Log has the options of a log. The zero value is ready.
type Log struct{ level, format string }

// AddFlags adds the two options.
func (l *Log) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&l.level, "log-level", "", "log what is at this `level` or worse: "+levels()+" (default: $"+LogLevelEnv+", or info)")
	f.StringVar(&l.format, "log-format", "", "`format` of the log: text or json (default: $"+LogFormatEnv+", or text)")
}

// Logger makes what writes to w as the options, or the environment, say.
func (l *Log) Logger(w io.Writer) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(w)
	level, format := "--log-level", "--log-format"
	if l.level == "" {
		level, l.level = "$"+LogLevelEnv, os.Getenv(LogLevelEnv)
	}
	if l.format == "" {
		format, l.format = "$"+LogFormatEnv, os.Getenv(LogFormatEnv)
	}
	if err := setLevel(log, l.level); err != nil {
		return nil, fmt.Errorf("%s: %w", level, err)
	}
	if err := setFormat(log, l.format); err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	return log, nil
}

// Default gives a logger the level and the format of a file, where neither option nor environment says another. "" is
// what there was.
func (l *Log) Default(log *logrus.Logger, level, format string) error {
	if l.level != "" {
		level = ""
	}
	if l.format != "" {
		format = ""
	}
	return errors.Join(setLevel(log, level), setFormat(log, format))
}

func setLevel(log *logrus.Logger, name string) error {
	if err := CheckLevel(name); err != nil || name == "" {
		return err
	}
	level, err := logrus.ParseLevel(name)
	log.SetLevel(level)
	return err
}

func setFormat(log *logrus.Logger, name string) error {
	switch name {
	case FormatText:
		log.SetFormatter(&logrus.TextFormatter{})
	case FormatJSON:
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: timeFormat, DisableHTMLEscape: true})
	}
	return CheckFormat(name)
}

// CheckLevel tells whether a level has this name, or none. The error names those that there are.
func CheckLevel(name string) error {
	if _, err := logrus.ParseLevel(name); err != nil && name != "" {
		return fmt.Errorf("%q is no level: write %s", name, levels())
	}
	return nil
}

// CheckFormat tells whether a format has this name, or none. The error names those that there are.
func CheckFormat(name string) error {
	if !slices.Contains([]string{"", FormatText, FormatJSON}, name) {
		return fmt.Errorf("%q is no format: write %s or %s", name, FormatText, FormatJSON)
	}
	return nil
}

// levels lists the levels, the least first.
func levels() string {
	var names []string
	for _, level := range slices.Backward(logrus.AllLevels) {
		names = append(names, level.String())
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
