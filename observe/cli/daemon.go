// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// Daemon makes a command one that runs for long, until SIGINT or SIGTERM end the context of run: it has --version,
// --log-level and --log-format, and gives run the logger that they ask for. The error of run is logged there. log has
// the two options; whoever has the same from a file calls [Log.Default] in run.
func Daemon(cmd *cobra.Command, version string, log *Log, run func(context.Context, *logrus.Logger) error) {
	cmd.Version = version
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	f := cmd.Flags()
	f.Bool("version", false, "print the version") // cobra's own would have a -v
	f.SortFlags = false
	log.addFlags(f)
	cmd.Args = NoArgs
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		logger, err := log.logger(cmd.ErrOrStderr())
		if err != nil {
			return Usage(err)
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if err := run(ctx, logger); err != nil {
			logger.WithError(err).Error(cmd.Name() + " cannot go on: see error for what to do")
			return loggedError{err}
		}
		return nil
	}
	AddMan(cmd, version, ManDaemon)
}
