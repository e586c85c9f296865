package cli

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"wrenn/impl/apiclient"
)

// lifecycleFlags say what becomes of a sandbox at its end, and how it comes back.
type lifecycleFlags struct{ autoPause, autoResume, filesOnly bool }

func (l *lifecycleFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&l.autoPause, "auto-pause", false, "pause it at the end of its timeout instead of killing it")
	f.BoolVar(&l.autoResume, "auto-resume", false, "let any request to one of its ports resume it when it is paused")
	f.BoolVar(&l.filesOnly, "files-only", false, "with --auto-pause: keep its files alone then, not its memory")
}

func (l *lifecycleFlags) apply(req *apiclient.CreateRequest) error {
	if l.filesOnly && !l.autoPause {
		return errors.New("--files-only says how --auto-pause pauses: give both")
	}
	if l.filesOnly && l.autoResume {
		return errors.New("--files-only and --auto-resume exclude each other: a sandbox without its memory boots anew, which no request waits for")
	}
	req.AutoPause = l.autoPause
	if l.filesOnly {
		req.AutoPauseMemory = new(bool)
	}
	if l.autoResume {
		req.AutoResume = &apiclient.AutoResume{Enabled: true}
	}
	return nil
}

// timed is what a command with phases prints as JSON.
type timed struct {
	SandboxID string              `json:"sandboxID"`
	Snapshot  *apiclient.Snapshot `json:"snapshot,omitempty"`
	Forks     []apiclient.Fork    `json:"forks,omitempty"`
	Phases    []apiclient.Stage   `json:"phases"`
}

// printPhases prints the time of every phase in one line each.
func printPhases(w io.Writer, phases []apiclient.Stage) {
	for _, p := range phases {
		_, _ = fmt.Fprintf(w, "  %-10s %8.1f ms\n", printable(p.Name), p.Ms)
	}
}

func pauseCommand(o *options) *cobra.Command {
	var filesOnly bool
	cmd := &cobra.Command{
		Use:   "pause ID",
		Short: "Put a sandbox away with all that runs in it",
		Long: `Put a sandbox away with all that runs in it: memory and disk are kept on its host, and nothing else. It
takes no processor and no network, and its timeout does not run. "wrenn resume" lets it go on: programs,
terminals and open files are as they were, while connections to the outside are cut.

With --files-only the memory is not kept. That is quicker and takes less room; a resume then boots anew.

A sandbox can also be paused by itself at the end of its timeout: wrenn create --auto-pause.`,
		Example: "  wrenn pause ID\n  wrenn pause ID --files-only\n  wrenn pause ID --json | jq .phases",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			phases, err := client.Pause(cmd.Context(), args[0], filesOnly)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), timed{SandboxID: args[0], Phases: phases})
			}
			printPhases(cmd.ErrOrStderr(), phases)
			return nil
		},
	}
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "keep its disk alone: it boots anew when it is resumed")
	return cmd
}

func resumeCommand(o *options) *cobra.Command {
	var timeout time.Duration
	var filesOnly bool
	cmd := &cobra.Command{
		Use:   "resume ID",
		Short: "Let a paused sandbox go on",
		Long: `Let a paused sandbox go on where it was, and let it live for --timeout from now. What becomes of it then,
killed or paused again, stays as it was created. Of one that runs already the life is extended, never
shortened.

With --files-only its memory is left aside and it boots anew from its disk.

"wrenn exec" and "wrenn pty" resume a paused sandbox too.`,
		Example: "  wrenn resume ID --timeout 1h",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			s, err := client.Resume(cmd.Context(), args[0], seconds(timeout), filesOnly)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			if s.Wrenn == nil {
				_, err = fmt.Fprintln(cmd.ErrOrStderr(), "it was running already")
				return err
			}
			printStages(cmd.ErrOrStderr(), s.Wrenn)
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long it lives from now")
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "leave its memory aside and boot anew from its disk")
	return cmd
}

func forkCommand(o *options) *cobra.Command {
	var count int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "fork ID",
		Short: "Make copies of a sandbox, with all that runs in it, and print their ids",
		Long: `Make copies of a sandbox, with all that runs in it, and print their ids. The sandbox itself stops for a
moment and goes on. A copy has the same metadata, network rules and life at its end, an id of its own, and
random numbers of its own. Each copy succeeds or fails by itself; if one failed, so does the command.`,
		Example: "  wrenn fork ID --count 5 --timeout 10m",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			forks, phases, err := client.Fork(cmd.Context(), args[0], count, seconds(timeout))
			if err != nil {
				return err
			}
			if o.json {
				err = printJSON(cmd.OutOrStdout(), timed{SandboxID: args[0], Forks: forks, Phases: phases})
			} else {
				printPhases(cmd.ErrOrStderr(), phases)
			}
			errs := []error{err}
			for i, f := range forks {
				switch {
				case f.Error != nil:
					errs = append(errs, fmt.Errorf("copy %d: %w", i+1, f.Error))
				case f.Sandbox != nil && !o.json:
					_, err := fmt.Fprintln(cmd.OutOrStdout(), f.Sandbox.SandboxID)
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many copies, 100 at most")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long they live")
	return cmd
}
