// Command wrenn-agent runs the sandboxes of one host for a control plane elsewhere.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wrenn/impl/agent"
	"wrenn/impl/internal/collector"
	"wrenn/impl/uffd"
)

func main() {
	cfg := agent.Config{Token: os.Getenv("WRENN_AGENT_TOKEN"), Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	cmd := &cobra.Command{
		Use:   "wrenn-agent",
		Short: "Run the sandboxes of one host (as root); the token comes from WRENN_AGENT_TOKEN",
		Args:  cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			collector.Rarely()
			return agent.Run(ctx, cfg)
		},
	}
	cmd.Flags().StringVar(&cfg.Dir, "dir", agent.DefaultDir, "where sandboxes, their disks and the agent's records are kept")
	cmd.Flags().BoolVar(&cfg.DestroyAtExit, "destroy-at-exit", false, "end all sandboxes when the agent is told to stop")
	cfg.Flags(cmd.Flags())
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(uffd.Command())
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "wrenn-agent:", err)
		os.Exit(1)
	}
}
