package agent

import (
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"wrenn/impl/network"
)

// DefaultDir is where an agent, or `wrenn up`, keeps its data.
const DefaultDir = "/var/lib/wrenn"

// Flags adds the flags that every program with an agent in it has.
func (c *Config) Flags(f *pflag.FlagSet) {
	f.StringVar(&c.Listen, "agent-listen", DefaultListen, "address of the agent's RPC and proxy server")
	f.StringVar(&c.ImageDir, "image-dir", defaultImageDir(), "what `make image` built")
	f.StringVar(&c.VMM, "vmm", "", "firecracker, qemu-kvm or qemu-tcg (default: the first that boots a guest)")
	f.StringVar(&c.Firecracker, "firecracker", envOr("FIRECRACKER_BIN", beside("firecracker")), "the firecracker program (FIRECRACKER_BIN)")
	f.StringVar(&c.FirecrackerQEMU, "firecracker-qemu", beside("firecracker-qemu"), "its stand-in on QEMU")
	f.IntVar(&c.MemoryMiB, "memory", 0, "MiB that all guests together may have (default 85 % of the host's)")
	f.StringVar(&c.MemoryBackend, "memory-backend", BackendFile, "how restored machines get their memory: file (mapped) or uffd (a page server each)")
	f.BoolVar(&c.DumpMemory, "dump-memory", false, "keep all memory beside each sandbox's last snapshot, for tests")
	_ = f.MarkHidden("dump-memory") // it is there
	f.IntVar(&c.ReadyDisks, "ready-disks", 2, "disk copies kept ready per template")
	f.IntVar(&c.ReadyNetworks, "ready-networks", network.DefaultReady, "networks kept ready for the next creates")
	f.IntVar(&c.Slots, "slots", int(network.MaxSlot), "networks, and so sandboxes, that there may be at once")
	f.Int64Var(&c.EgressRate, "egress-rate", DefaultEgressRate, "bytes per second that a guest may send, unless it is created with less; 0 for no limit")
	f.Int64Var(&c.EgressBurst, "egress-burst", DefaultEgressBurst, "bytes that it may send at once")
	f.Int64Var(&c.IngressRate, "ingress-rate", 0, "bytes per second that a guest may receive; 0 for no limit")
	f.Int64Var(&c.IngressBurst, "ingress-burst", DefaultIngressBurst, "bytes that it may receive at once")
	f.Func("resolver", "IP address of a name server for guests; may be repeated (default the host's own)", c.addResolver)
	f.DurationVar(&c.BootTimeout, "boot-timeout", 0, "bound of a create (default 1m30s)")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// beside is a program in the directory of this one, else its bare name, to be found in PATH.
func beside(program string) string {
	if exe, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(exe), program)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return program
}

// defaultImageDir is where `make` leaves the image beside its programs, else below the data directory.
func defaultImageDir() string {
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Join(filepath.Dir(exe), "..", "image")
		if _, err := os.Stat(dir); err == nil {
			return filepath.Clean(dir)
		}
	}
	return filepath.Join(envOr("WRENN_DIR", DefaultDir), "image")
}
