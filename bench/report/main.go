// Command report turns what `make bench` has measured into a page to read: report.md with tables, and plots of
// the distributions beside it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	c := &cobra.Command{
		Use:   "report DIR",
		Short: "Write DIR/report.md and its plots from DIR/bench.txt and DIR/samples",
		Long: `Write DIR/report.md and its plots (DIR/*.svg).

DIR/bench.txt is the output of "go test -bench" after the lines of "report facts", in the benchmark format that
benchstat reads. DIR/samples has one file per distribution: BenchmarkPTY leaves them where the environment
variable WRENN_BENCH_SAMPLES says. "make bench" does all of it.`,
		Args: cobra.ExactArgs(1), SilenceUsage: true, SilenceErrors: true,
		RunE: func(_ *cobra.Command, args []string) error { return write(args[0]) },
	}
	c.AddCommand(&cobra.Command{
		Use: "facts", Short: "Print what figures depend on: kernel, processor, load, versions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, f := range facts(c.Context()) {
				fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", f.key, f.value)
			}
			return nil
		},
	})
	return c
}
