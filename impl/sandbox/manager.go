package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"wrenn/impl/internal/known"
	"wrenn/impl/snapshot"
)

// Defaults and bounds of a Manager.
const (
	// DefaultBootTimeout covers a cold boot by emulation on a loaded two-core host, which took up to
	// 20 s; by KVM it takes well under one.
	DefaultBootTimeout = 90 * time.Second
	// teardownTimeout bounds one destroy: a kill, some netlink calls and the removal of a file.
	teardownTimeout = 60 * time.Second
	// rulesTimeout bounds a change of a network's policy, which takes some ten milliseconds.
	rulesTimeout = 10 * time.Second
	// vmmOverheadMiB is counted per sandbox on top of the guest's memory: what QEMU's emulation keeps
	// for itself (measured 100 to 200 MiB; Firecracker promises at most 5 MiB).
	vmmOverheadMiB = 128
)

// Config is what a Manager is made of. All fields but SnapshotDir, BootTimeout, MemoryMiB, Limits and OnEnd
// are required.
type Config struct {
	// Dir holds a directory per sandbox and must be on a local disk; it is made when missing.
	Dir string
	// SnapshotDir holds a directory per named snapshot and must be on Dir's file system; empty means the
	// directory "snapshots" beside Dir.
	SnapshotDir string

	Logger  *slog.Logger
	Network Network
	Disk    Disk
	Memory  Memory
	VMM     VMM
	Guest   Guest
	// BootTimeout bounds a create; 0 means DefaultBootTimeout.
	BootTimeout time.Duration
	// MemoryMiB is what all guests together may have; 0 means no limit.
	MemoryMiB int
	// Limits are those of sandboxes that ask for none, and the most that one can ask for.
	Limits Limits
	// OnEnd is called when a sandbox's connections are to end (destroy, failure, pause, snapshot), before its
	// machine is stopped or killed and after Get has begun to say so. Nil is allowed.
	OnEnd func(id string)
}

// Manager owns the sandboxes of one host.
type Manager struct {
	cfg Config

	mu        sync.Mutex
	sandboxes map[string]*owned
	naming    map[string]bool // names of snapshots that are being written
	// goneSerial numbers the snapshots that are being removed.
	goneSerial int
	closed     bool
	wg         sync.WaitGroup

	disks known.Files
}

// NewManager makes the sandboxes' directory and returns a Manager that knows no sandbox yet; call
// Recover to find those of an earlier life.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.BootTimeout == 0 {
		cfg.BootTimeout = DefaultBootTimeout
	}
	if cfg.OnEnd == nil {
		cfg.OnEnd = func(string) {}
	}
	if cfg.SnapshotDir == "" {
		cfg.SnapshotDir = filepath.Join(filepath.Dir(cfg.Dir), "snapshots")
	}
	for _, dir := range []string{cfg.Dir, filepath.Join(cfg.SnapshotDir, namedNew), filepath.Join(cfg.SnapshotDir, namedGone)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the directory of sandboxes or snapshots: %w", err)
		}
	}
	return &Manager{cfg: cfg, sandboxes: make(map[string]*owned), naming: make(map[string]bool)}, nil
}

// Create makes a sandbox and returns when the daemon in its guest answers. When it fails, or ctx ends
// first, or the sandbox is destroyed meanwhile, nothing of it is left. The VMM does not hang on ctx.
func (m *Manager) Create(ctx context.Context, req CreateRequest) (Info, error) {
	if err := req.validate(); err != nil {
		return Info{}, err
	}
	if ctx.Err() != nil {
		return Info{}, context.Cause(ctx) // AfterFunc's goroutine might come after a quick create
	}
	tmpl, err := m.originOf(req)
	if err != nil {
		return Info{}, err
	}
	s := newOwned(req, tmpl)
	if s.policy, err = parseRules(req.rules()); err != nil {
		return Info{}, err
	}
	if s.now.Limits, err = req.Limits.within(m.cfg.Limits); err != nil {
		return Info{}, err
	}
	if s, err = m.admit(s); err != nil {
		return Info{}, err
	}
	stop := context.AfterFunc(ctx, s.abort)
	defer stop()
	<-s.created
	if s.createErr != nil {
		if ctx.Err() != nil {
			return Info{}, errors.Join(context.Cause(ctx), s.createErr)
		}
		return Info{}, s.createErr
	}
	return s.info(), nil
}

// originOf is what the sandbox starts from: the template, or what a snapshot says of its machine.
func (m *Manager) originOf(req CreateRequest) (Template, error) {
	if req.Snapshot == "" {
		tmpl, err := m.cfg.Disk.Template(req.Template)
		if err == nil && req.DiskMiB != 0 && req.DiskMiB < tmpl.DiskMiB {
			err = fmt.Errorf("%w: disk of %d MiB must be at least the template's %d", ErrInvalid, req.DiskMiB, tmpl.DiskMiB)
		}
		return tmpl, err
	}
	manifest, err := m.readNamed(req.Snapshot)
	if err != nil {
		return Template{}, err
	}
	for _, f := range []struct {
		field       string
		asked, have int
	}{
		{"vcpus", req.VCPUs, manifest.VCPUs}, {"memory", req.MemoryMiB, manifest.MemoryMiB}, {"disk", req.DiskMiB, manifest.DiskMiB},
	} {
		if f.asked != 0 && f.asked != f.have {
			return Template{}, fmt.Errorf("%w: %s %d is not that of snapshot %s, %d", ErrInvalid, f.field, f.asked, req.Snapshot, f.have)
		}
	}
	return Template{Name: manifest.Template, VCPUs: manifest.VCPUs, MemoryMiB: manifest.MemoryMiB, DiskMiB: manifest.DiskMiB}, nil
}

// admit enters s in the table, and starts its owner, if its id is new and the host has the memory for it.
func (m *Manager) admit(s *owned) (*owned, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	id := s.now.ID
	if _, ok := m.sandboxes[id]; ok {
		return nil, fmt.Errorf("%w: %s", ErrExists, id)
	}
	if name := s.now.Snapshot; name != "" { // from here on it counts as a user, and so keeps the snapshot there
		if _, err := os.Lstat(m.namedDir(name)); err != nil {
			return nil, fmt.Errorf("%w: %s", ErrNoSnapshot, name)
		}
	}
	if err := m.checkMemory(s); err != nil {
		return nil, err
	}
	m.sandboxes[id] = s
	m.wg.Go(func() { m.own(s, true) })
	return s, nil
}

// readmit is admit for a paused sandbox that comes back.
func (m *Manager) readmit(s *owned) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if err := m.checkMemory(s); err != nil {
		return err
	}
	s.become(Resuming)
	return nil
}

// checkMemory says whether the host has the memory for s beside all others. It is called with mu held.
func (m *Manager) checkMemory(s *owned) error {
	if m.cfg.MemoryMiB == 0 {
		return nil
	}
	used := 0
	for _, o := range m.sandboxes {
		if o != s {
			used += o.memoryCost()
		}
	}
	cost := s.now.MemoryMiB + vmmOverheadMiB
	if left := m.cfg.MemoryMiB - used; cost > left {
		return fmt.Errorf("%w: a guest of %d MiB costs %d MiB with its VMM, and %d of %d MiB are left on this host",
			ErrNoMemory, s.now.MemoryMiB, cost, max(left, 0), m.cfg.MemoryMiB)
	}
	return nil
}

// Get returns the sandbox with that id, or ErrNotFound.
func (m *Manager) Get(id string) (Info, error) {
	s, err := m.find(id)
	if err != nil {
		return Info{}, err
	}
	return s.info(), nil
}

// List returns all sandboxes, oldest first.
func (m *Manager) List() []Info {
	m.mu.Lock()
	infos := make([]Info, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		infos = append(infos, s.info())
	}
	m.mu.Unlock()
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID))
	})
	return infos
}

// Destroy ends a sandbox in whatever state it is and returns when nothing of it is left; a create
// under way is aborted. Destroys at the same time all return when it is gone. If something could not
// be removed the error says what; the sandbox stays listed as destroying and Destroy may be repeated.
func (m *Manager) Destroy(ctx context.Context, id string) error {
	s, err := m.find(id)
	if err != nil {
		return err
	}
	return s.destroy(ctx)
}

// SetDeadline moves the moment at which a running sandbox is reaped to timeout from now and returns
// it. With extendOnly an earlier moment than the present one is not taken.
func (m *Manager) SetDeadline(ctx context.Context, id string, timeout time.Duration, extendOnly bool) (time.Time, error) {
	if err := validateTimeout(timeout); err != nil {
		return time.Time{}, err
	}
	s, err := m.find(id)
	if err != nil {
		return time.Time{}, err
	}
	return s.setDeadline(ctx, timeout, extendOnly)
}

// DiskUsed is how many bytes a sandbox's disk, memory and snapshot take on the host: allocated blocks, each
// file once.
func (m *Manager) DiskUsed(id string) (int64, error) {
	if _, err := m.find(id); err != nil {
		return 0, err
	}
	return snapshot.Size(m.dir(id))
}

// Console returns at most limit of the last bytes that the guest printed on its console.
func (m *Manager) Console(id string, limit int) ([]byte, error) {
	if _, err := m.find(id); err != nil {
		return nil, err
	}
	return m.cfg.VMM.Console(m.dir(id), limit)
}

// Close refuses further creates, aborts those under way, and returns when no goroutine of the Manager
// runs. With destroy every sandbox is destroyed first; without, the machines stay for the next life. What
// could not be removed is said, and left to the next life too, whose journal has it as being destroyed.
func (m *Manager) Close(ctx context.Context, destroy bool) error {
	m.mu.Lock()
	m.closed = true
	all := make([]*owned, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		all = append(all, s)
	}
	m.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() {
			if destroy {
				errs[i] = s.destroy(ctx)
			}
			s.letGo()
		})
	}
	wg.Wait()
	idle := make(chan struct{})
	go func() { m.wg.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done(): // a teardown hangs in the kernel; its owner ends when that does
		errs = append(errs, fmt.Errorf("end the sandboxes: %w", context.Cause(ctx)))
	}
	return errors.Join(errs...)
}

func (m *Manager) find(id string) (*owned, error) {
	if err := validateID(id); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sandboxes[id]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return s, nil
}

func (m *Manager) forget(s *owned) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sandboxes, s.now.ID)
}
