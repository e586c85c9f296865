package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/memfile"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
)

// content is what a machine has in memory, by page without those that are zero, and on its disk.
type content struct {
	memory map[int64]string
	disk   []byte
}

// same fails the test unless the other content is this one.
func (c content) same(t *testing.T, other content, when string) {
	t.Helper()
	for at := int64(0); at < paperPages*memfile.PageSize; at += memfile.PageSize {
		require.True(t, c.memory[at] == other.memory[at], "%s: wrong memory at %d (%.8q instead of %.8q)", when, at, other.memory[at], c.memory[at])
	}
	require.Len(t, other.memory, len(c.memory), when)
	require.True(t, bytes.Equal(c.disk, other.disk), "%s: wrong disk", when)
}

// paper is a VMM of machines that are content alone. It writes files as a real one does: nothing is synced.
type paper struct {
	mu       sync.Mutex
	machines map[string]*paperMachine // by directory
}

type paperMachine struct {
	dir    string
	memory map[int64]string
	dirty  map[int64]bool
	done   chan struct{}
	end    sync.Once
}

func (*paper) Name() string                                        { return "paper 1" }
func (*paper) Orphans(string) (map[string]sandbox.Identity, error) { return nil, nil }
func (*paper) Console(string, int) ([]byte, error)                 { return nil, nil }
func (*paper) Adopt(sandbox.Identity, string) (sandbox.Machine, error) {
	return nil, errors.New("gone with the power")
}

func (p *paper) start(dir string) *paperMachine {
	m := &paperMachine{dir: dir, memory: map[int64]string{}, dirty: map[int64]bool{}, done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.machines[dir] = m
	return m
}

func (p *paper) Boot(_ context.Context, spec sandbox.BootSpec) (sandbox.Machine, error) {
	return p.start(spec.Dir), nil
}

func (p *paper) Restore(ctx context.Context, spec sandbox.RestoreSpec) (sandbox.Machine, error) {
	state, err := os.ReadFile(spec.StatePath)
	if err != nil || string(state) != paperState {
		return nil, fmt.Errorf("state %q: %w", state, err)
	}
	memory, err := spec.Memory(ctx)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(memory.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := p.start(spec.Dir)
	// As a mapping sees it: no matter what the file system says of holes.
	page := make([]byte, memfile.PageSize)
	for at := int64(0); at < paperPages*memfile.PageSize; at += memfile.PageSize {
		if _, err := f.ReadAt(page, at); err != nil {
			return m, err
		}
		m.set(at, string(page))
	}
	return m, nil
}

// paperPages is how many pages of a machine's memory are ever used.
const paperPages = 200

const paperState = "the VMM's state"

func (m *paperMachine) set(at int64, page string) {
	m.dirty[at] = true
	m.memory[at] = page
	if page == zeroPage {
		delete(m.memory, at)
	}
}

var zeroPage = string(make([]byte, memfile.PageSize))

func (m *paperMachine) Identity() sandbox.Identity   { return sandbox.Identity{PID: 1} }
func (m *paperMachine) Done() <-chan struct{}        { return m.done }
func (m *paperMachine) Exit() string                 { return "" }
func (m *paperMachine) Kill(context.Context) error   { m.end.Do(func() { close(m.done) }); return nil }
func (m *paperMachine) Pause(context.Context) error  { return nil }
func (m *paperMachine) Resume(context.Context) error { m.dirty = map[int64]bool{}; return nil }

func (m *paperMachine) Snapshot(_ context.Context, to sandbox.MachineSnapshot) error {
	f, err := os.Create(to.MemoryPath)
	if err != nil {
		return err
	}
	defer f.Close()
	err = f.Truncate(int64(to.MemoryMiB) << 20)
	pages := maps.Clone(m.memory)
	if to.Diff {
		clear(pages)
		for at := range m.dirty {
			pages[at] = zeroPage
			if page, ok := m.memory[at]; ok {
				pages[at] = page
			}
		}
	}
	for at, page := range pages {
		_, failed := f.WriteAt([]byte(page), at)
		err = errors.Join(err, failed)
	}
	return errors.Join(err, os.WriteFile(to.StatePath, []byte(paperState), 0o600))
}

// work is what the guest does: it changes, zeroes and adds pages and blocks.
func (m *paperMachine) work(t *testing.T, random *rand.Rand) content {
	t.Helper()
	block := func() []byte {
		b := make([]byte, memfile.PageSize)
		_, _ = rand.NewChaCha8([32]byte{byte(random.Int()), byte(random.Int()), byte(random.Int())}).Read(b)
		return b
	}
	f, err := os.OpenFile(filepath.Join(m.dir, sandbox.DiskName), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	for range 40 {
		m.set(random.Int64N(paperPages)*memfile.PageSize, string(block()))
		m.set(random.Int64N(paperPages)*memfile.PageSize, zeroPage)
		_, err := f.WriteAt(block(), random.Int64N(1<<20/memfile.PageSize)*memfile.PageSize)
		require.NoError(t, err)
	}
	return m.content(t)
}

func (m *paperMachine) content(t *testing.T) content {
	t.Helper()
	disk, err := os.ReadFile(filepath.Join(m.dir, sandbox.DiskName))
	require.NoError(t, err)
	return content{maps.Clone(m.memory), disk}
}

type paperGuest struct{}

func (paperGuest) Init(ctx context.Context, _ netip.Addr, init sandbox.GuestInit, _ <-chan struct{}) (sandbox.BootReport, error) {
	if init.Ready != nil {
		if err := init.Ready(ctx); err != nil {
			return sandbox.BootReport{}, err
		}
	}
	return sandbox.BootReport{EnvdVersion: "1"}, nil
}
func (paperGuest) Freeze(context.Context, netip.Addr, string) error { return nil }

// paperAgent is an agent whose domain, disks and layers are real and whose machines are not.
type paperAgent struct {
	*sandbox.Manager
	t    *testing.T
	root string
	vmm  *paper
}

func startPaperAgent(t *testing.T, root string) paperAgent {
	t.Helper()
	cfg := Config{Dir: root, ImageDir: filepath.Join(root, "image"), Logger: slog.New(slog.DiscardHandler)}
	store, err := rootfs.NewStore(rootfs.Config{ImageDir: cfg.ImageDir, Dir: filepath.Join(root, "disks"), Mode: rootfs.ModeCopy, Logger: cfg.Logger})
	require.NoError(t, err)
	layers := newMemoryPart(cfg)
	require.True(t, layers.Diffs())
	a := paperAgent{t: t, root: root, vmm: &paper{machines: map[string]*paperMachine{}}}
	a.Manager, err = sandbox.NewManager(sandbox.Config{
		Dir: filepath.Join(root, "sandboxes"), Logger: cfg.Logger, Network: sandboxtest.NewHost().Network(),
		Disk: newDiskPart(cfg, store), Memory: layers, VMM: a.vmm, Guest: paperGuest{},
	})
	require.NoError(t, err)
	return a
}

// end lets go of everything, so that the file system can be unmounted.
func (a paperAgent) end() { require.NoError(a.t, a.Close(context.Background(), true)) }

// leave ends the agent, which finds in its next life what there is now.
func (a paperAgent) leave() { require.NoError(a.t, a.Close(context.Background(), false)) }

// recover is what an agent does first.
func (a paperAgent) recover() error {
	finish, err := a.Recover()
	if err == nil {
		_, err = finish(a.t.Context())
	}
	return err
}

func (a paperAgent) dir(id string) string { return filepath.Join(a.root, "sandboxes", id) }

func (a paperAgent) machine(id string) *paperMachine {
	a.vmm.mu.Lock()
	defer a.vmm.mu.Unlock()
	return a.vmm.machines[a.dir(id)]
}

// paperImage is a template as `make image` makes it.
func paperImage(t *testing.T, root string) {
	t.Helper()
	dir := filepath.Join(root, "image/templates/base")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rootfs.ext4"), bytes.Repeat([]byte("template"), 1<<17), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "template.json"), []byte(`{"name":"base","vcpus":1,"memoryMib":128,"diskMib":1}`), 0o600))
}
