package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"wrenn/impl/agent"
	"wrenn/impl/agentclient"
	"wrenn/impl/controlplane"
	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/internal/collector"
)

// upConfig is a control plane and an agent in one process.
type upConfig struct {
	dir    string
	agent  agent.Config
	cp     controlplane.Config
	logger *slog.Logger
	// ready is called once sandboxes can be created.
	ready func(endpoint)
}

func upCommand(o *options) *cobra.Command {
	var cfg upConfig
	var keep, verbose bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a control plane and an agent on this machine (as root)",
		Long: `Start a control plane and an agent on this machine, as root, and serve until Ctrl-C.

Ctrl-C ends all sandboxes and removes whatever was made for them. With --keep they run on, and the next
"wrenn up" takes them over, as it does after a crash.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			cfg.dir = o.dataDir()
			cfg.logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			cfg.agent.DestroyAtExit = !keep
			cfg.ready = func(e endpoint) { printBanner(cmd.OutOrStdout(), e, cfg.dir, keep) }
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			collector.Rarely()
			context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
			return up(ctx, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.cp.APIListen, "api-listen", controlplane.DefaultAPIListen, "address of the REST API")
	f.StringVar(&cfg.cp.ProxyListen, "sandbox-listen", controlplane.DefaultProxyListen, "address of the sandbox port proxy")
	f.StringVar(&cfg.cp.Domain, "domain", "", "name under which {port}-{sandbox}.NAME leads to the sandbox proxy")
	cfg.agent.Flags(f)
	f.BoolVar(&keep, "keep", false, "let the sandboxes run on at the end")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	return cmd
}

// up serves until ctx ends, or until one of the two programs fails. The control plane starts once the
// agent answers and stops before it.
func up(ctx context.Context, cfg upConfig) error {
	if os.Geteuid() != 0 {
		return errors.New("networks and VMs need root: run `sudo wrenn up`")
	}
	if err := os.MkdirAll(cfg.dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	s, err := loadSecrets(filepath.Join(cfg.dir, "secrets.json"))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	listening := make(chan netip.AddrPort, 1)
	cfg.agent.Dir, cfg.agent.Token, cfg.agent.Logger = filepath.Join(cfg.dir, "agent"), s.AgentToken, cfg.logger.With("program", "agent")
	cfg.agent.OnListen = func(a netip.AddrPort) { listening <- a }
	group.Go(func() error { return agent.Run(ctx, cfg.agent) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case addr := <-listening:
			return runControlPlane(ctx, cfg, s, addr)
		}
	})
	return group.Wait()
}

func runControlPlane(ctx context.Context, cfg upConfig, s secrets, agentAddr netip.AddrPort) error {
	cp := cfg.cp
	cp.Database = filepath.Join(cfg.dir, "wrenn.db")
	cp.Secret, cp.BootstrapKey = s.TokenSecret, s.APIKey
	cp.Agents = []agentclient.Config{{Name: "local", URL: "http://" + agentAddr.String(), Token: s.AgentToken}}
	cp.Logger = cfg.logger.With("program", "control-plane")
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	path := filepath.Join(cfg.dir, endpointName)
	written := false
	cp.Ready = func(a controlplane.Addresses) {
		e := endpoint{APIURL: "http://" + reachable(a.API), SandboxURL: "http://" + reachable(a.Proxy), APIKey: s.APIKey}
		if err := writeEndpoint(path, e); err != nil {
			stop(err)
			return
		}
		written = true
		cfg.ready(e)
	}
	err := controlplane.Run(ctx, cp)
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if written { // another process's stays
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func writeEndpoint(path string, e endpoint) error {
	data, err := json.MarshalIndent(e, "", "\t")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	// Nobody else writes it: the agent, which holds the host's lock, serves by now.
	if err := atomicfile.RemoveUnfinished(path); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// reachable replaces a wildcard address by one that a client on this machine can use.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func printBanner(w io.Writer, e endpoint, dir string, keep bool) {
	end := "Ctrl-C ends Wrenn and all sandboxes."
	if keep {
		end = "Ctrl-C ends Wrenn; the sandboxes run on, and the next `wrenn up` takes them over."
	}
	self, err := os.Executable()
	if err != nil {
		self = "wrenn"
	}
	if dir != agent.DefaultDir {
		self += " --dir " + dir
	}
	_, _ = fmt.Fprintf(w, `
Wrenn is up (%s).

  API      %s
  Sandbox  %s
  API key  %s

Try, in another terminal:

  %[5]s create
  %[5]s exec ID -- python3 -c 'print(6*7)'
  %[5]s pty ID

With E2B's SDK:

  export E2B_API_URL=%[2]s E2B_SANDBOX_URL=%[3]s E2B_API_KEY=%[4]s

%[6]s

`, time.Now().Format(time.DateTime), e.APIURL, e.SandboxURL, e.APIKey, self, end)
}
