package cli

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func snapshotCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Keep the state of a sandbox, to start others from",
		Long: `Keep the state of a sandbox, memory and disk, to start others from: any number, also at the same time. A
snapshot outlives its sandbox and lies on its host.

  wrenn snapshot create ID --name mine     keeps it; the sandbox goes on
  wrenn create --snapshot mine             starts another one from it
  wrenn snapshot list
  wrenn snapshot delete mine`,
	}
	cmd.AddCommand(snapshotCreateCommand(o), snapshotListCommand(o), snapshotDeleteCommand(o))
	return cmd
}

func snapshotCreateCommand(o *options) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "create ID",
		Short: "Keep the state of a sandbox and print what to start others from",
		Long: `Keep the state of a sandbox and print what to start others from. The sandbox, which stops for a moment, goes
on; a paused one stays paused. A name that is taken goes over to the new snapshot, and the old one is
deleted; NAME:TAG keeps several.`,
		Example: "  wrenn snapshot create ID --name mine\n  wrenn create --snapshot $(wrenn snapshot create ID)",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			sn, phases, err := client.CreateSnapshot(cmd.Context(), args[0], name)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), timed{SandboxID: args[0], Snapshot: &sn, Phases: phases})
			}
			printPhases(cmd.ErrOrStderr(), phases)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), sn.SnapshotID)
			return err
		},
	}
	cmd.Flags().StringVarP(&name, "name", "n", "", "what to call it (default: an id alone)")
	return cmd
}

func snapshotListCommand(o *options) *cobra.Command {
	var sandbox string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List snapshots, newest first",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			all, err := client.ListSnapshots(cmd.Context(), sandbox)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "SNAPSHOT\tOF SANDBOX\tTEMPLATE\tCPUS\tMEMORY\tSIZE\tCREATED")
			for _, s := range all {
				d := s.Wrenn
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d MiB\t%d MiB\t%s\n", s.SnapshotID, d.SandboxID, d.TemplateID, d.CPUCount, d.MemoryMB,
					(d.SizeBytes+1<<20-1)>>20, d.CreatedAt.Local().Format(time.DateTime))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&sandbox, "sandbox", "", "only those of this sandbox")
	return cmd
}

func snapshotDeleteCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "delete SNAPSHOT...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots, unless sandboxes that were started from them are there",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range ids {
				if err := client.DeleteSnapshot(cmd.Context(), id); err != nil {
					errs = append(errs, fmt.Errorf("delete %s: %w", id, err))
				}
			}
			return errors.Join(errs...)
		},
	}
}
