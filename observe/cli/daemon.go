// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// Daemon makes a command one that runs for long, until SIGINT or SIGTERM end the context of run: it has --version,
// --log-level and --log-format, and gives run the logger that they ask for. The error of run is logged there. log has
// the two options; whoever has the same from a file calls [Log.Default] in run.
func Daemon(cmd *cobra.Command, version string, log *Log, run func(context.Context, *logrus.Logger) error) {
	f := cmd.Flags()
	// Not cobra's own: its text would be a template, by which the linker keeps much that nobody calls.
	show := f.Bool("version", false, "print the version")
	f.SortFlags = false
	log.AddFlags(f)
	cmd.Args = NoArgs
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *show {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), cmd.Name(), version)
			return err
		}
		logger, err := log.Logger(cmd.ErrOrStderr())
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
