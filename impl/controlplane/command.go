package controlplane

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// Command returns the command line of wrenn-cp: flags, each of which may also come from the environment as
// WRENN_CP_ and its name in capitals, and the subcommand new-key.
func Command() *cobra.Command {
	var cfg Config
	var secret, agent string
	cmd := &cobra.Command{
		Use: "wrenn-cp", Short: "Wrenn's control plane: REST API and sandbox proxy",
		SilenceUsage: true, Args: cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Secret, err = hex.DecodeString(secret); err != nil {
				return fmt.Errorf("--secret must be hex digits: %w", err)
			}
			if cfg.Agents, err = parseAgents(agent); err != nil {
				return err
			}
			cfg.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.APIListen, "api-listen", DefaultAPIListen, "address of the REST API")
	f.StringVar(&cfg.ProxyListen, "proxy-listen", DefaultProxyListen, "address of the sandbox proxy")
	f.StringVar(&cfg.Domain, "domain", "", "name under which {port}-{sandbox}.NAME leads to the sandbox proxy")
	f.StringVar(&secret, "secret", "", "hex of 32 bytes or more, from which sandboxes' tokens are derived")
	f.StringVar(&agent, "agents", "", "agents, separated by commas, each name=token@http://host:port")
	f.DurationVar(&cfg.ReconcileInterval, "reconcile", DefaultReconcileInterval, "pause between two comparisons with the agents")
	f.BoolVar(&cfg.Unpaced, "unpaced", false, "let what a client is sent in bulk fill its link's queue while somebody types at a terminal there")
	cmd.PersistentFlags().StringVar(&cfg.Database, "database", "", "path of the SQLite file")
	cmd.AddCommand(newKeyCommand(&cfg.Database))
	return cmd
}

func newKeyCommand(database *string) *cobra.Command {
	return &cobra.Command{
		Use: "new-key NAME", Short: "Makes an API key and prints it, this once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := store.Open(cmd.Context(), *database)
			if err != nil {
				return err
			}
			defer func() { _ = st.Close() }()
			key := store.NewAPIKey()
			if err := st.AddKey(cmd.Context(), args[0], key); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key)
			return err
		},
	}
}

// parseAgents reads name=token@url, separated by commas.
func parseAgents(list string) ([]agentclient.Config, error) {
	var agents []agentclient.Config
	for entry := range strings.SplitSeq(list, ",") {
		name, rest, ok := strings.Cut(entry, "=")
		token, url, ok2 := strings.Cut(rest, "@")
		if !ok || !ok2 {
			return nil, fmt.Errorf("--agents must be name=token@http://host:port, separated by commas")
		}
		agents = append(agents, agentclient.Config{Name: name, URL: url, Token: token})
	}
	return agents, nil
}

// fromEnvironment gives each flag that the command line does not set the value of its variable.
func fromEnvironment(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := "WRENN_CP_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !f.Changed && err == nil {
			if setErr := flags.Set(f.Name, value); setErr != nil {
				err = fmt.Errorf("%s: %w", name, setErr)
			}
		}
	})
	return err
}
