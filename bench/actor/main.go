// Command actor plays the parts that stand beside Wrenn in its benchmarks, each as a process of its own: the
// servers in a guest that make traffic, the two hops of the design that Wrenn replaces, and plain TCP as a
// ruler. It is never installed.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"wrenn/bench/load"
	"wrenn/impl/transport"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "actor:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing to undo in a process that ends
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "actor", Short: "Plays a part beside Wrenn in its benchmarks", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(guestCommand(), edgeCommand(), hostCommand(), relayCommand(), typistCommand(), loadCommand())
	return root
}

func guestCommand() *cobra.Command {
	var ip string
	c := &cobra.Command{
		Use: "guest", Short: "Serve the ports that make traffic, until interrupted", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serveGuest(c.Context(), ip) },
	}
	c.Flags().StringVar(&ip, "ip", "0.0.0.0", "address to listen on")
	return c
}

func edgeCommand() *cobra.Command {
	var listen, host string
	c := &cobra.Command{
		Use: "edge", Short: "First hop of the one-connection design: HTTP/2 in, one HTTP/2 connection out", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serveEdge(c.Context(), listen, host) },
	}
	c.Flags().StringVar(&listen, "listen", "", "address to listen on")
	c.Flags().StringVar(&host, "host", "", "address of the second hop")
	return c
}

func hostCommand() *cobra.Command {
	var listen, guest string
	c := &cobra.Command{
		Use: "host", Short: "Second hop of the one-connection design: HTTP/2 in, HTTP/1.1 to a guest's ports", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serveHost(c.Context(), listen, guest) },
	}
	c.Flags().StringVar(&listen, "listen", "", "address to listen on")
	c.Flags().StringVar(&guest, "guest", "", "address of the guest, without a port")
	return c
}

func relayCommand() *cobra.Command {
	var listen, to string
	c := &cobra.Command{
		Use: "relay", Short: "Join each TCP connection to another one", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serveRelay(c.Context(), listen, to) },
	}
	c.Flags().StringVar(&listen, "listen", "", "address to listen on")
	c.Flags().StringVar(&to, "to", "", "address to join to")
	return c
}

func typistCommand() *cobra.Command {
	var keys int
	var pace time.Duration
	c := &cobra.Command{
		Use: "typist", Short: "Type at a terminal of the guest from inside it, and print how long the echoes took, as JSON", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return typeInside(c.Context(), keys, pace, c.OutOrStdout()) },
	}
	c.Flags().IntVar(&keys, "keys", 100, "how many keys to type")
	c.Flags().DurationVar(&pace, "pace", 50*time.Millisecond, "pause between two keys")
	return c
}

func loadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load", Short: "Make the load that the first line of the input plans, as JSON; each further line is answered with a tally", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return load.Serve(c.Context(), transport.NewProxyTransport(), c.InOrStdin(), c.OutOrStdout())
		},
	}
}
