package uffd

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
)

// CommandName is the subcommand that serves pages.
const CommandName = "pager"

// Args are the arguments of the subcommand that serves cfg, behind its name.
func (cfg Config) Args() []string {
	args := []string{"--socket", cfg.Socket}
	for _, l := range cfg.Layers {
		args = append(args, "--layer", l)
	}
	if cfg.Batch != 0 {
		args = append(args, "--batch", strconv.Itoa(cfg.Batch))
	}
	if cfg.Workers != 0 {
		args = append(args, "--workers", strconv.Itoa(cfg.Workers))
	}
	if cfg.WorkingSet != "" {
		args = append(args, "--working-set", cfg.WorkingSet)
	}
	if cfg.RecordFor != 0 {
		args = append(args, "--record-for", cfg.RecordFor.String())
	}
	if cfg.AcceptTimeout != 0 {
		args = append(args, "--accept-timeout", cfg.AcceptTimeout.String())
	}
	return args
}

// Command is the hidden subcommand of the agent's programs that serves one VMM's memory. It logs JSON to
// standard error and ends with the VMM. SIGTERM ends both; a terminal's signals do not concern it.
func Command() *cobra.Command {
	cfg := Config{Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	cmd := &cobra.Command{
		Use:    CommandName,
		Short:  "Serve the memory of one restored VM; the agent starts this",
		Hidden: true, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			signal.Ignore(os.Interrupt, syscall.SIGHUP)
			ctx := cmd.Context()
			if ctx == nil {
				ctx = context.Background()
			}
			ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
			defer stop()
			return Serve(ctx, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Socket, "socket", "", "where the VMM connects")
	f.StringArrayVar(&cfg.Layers, "layer", nil, "a layer of the memory; the base first")
	f.IntVar(&cfg.Batch, "batch", 0, "bytes that are filled around a fault")
	f.IntVar(&cfg.Workers, "workers", 0, "faults that are served at a time")
	f.StringVar(&cfg.WorkingSet, "working-set", "", "file of the pages that are needed first")
	f.DurationVar(&cfg.RecordFor, "record-for", 0, "how long needed pages are recorded")
	f.DurationVar(&cfg.AcceptTimeout, "accept-timeout", 0, "how long to wait for the VMM")
	return cmd
}
