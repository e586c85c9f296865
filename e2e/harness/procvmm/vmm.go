package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"wrenn/impl/transport"
)

// version is the version of Firecracker whose behaviour is imitated.
const version = "1.16.1"

// Exit codes of Firecracker.
const (
	exitOK      = 0 // the guest has rebooted
	exitError   = 1
	exitBadArgs = 153
)

// answerLimit is how long a call that is being answered may hold up the end of the process.
const answerLimit = time.Second

// vmmMain is the VMM. It returns its exit code once the guest has ended.
func vmmMain(args []string, stdout, stderr *os.File) int {
	flags := flag.NewFlagSet("procvmm", flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("api-sock", "/run/firecracker.socket", "path of the API socket")
	id := flags.String("id", "anonymous-instance", "name of the microVM")
	tell := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return exitBadArgs // flags has said why
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "Arguments parsing error: %q was not expected\n", flags.Arg(0))
		return exitBadArgs
	}
	if *tell {
		fmt.Fprintf(stdout, "Firecracker v%s\n\n(procvmm: processes in the place of a guest, for tests)\n", version)
		return exitOK
	}
	code, err := serve(*socket, newMachine(*id, stdout), stderr)
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
	}
	return code
}

// serve answers the API on a new socket until the machine ends.
func serve(socket string, m *machine, stderr io.Writer) (int, error) {
	if _, err := os.Lstat(socket); err == nil {
		return exitError, fmt.Errorf("open the API socket at %s: check that it is not already used", socket)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return exitError, fmt.Errorf("open the API socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // Firecracker leaves its socket behind
	server := transport.NewUnixServer(m.routes(), slog.New(slog.NewTextHandler(stderr, nil)))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return exitError, fmt.Errorf("serve the API: %w", err)
	case end := <-m.ended:
		ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			_ = server.Close() // the process ends, and its connections with it
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			end.err = errors.Join(end.err, err)
		}
		return end.code, end.err
	}
}
