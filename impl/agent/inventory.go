package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// Owner is whose a slot is: a sandbox's, or nobody's yet when it is ready.
type Owner struct {
	Sandbox string
	State   string
	Ready   bool
}

// Roles of a NetworkObject.
const (
	RoleSandbox = "sandbox" // a sandbox has it
	RoleReady   = "ready"   // kept ready for a sandbox to come
	RoleHost    = "host"    // shared by all sandboxes
	RoleOrphan  = "orphan"  // nobody has it
	RoleUnknown = "unknown" // a sandbox whose journal cannot be read may have it, or a ready network may be it
)

// NetworkObject is something of Wrenn's in the kernel and whose it is.
type NetworkObject struct {
	Slot   int    `json:"slot,omitempty"` // 0 for what all share
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"`
	Role   string `json:"role"`
	// Sandbox and State are set when a sandbox has it.
	Sandbox string `json:"sandbox,omitempty"`
	State   string `json:"state,omitempty"`
}

// Running says where this host's agent listens (HOST:PORT) and what its directory is; ok is false when none
// runs, and then dir is that of the last one with sandboxes left, or empty.
func Running() (addr, dir string, ok bool, err error) {
	runs, err := agentRuns()
	if err != nil {
		return "", "", false, err
	}
	r, err := readRecord()
	if err != nil {
		return "", "", false, err
	}
	boot, err := hostBoot()
	if err != nil || r.HostBoot != boot {
		return "", "", runs, err
	}
	return r.Addr, r.Dir, runs, nil
}

// Journaled returns whose slots are by the journals of an agent's directory, and the sandboxes whose journals
// cannot be read.
func Journaled(dir string) (owners map[int]Owner, broken []string, err error) {
	infos, broken, err := sandbox.Journaled(filepath.Join(dir, "sandboxes"))
	if err != nil {
		return nil, nil, err
	}
	owners = make(map[int]Owner, len(infos))
	for _, i := range infos {
		// A failed sandbox gave its slot back.
		if i.Slot != 0 && i.State != sandbox.Failed {
			owners[i.Slot] = Owner{Sandbox: i.ID, State: string(i.State)}
		}
	}
	return owners, broken, nil
}

// NetworkObjects lists all that Wrenn has in the kernel for networks, each with its owner. ownerless is the
// role of what has none: RoleOrphan, or RoleUnknown where not all owners are known.
func NetworkObjects(ctx context.Context, owners map[int]Owner, ownerless string) ([]NetworkObject, error) {
	found, err := network.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	objects := make([]NetworkObject, 0, len(found))
	for _, f := range found {
		o := NetworkObject{Slot: int(f.Slot), Kind: f.Kind, Name: f.Name, Detail: f.Detail, Role: ownerless}
		owner, owned := owners[o.Slot]
		switch {
		case f.Slot == 0:
			o.Role = RoleHost
		case owned && owner.Ready:
			o.Role = RoleReady
		case owned:
			o.Role, o.Sandbox, o.State = RoleSandbox, owner.Sandbox, owner.State
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// ErrAgentRuns is returned by ReclaimNetworks where an agent runs.
var ErrAgentRuns = errHeld

// Reclaimed is what ReclaimNetworks took away.
type Reclaimed struct {
	Slots []int `json:"slots"`
	// Host says that the rules which all sandboxes share are gone too and ip_forward is as it was.
	Host bool `json:"host"`
}

// ReclaimNetworks removes the networks of this host that no sandbox below dir owns, in place of an agent: it
// takes the agents' lock, so that none can start meanwhile, and returns ErrAgentRuns where one runs. When no
// sandbox is left at all, the rules that they share go too. It refuses when it cannot know all owners.
func ReclaimNetworks(ctx context.Context, dir string, logger *slog.Logger) (r Reclaimed, err error) {
	lock, err := takeLock()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.Remove(lockPath), lock.Close()) }()
	_, last, _, err := Running()
	if err != nil {
		return r, err
	}
	if last != "" && last != dir {
		if err := leftByOther(last); err != nil {
			return r, err
		}
	}
	owners, broken, err := Journaled(dir)
	if err != nil {
		return r, err
	}
	if len(broken) > 0 {
		return r, fmt.Errorf("agent: the journals of the sandboxes %s cannot be read, so their networks are not known; "+
			"an agent that is started with this directory clears them up", strings.Join(broken, ", "))
	}
	if r, err = reclaimBeside(ctx, dir, owners, logger); err != nil {
		return r, err
	}
	return r, resign(dir)
}

func reclaimBeside(ctx context.Context, dir string, owners map[int]Owner, logger *slog.Logger) (r Reclaimed, err error) {
	notes := dir
	if _, err := os.Stat(dir); err != nil { // no agent ever ran there, or it was removed, with what it noted
		if notes, err = os.MkdirTemp("", "wrenn-reclaim-"); err != nil {
			return r, fmt.Errorf("agent: make a directory: %w", err)
		}
		defer os.RemoveAll(notes) //nolint:errcheck // a temporary directory
	}
	host, err := network.NewHost(network.Config{Logger: logger, Dir: notes})
	if err != nil {
		return r, err
	}
	slots, err := network.NewAllocator(network.MaxSlot)
	if err != nil {
		return r, err
	}
	for slot := range owners {
		if err := slots.Claim(network.Slot(slot)); err != nil {
			return r, err
		}
	}
	cleared, err := host.CleanupStaleNamespaces(ctx, slots)
	for _, s := range cleared {
		r.Slots = append(r.Slots, int(s))
	}
	if err != nil || len(owners) > 0 {
		return r, err
	}
	err = host.Teardown(ctx)
	r.Host = err == nil
	return r, err
}
