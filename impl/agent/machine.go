package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"wrenn/impl/firecracker"
	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// machine is the real sandbox.Machine.
type machine struct {
	p    *firecracker.Process
	dir  string
	dump bool // of all memory beside each snapshot
}

func (m machine) Identity() sandbox.Identity { return identityFrom(m.p.Identity()) }

func (m machine) Done() <-chan struct{} { return m.p.Done() }

func (m machine) Kill(ctx context.Context) error { return m.p.Kill(ctx) }

func (m machine) Exit() string {
	select {
	case <-m.p.Done():
		return m.p.ExitStatus().String()
	default:
		return ""
	}
}

func (m machine) client() *firecracker.Client {
	return firecracker.NewClient(filepath.Join(m.dir, socketName))
}

func (m machine) Pause(ctx context.Context) error {
	c := m.client()
	defer c.Close()
	return c.Pause(ctx)
}

func (m machine) Resume(ctx context.Context) error {
	c := m.client()
	defer c.Close()
	return c.Resume(ctx)
}

func (m machine) Snapshot(ctx context.Context, to sandbox.MachineSnapshot) error {
	c := m.client()
	defer c.Close()
	kind := firecracker.SnapshotFull
	if to.Diff {
		kind = firecracker.SnapshotDiff
	}
	err := c.CreateSnapshot(ctx, firecracker.SnapshotCreate{
		Type: kind, StatePath: to.StatePath, MemoryPath: to.MemoryPath, MemSizeMiB: to.MemoryMiB,
	})
	if err != nil || !m.dump {
		return err
	}
	// After the diff: the VMM counts changed pages from the last snapshot on, of whichever kind.
	return c.CreateSnapshot(ctx, firecracker.SnapshotCreate{
		Type: firecracker.SnapshotFull, StatePath: filepath.Join(m.dir, dumpName+".vmstate"),
		MemoryPath: filepath.Join(m.dir, dumpName), MemSizeMiB: to.MemoryMiB,
	})
}

// dumpName is of a machine's whole memory as the VMM had it at the last snapshot, in its sandbox's directory,
// where Config.DumpMemory asks for it. What the layers amount to must be the same.
const dumpName = "memory.dump"

// Restore loads a machine and leaves it paused. The VMM starts while the memory is made ready.
func (v *vmmPart) Restore(ctx context.Context, spec sandbox.RestoreSpec) (sandbox.Machine, error) {
	m, err := v.launch(ctx, spec.ID, spec.Dir, spec.Slot)
	if err != nil {
		return nil, err
	}
	memory, err := spec.Memory(ctx)
	if err != nil {
		return m, err
	}
	if memory.Uffd {
		v.memory.guard(v.background, spec.Dir, m)
	}
	return m, v.load(ctx, spec, memory)
}

func (v *vmmPart) load(ctx context.Context, spec sandbox.RestoreSpec, memory sandbox.MemorySource) error {
	backend := firecracker.BackendFile
	if memory.Uffd {
		backend = firecracker.BackendUffd
	}
	c := firecracker.NewClient(filepath.Join(spec.Dir, socketName))
	defer c.Close()
	err := c.LoadSnapshot(ctx, firecracker.SnapshotLoad{
		StatePath: spec.StatePath, Memory: firecracker.MemoryBackend{Type: backend, Path: memory.Path},
		TrackDirtyPages: true, MemSizeMiB: spec.MemoryMiB,
	})
	if err != nil {
		err = fmt.Errorf("load the snapshot into the VMM: %w", err)
		if memory.Uffd {
			err = fmt.Errorf("%w; the page server says: %s", err, pagerSays(spec.Dir))
		}
		return err
	}
	return v.limit(ctx, c, spec.Limits)
}

// pagerSays is the end of a page server's log.
func pagerSays(dir string) string {
	log, err := os.ReadFile(filepath.Join(dir, pagerLog))
	if err != nil {
		return err.Error()
	}
	const most = 1024 // bytes: a few lines
	return string(log[max(0, len(log)-most):])
}

// limit puts the sandbox's own limits in the place of those that the snapshot was made with.
func (v *vmmPart) limit(ctx context.Context, c *firecracker.Client, limits sandbox.Limits) error {
	patch := firecracker.NetworkInterfacePatch{IfaceID: ifaceID}
	for _, l := range []struct {
		limit sandbox.Limit
		into  **firecracker.RateLimiter
	}{{limits.Egress, &patch.TxRateLimiter}, {limits.Ingress, &patch.RxRateLimiter}} {
		limiter, err := limiter(l.limit)
		if err != nil {
			return err
		}
		if limiter == nil { // size and time of 0 lift a limit
			limiter = &firecracker.RateLimiter{Bandwidth: &firecracker.TokenBucket{}}
		}
		*l.into = limiter
	}
	if err := c.PatchNetworkInterface(ctx, patch); err != nil {
		return fmt.Errorf("limit the restored guest's traffic: %w", err)
	}
	return nil
}

// launch starts a VMM in the sandbox's directory.
func (v *vmmPart) launch(ctx context.Context, id, dir string, slot int) (machine, error) {
	// A machine of before has left it there when it was killed.
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !os.IsNotExist(err) {
		return machine{}, fmt.Errorf("%w: %w", sandbox.ErrNoVMM, err)
	}
	p, err := firecracker.Launch(ctx, firecracker.LaunchConfig{
		Binary: v.choice.Binary, Env: v.choice.Env, ID: id, Netns: network.Slot(slot).Netns(), Dir: dir,
		SocketPath: filepath.Join(dir, socketName), ConsolePath: filepath.Join(dir, consoleName),
	})
	if err != nil {
		return machine{}, fmt.Errorf("%w: %w", sandbox.ErrNoVMM, err)
	}
	return v.watch(p, dir), nil
}
