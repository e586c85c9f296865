// Command wrenn-cp is Wrenn's control plane as a program of its own.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"wrenn/impl/controlplane"
	"wrenn/impl/internal/collector"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	collector.Rarely()
	if err := controlplane.Command().ExecuteContext(ctx); err != nil {
		return 1 // cobra has printed it
	}
	return 0
}
