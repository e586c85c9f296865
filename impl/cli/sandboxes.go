package cli

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wrenn/impl/apiclient"
)

func createCommand(o *options) *cobra.Command {
	var template string
	var timeout time.Duration
	var metadata, envVars []string
	var network networkFlags
	var limits limitFlags
	var life lifecycleFlags
	var snapshot string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a sandbox and print its id",
		Long: `Make a sandbox and print its id. It returns when the daemon in the guest answers.
With --json the reply is printed whole: how it came up, and the time of every stage.

With --snapshot it starts from what "wrenn snapshot create" has kept: programs go on where they were.

At the end of --timeout it is killed, or with --auto-pause paused; "wrenn pause --help" says what that means.
With --auto-resume any request to one of its ports lets a paused sandbox go on.

It may reach the internet unless --deny, --allow or --no-internet say otherwise; "wrenn network --help"
explains them.`,
		Example: "  wrenn create --timeout 1h --metadata job=42\n  wrenn create --no-internet --allow pypi.org --allow files.pythonhosted.org\n  wrenn create --json | jq .wrenn\n  wrenn create --snapshot mine --timeout 10m --auto-pause --auto-resume",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := apiclient.CreateRequest{TemplateID: template, Timeout: seconds(timeout)}
			if snapshot != "" {
				req.TemplateID = snapshot
			}
			if err := life.apply(&req); err != nil {
				return err
			}
			var err error
			if req.Metadata, err = pairs("metadata", metadata); err != nil {
				return err
			}
			if req.EnvVars, err = pairs("env", envVars); err != nil {
				return err
			}
			req.Network, req.AllowInternetAccess, req.Wrenn = network.rules(), network.access(), limits.limits()
			client, _, err := o.client()
			if err != nil {
				return err
			}
			s, err := client.Create(cmd.Context(), req)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			printStages(cmd.ErrOrStderr(), s.Wrenn)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), s.SandboxID)
			return err
		},
	}
	cmd.Flags().StringVarP(&template, "template", "t", "base", "what the sandbox starts from")
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "the snapshot that it starts from, in place of a template")
	cmd.MarkFlagsMutuallyExclusive("template", "snapshot")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long it lives")
	cmd.Flags().StringArrayVarP(&metadata, "metadata", "m", nil, "KEY=VALUE to find it by; may be repeated")
	cmd.Flags().StringArrayVarP(&envVars, "env", "e", nil, "KEY=VALUE for every program in it; may be repeated")
	life.add(cmd.Flags())
	network.add(cmd.Flags())
	limits.add(cmd.Flags())
	return cmd
}

// printStages prints the time of every stage in one line each.
func printStages(w io.Writer, b *apiclient.Boot) {
	if b == nil {
		return
	}
	printPhases(w, b.Stages)
	_, _ = fmt.Fprintf(w, "  %-10s %8.1f ms  (%s)\n", "total", b.TotalMs, b.BootPath)
}

func listCommand(o *options) *cobra.Command {
	var metadata []string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List sandboxes, running and paused, newest first",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := pairs("metadata", metadata)
			if err != nil {
				return err
			}
			client, _, err := o.client()
			if err != nil {
				return err
			}
			all, err := client.List(cmd.Context(), wanted)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tTEMPLATE\tSTATE\tCPUS\tMEMORY\tSTARTED\tENDS IN")
			for _, s := range all {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d MiB\t%s\t%s\n", s.SandboxID, s.TemplateID, s.State, s.CPUCount, s.MemoryMB,
					s.StartedAt.Local().Format(time.DateTime), endsIn(s))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringArrayVarP(&metadata, "metadata", "m", nil, "only those with KEY=VALUE; may be repeated")
	return cmd
}

// endsIn is how much time a sandbox has left. A paused one's does not run.
func endsIn(s apiclient.Detail) string {
	if s.State == "paused" {
		return "-"
	}
	return time.Until(s.EndAt).Round(time.Second).String()
}

func killCommand(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "kill [ID...]",
		Short: "End sandboxes, running or paused",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) > 0) {
				return errors.New("name the sandboxes to end, or give --all")
			}
			client, _, err := o.client()
			if err != nil {
				return err
			}
			if all {
				list, err := client.List(cmd.Context(), nil)
				if err != nil {
					return err
				}
				for _, s := range list {
					ids = append(ids, s.SandboxID)
				}
			}
			var errs []error
			for _, id := range ids {
				err := client.Kill(cmd.Context(), id)
				if all && apiclient.IsNotFound(err) {
					continue // it ended by itself since it was listed
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("kill %s: %w", id, err))
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end all sandboxes")
	return cmd
}

func logsCommand(o *options) *cobra.Command {
	var lines int
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print what a sandbox's guest printed on its console",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			logs, err := client.Logs(cmd.Context(), args[0], lines)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), logs)
			}
			for _, l := range logs {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), printable(l)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 100, "how many of the last lines")
	return cmd
}
