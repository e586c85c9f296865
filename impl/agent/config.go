package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"wrenn/impl/network"
)

// Config is what an agent is started with.
type Config struct {
	// Dir keeps the sandboxes, their disks and what must survive the agent. It must be on a local disk,
	// and short: Unix sockets below it have at most 103 bytes.
	Dir string
	// ImageDir is what `make image` built: kernel, initramfs and templates.
	ImageDir string
	// Listen is the address of the RPC and proxy server; it carries no TLS, so keep it on loopback or a
	// private network.
	Listen string
	// Token is what callers must present in every request.
	Token string
	// Firecracker and FirecrackerQEMU are the two VMM programs; a name without a slash is looked up in
	// PATH, and either may be missing.
	Firecracker, FirecrackerQEMU string
	// VMM forces "firecracker", "qemu-kvm" or "qemu-tcg"; empty takes the first that boots a guest.
	VMM string
	// ProbeAfresh boots a guest on each VMM even where an earlier verdict is known.
	ProbeAfresh bool
	// MemoryMiB is what all guests together may have; 0 means 85 % of the host's memory.
	MemoryMiB int
	// MemoryBackend is how a restored machine gets its memory: BackendFile or BackendUffd; empty means
	// BackendFile.
	MemoryBackend string
	// DumpMemory keeps the whole of a machine's memory beside its last snapshot, as the VMM had it then: what
	// tests compare the layers with.
	DumpMemory bool
	// ReadyDisks is how many copies of a used template's disk are kept ready.
	ReadyDisks int
	// ReadyNetworks is how many networks are kept ready for the next creates.
	ReadyNetworks int
	// Slots is how many networks there may be at once, ready ones included; 0 means network.MaxSlot, all
	// that the addresses suffice for. Sandboxes that are taken over are never refused.
	Slots int
	// Resolvers are the name servers of guests; none means the host's own.
	Resolvers []netip.Addr
	// Egress is the sustained rate and the burst of what a guest sends, in bytes per second and bytes;
	// a zero rate is no limit.
	EgressRate, EgressBurst int64
	// IngressRate and IngressBurst are the same for what a guest receives.
	IngressRate, IngressBurst int64
	// BootTimeout bounds a create; 0 means 90 s.
	BootTimeout time.Duration
	// DestroyAtExit ends all sandboxes when the agent is told to stop; otherwise they run on and the
	// next start adopts them.
	DestroyAtExit bool
	Logger        *slog.Logger
	// OnListen is called with the bound address once requests are served. Nil is allowed.
	OnListen func(addr netip.AddrPort)
}

// Defaults and bounds of a Config.
const (
	// maxBootTimeout leaves a create that fails the time to be taken down within the 5 minutes that a
	// control plane waits.
	maxBootTimeout = 3 * time.Minute
	// DefaultListen is beside the control plane's two ports, which E2B's SDKs expect at 3000 and 3002.
	DefaultListen = "127.0.0.1:3003"
	// DefaultEgressRate and DefaultEgressBurst are 200 MB/s and 100 MB: twice what a gigabit link
	// carries, and half a second of it at once.
	DefaultEgressRate  = 200_000_000
	DefaultEgressBurst = 100_000_000
	// DefaultIngressBurst counts once a rate is set: half a second of 200 MB/s, as above.
	DefaultIngressBurst = 100_000_000
)

func (c Config) check() error {
	for name, value := range map[string]string{"dir": c.Dir, "image-dir": c.ImageDir, "listen": c.Listen, "token": c.Token} {
		if value == "" {
			return fmt.Errorf("agent: %s must be set", name)
		}
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("agent: dir %q must be absolute", c.Dir)
	}
	// The longest path below it is DIR/sandboxes/ID/vmm.sock with an id of 32 characters.
	const longest = 103 - len("/sandboxes/") - 32 - len("/vmm.sock")
	if len(c.Dir) > longest {
		return fmt.Errorf("agent: dir %q has %d bytes; at most %d leave room for Unix sockets", c.Dir, len(c.Dir), longest)
	}
	if c.BootTimeout > maxBootTimeout {
		return fmt.Errorf("agent: boot-timeout %v is more than %v, after which a control plane gives a create up", c.BootTimeout, maxBootTimeout)
	}
	switch c.MemoryBackend {
	case "", BackendFile, BackendUffd:
	default:
		return fmt.Errorf("agent: memory-backend %q must be %s or %s", c.MemoryBackend, BackendFile, BackendUffd)
	}
	if err := c.checkLimits(); err != nil {
		return err
	}
	if c.Slots < 0 || c.Slots > int(network.MaxSlot) {
		return fmt.Errorf("agent: slots %d must be 1 to %d, or 0 for all", c.Slots, network.MaxSlot)
	}
	if c.ReadyNetworks < 0 {
		return fmt.Errorf("agent: ready-networks %d must be 0 or more", c.ReadyNetworks)
	}
	if c.Logger == nil {
		return errors.New("agent: a logger must be set")
	}
	return nil
}
