package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wrenn/impl/envdclient"
)

// attach gets the tokens of a sandbox and returns a client of its daemon. A running sandbox's life stays as it
// is: one second is the shortest timeout that the API takes, and connecting never shortens a life. A paused one
// is resumed for as long as the API's default.
func (o *options) attach(ctx context.Context, id string) (*envdclient.Client, error) {
	client, e, err := o.client()
	if err != nil {
		return nil, err
	}
	detail, err := client.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	timeout := 1
	if detail.State == "paused" {
		timeout = 0
	}
	s, err := client.Connect(ctx, id, timeout)
	if err != nil {
		return nil, err
	}
	return e.guest(s)
}

func execCommand(o *options) *cobra.Command {
	var req envdclient.ExecRequest
	var envVars []string
	var stdin bool
	cmd := &cobra.Command{
		Use:   "exec ID -- PROGRAM [ARG...]",
		Short: "Run a program in a sandbox; its exit code becomes this command's",
		Long: `Run a program in a sandbox. Output comes as it is printed, and the program's exit code becomes this
command's. The program is not run by a shell; for one, say: wrenn exec ID -- bash -lc 'echo $HOME'`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if req.Env, err = pairs("env", envVars); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			guest, err := o.attach(ctx, args[0])
			if err != nil {
				return err
			}
			defer guest.CloseIdle()
			req.Cmd, req.Args = args[1], args[2:]
			req.Stdout, req.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if stdin {
				req.Stdin = cmd.InOrStdin()
			}
			exit, err := guest.Exec(ctx, req)
			return exitError(exit, err)
		},
	}
	cmd.Flags().StringVarP(&req.Cwd, "cwd", "w", "", "where it runs (default: the user's home)")
	cmd.Flags().StringVarP(&req.User, "user", "u", "", "as whom it runs (default: user)")
	cmd.Flags().StringArrayVarP(&envVars, "env", "e", nil, "KEY=VALUE for its environment; may be repeated")
	cmd.Flags().BoolVarP(&stdin, "interactive", "i", false, "send this command's standard input to it")
	return cmd
}

// exitError turns a program's end into this process's: signal N gives 128 + N, as shells do.
func exitError(exit envdclient.Exit, err error) error {
	switch {
	case err != nil:
		return err
	case exit.Code == 0:
		return nil
	case exit.Code < 0:
		fmt.Fprintln(os.Stderr, "wrenn: the program ended by", exit.Status)
		return ExitError{Code: 128 + int(signalOf(exit.Status))}
	default:
		return ExitError{Code: exit.Code}
	}
}

// signalOf finds the signal that "signal: terminated" speaks of; SIGKILL when it speaks of none.
func signalOf(status string) syscall.Signal {
	for s := syscall.Signal(1); s < 32; s++ {
		if strings.HasPrefix(status, "signal: "+s.String()) {
			return s
		}
	}
	return syscall.SIGKILL
}

func ptyCommand(o *options) *cobra.Command {
	var req envdclient.PTYRequest
	cmd := &cobra.Command{
		Use:   "pty ID [-- PROGRAM ARG...]",
		Short: "Open a terminal in a sandbox (default: a login shell)",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Cmd, req.Args = "/bin/bash", []string{"-i", "-l"}
			if len(args) > 1 {
				req.Cmd, req.Args = args[1], args[2:]
			}
			req.Env = map[string]string{"TERM": env("xterm-256color", "TERM"), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
			guest, err := o.attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer guest.CloseIdle()
			return terminal(cmd.Context(), guest, req)
		},
	}
	cmd.Flags().StringVarP(&req.Cwd, "cwd", "w", "", "where it runs (default: the user's home)")
	cmd.Flags().StringVarP(&req.User, "user", "u", "", "as whom it runs (default: user)")
	return cmd
}

// terminal joins this process's terminal to one in a guest until the program there ends.
func terminal(ctx context.Context, guest *envdclient.Client, req envdclient.PTYRequest) error {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return errors.New("standard input is no terminal; use `wrenn exec` for programs without one")
	}
	req.Size = terminalSize(fd)
	session, err := guest.PTY(ctx, req)
	if err != nil {
		return err
	}
	defer session.Close() //nolint:errcheck // the program has ended, or the error is Read's
	before, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	defer term.Restore(fd, before) //nolint:errcheck // nothing more can be done
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer func() { signal.Stop(resized); close(resized) }()
	go func() {
		for range resized {
			if session.Resize(ctx, terminalSize(fd)) != nil {
				return
			}
		}
	}()
	go io.Copy(session, os.Stdin) //nolint:errcheck // a terminal that takes no input any more ends Read too
	if _, err := io.Copy(os.Stdout, session); err != nil {
		return fmt.Errorf("the terminal's connection broke: %w", err)
	}
	exit, err := session.Wait()
	return exitError(exit, err)
}

func terminalSize(fd int) envdclient.Size {
	cols, rows, err := term.GetSize(fd)
	if err != nil || cols < 1 || rows < 1 {
		return envdclient.Size{Cols: 80, Rows: 24}
	}
	return envdclient.Size{Cols: uint16(cols), Rows: uint16(rows)}
}
