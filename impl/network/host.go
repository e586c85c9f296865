package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/coreos/go-iptables/iptables"

	"wrenn/impl/netns"
)

// Config is what a Host needs.
type Config struct {
	// Logger is required.
	Logger *slog.Logger
	// Dir is an existing directory that outlives the process: what Setup changed on the host is
	// noted there until Teardown puts it back. Required.
	Dir string
	// Resolvers are the name servers that guests are told of, at most MaxResolvers, IPv4. A sandbox
	// with access to the internet may ask them on port 53 even where they are in a private range or
	// on the host itself. Resolvers() finds the host's own.
	Resolvers []netip.Addr
	// Upstreams are the name servers that the forwarders ask for sandboxes whose policy has domains; they
	// are asked by this process, so loopback addresses are usable. Empty means Resolvers, on port 53.
	Upstreams []netip.AddrPort
}

// Host makes and removes the networks of sandboxes in the network namespace of the process. One
// process at a time may do so in one namespace. Its methods may be called concurrently, but no two
// for the same slot, and Setup and Teardown not beside others.
type Host struct {
	cfg       Config
	ipt       *iptables.IPTables
	lifetimes lifetimes

	mu    sync.Mutex
	named map[Slot]*names // the networks whose policy has domains
}

// lockWait is how long an iptables run waits for the lock that all of them share, in seconds. Beside
// a firewall manager that reloads its rules, waits of a second or two are usual.
const lockWait = 5

// NewHost checks the configuration and finds iptables; it changes nothing.
func NewHost(cfg Config) (*Host, error) {
	if cfg.Logger == nil || cfg.Dir == "" {
		return nil, errors.New("network: a logger and a directory are required")
	}
	if _, err := os.ReadDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("network: reading the directory for notes: %w", err)
	}
	if len(cfg.Resolvers) > MaxResolvers {
		return nil, fmt.Errorf("network: %d resolvers are more than %d", len(cfg.Resolvers), MaxResolvers)
	}
	for _, r := range cfg.Resolvers {
		if !usableResolver(r) || HostRange.Contains(r) || LinkRange.Contains(r) {
			return nil, fmt.Errorf("network: a guest cannot use the resolver %s", r)
		}
	}
	ipt, err := iptables.New(iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("network: looking for iptables: %w", err)
	}
	return &Host{cfg: cfg, ipt: ipt, lifetimes: usualLifetimes, named: map[Slot]*names{}}, nil
}

// Setup installs the rules that all sandboxes share and turns on IPv4 forwarding. It is for every
// start: what is there already, from this version or another, from a process that ended in an orderly
// way or did not, is brought to what it should be, and sandboxes that run meanwhile are never open.
func (h *Host) Setup(ctx context.Context) error {
	for _, c := range h.chains() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("network: setting up the host: %w", err)
		}
		if err := h.install(c); err != nil {
			return fmt.Errorf("network: setting up the host: %w", err)
		}
	}
	if err := h.noteAndForward(); err != nil {
		return fmt.Errorf("network: setting up the host: %w", err)
	}
	if err := netns.Prepare(); err != nil {
		return fmt.Errorf("network: setting up the host: %w", err)
	}
	return nil
}

// Teardown takes back what Setup did, all of it that it can, and joins the errors. It is for a host
// without sandboxes: those that are left lose their network. It is nil when nothing was set up.
func (h *Host) Teardown(ctx context.Context) error {
	errs := []error{h.restore()}
	for _, c := range slices.Backward(h.chains()) {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		errs = append(errs, h.uninstall(c))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network: taking down the host's rules: %w", err)
	}
	return nil
}
