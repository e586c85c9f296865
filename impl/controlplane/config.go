package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/session"
	"wrenn/impl/transport"
	"wrenn/impl/transport/hopserver"
)

// Defaults of Config.
const (
	// DefaultAPIListen and DefaultProxyListen are the ports that E2B's SDKs are pointed at by
	// E2B_API_URL and E2B_SANDBOX_URL; only this machine reaches them unless a person says otherwise.
	DefaultAPIListen   = "127.0.0.1:3000"
	DefaultProxyListen = "127.0.0.1:3002"
	// DefaultReconcileInterval: a sandbox that an agent has lost leaves the list after two rounds.
	DefaultReconcileInterval = 3 * time.Second
	// minSecret is the size in bytes of HMAC-SHA256's output; a shorter key would be the weaker part.
	minSecret = 32
)

// Config is what a control plane needs.
type Config struct {
	// APIListen and ProxyListen are the addresses of the REST API and of the sandbox port proxy; empty
	// means the default, port 0 any free one.
	APIListen, ProxyListen string
	// Domain is the name (with :port where it is not 443) under which {port}-{sandbox}.Domain leads to
	// ProxyListen. It is returned with each sandbox; empty leaves clients to their own setting.
	Domain string
	// Database is the path of the SQLite file, made if it is not there.
	Database string
	// Secret, 32 bytes or more, is the key from which sandboxes' access tokens are derived. It must stay
	// the same for as long as sandboxes live.
	Secret []byte
	// BootstrapKey is an API key (store.NewAPIKey makes one) that is valid from the start; empty means none.
	BootstrapKey string
	// Agents are the hosts, one or more, with distinct names. A host belongs to one database: sandboxes on
	// it that the database does not know are destroyed.
	Agents []agentclient.Config
	// ReconcileInterval is the pause between two comparisons of store and agents; 0 means the default.
	ReconcileInterval time.Duration
	// Sessions are the times of terminals and programs by WebSocket; zero means the defaults.
	Sessions session.Clocks
	// Unpaced leaves what clients are sent in bulk to TCP alone, even while it makes their terminals wait; see
	// transport.Pacer.
	Unpaced bool
	// Ready, if set, is called once both listeners accept connections.
	Ready  func(Addresses)
	Logger *slog.Logger

	// tune changes servers and transports before their first use; for tests that shorten their clocks.
	tune func(api *http.Server, proxy *hopserver.Server, streams *transport.Direct)
}

// Addresses are where a running control plane listens, as host:port.
type Addresses struct{ API, Proxy string }

func (c *Config) complete() error {
	if c.APIListen == "" {
		c.APIListen = DefaultAPIListen
	}
	if c.ProxyListen == "" {
		c.ProxyListen = DefaultProxyListen
	}
	if c.ReconcileInterval == 0 {
		c.ReconcileInterval = DefaultReconcileInterval
	}
	var errs []error
	if c.Logger == nil {
		errs = append(errs, errors.New("a logger is needed"))
	}
	if c.Database == "" {
		errs = append(errs, errors.New("a database is needed"))
	}
	if len(c.Secret) < minSecret {
		errs = append(errs, fmt.Errorf("the secret has %d bytes, it needs %d or more", len(c.Secret), minSecret))
	}
	if len(c.Agents) == 0 {
		errs = append(errs, errors.New("at least one agent is needed"))
	}
	names := map[string]bool{}
	for _, a := range c.Agents {
		if names[a.Name] {
			errs = append(errs, fmt.Errorf("two agents are named %q", a.Name))
		}
		names[a.Name] = true
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("control plane configuration: %w", err)
	}
	return nil
}
