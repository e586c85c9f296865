// Command vm runs Wrenn's end-to-end and fault suites in a Vagrant machine that it brings up and takes down:
//
//	vm e2e [REGEXP]   bring the machine up (or take the one that is up), run the suites, take it down
//	vm shell [CMD]    bring it up, open a shell in it, and leave it up
//	vm down           take it down, and all that belongs to it
//	vm box            build the box alone
//
// `make help` has the targets that call it. It needs root, for namespaces and the box's files.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn/vagrant/vm/ground"
)

func main() {
	if ground.Held() {
		fmt.Fprintln(os.Stderr, "the ground ends:", ground.Hold())
		os.Exit(1)
	}
	// When make is killed, this process is told to end in an orderly way.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(max(exit.ExitCode(), 1))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: vm e2e [REGEXP] | shell [COMMAND...] | down | box")
	}
	c, err := newConfig()
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	switch command, rest := args[0], args[1:]; command {
	case "e2e":
		return c.e2e(ctx, rest)
	case "shell":
		return c.shell(ctx, rest)
	case "down":
		return c.down()
	case "box":
		_, err := c.buildBox(ctx)
		return err
	default:
		return fmt.Errorf("unknown command %q: want e2e, shell, down or box", command)
	}
}
