// Command envd is the daemon in a guest.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"wrenn/impl/envd"
)

func main() {
	port := flag.Int("port", envd.Port, "TCP port to listen on")
	addr := flag.String("addr", "", "address to listen on (default all)")
	guest := flag.Bool("guest", false, "root in a guest of its own: may set the clock and its own out-of-memory score, and forwards ports on loopback")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *version {
		fmt.Println(envd.Version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := envd.Run(ctx, envd.Config{
		Addr: net.JoinHostPort(*addr, strconv.Itoa(*port)), Guest: *guest, Cgroups: envd.CgroupsOf(*guest),
		ForwardPorts: *guest || os.Getenv("WRENN_FORWARD_PORTS") != "", InitSeconds: os.Getenv("WRENN_INIT_SECONDS"), Log: log,
	})
	if err != nil {
		log.Error("envd ends", "error", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}
