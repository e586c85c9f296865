package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn/impl/sandbox"
)

// Machine is a VMM process in memory, with a guest in it. Its memory and disk have content, so that a snapshot
// which loses some of it is found out.
type Machine struct {
	h        *Host
	dir      string
	slot     int
	identity sandbox.Identity
	done     chan struct{}
	exit     string

	running bool
	stuck   bool
	memory  pages
	dirty   map[string]bool
	drive   *os.File // its disk, as it was opened
	guest   guestState
}

// vmState is what a snapshot's state file holds.
type vmState struct {
	Drive string     `json:"drive"` // as the VMM was given it
	Guest guestState `json:"guest"`
}

// end ends the process. It is called with mu held.
func (m *Machine) end(how string) {
	m.exit, m.running = how, false
	_ = m.drive.Close()
	delete(m.h.machines, m.dir)
	close(m.done)
}

// Identity is the machine's pid and start.
func (m *Machine) Identity() sandbox.Identity { return m.identity }

// Done is closed at the machine's end.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit is how the machine ended.
func (m *Machine) Exit() string {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	return m.exit
}

// Kill ends the machine.
func (m *Machine) Kill(context.Context) error {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	if err := m.h.fail["vmm.kill"]; err != nil {
		return err
	}
	if m.h.machines[m.dir] == m {
		m.end("signal: killed")
	}
	return nil
}

// call does what the VMM's API does, if the process is there.
func (m *Machine) call(ctx context.Context, act string, do func() error) error {
	m.h.happen(act)
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	if m.exit != "" {
		return errors.New("the VMM's socket: connection refused")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(do(), m.h.fail[act])
}

// Pause stops the guest.
func (m *Machine) Pause(ctx context.Context) error {
	return m.call(ctx, "vmm.pause", func() error {
		if m.running {
			m.running, m.guest.SavedAt = false, time.Now()
		}
		return nil
	})
}

// Resume lets the guest go on.
func (m *Machine) Resume(ctx context.Context) error {
	return m.call(ctx, "vmm.resume", func() error {
		if m.stuck {
			return errors.New("the processors do not start")
		}
		if !m.running {
			m.running = true
			m.guest.Lag += time.Since(m.guest.SavedAt)
		}
		return nil
	})
}

// Snapshot writes the guest's state and memory.
func (m *Machine) Snapshot(ctx context.Context, to sandbox.MachineSnapshot) error {
	return m.call(ctx, "vmm.snapshot", func() error {
		if m.running {
			return errors.New("save/restore unavailable while running")
		}
		layer := pages{}
		if to.Diff {
			for page := range m.dirty {
				layer[page] = m.memory[page]
			}
		} else {
			maps.Copy(layer, m.memory)
		}
		state := vmState{Drive: sandbox.DiskName, Guest: m.guest}
		if err := errors.Join(writeJSON(to.MemoryPath, layer), writeJSON(to.StatePath, state)); err != nil {
			return err
		}
		m.dirty = map[string]bool{}
		return nil
	})
}

type vmm struct{ h *Host }

func (v vmm) Name() string { return v.h.VMMName }

// start makes a machine with the disk that dir has. It is called with mu held.
func (v vmm) start(ctx context.Context, dir string, slot int, act string) (*Machine, error) {
	if !v.h.networks[slot] {
		return nil, fmt.Errorf("no network in slot %d", slot)
	}
	if v.h.machines[dir] != nil {
		return nil, fmt.Errorf("the socket of %s exists", dir)
	}
	drive, err := os.OpenFile(filepath.Join(dir, sandbox.DiskName), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(v.h.fail[act], ctx.Err()); err != nil {
		return nil, errors.Join(err, drive.Close())
	}
	v.h.nextPID++
	m := &Machine{
		h: v.h, dir: dir, slot: slot, done: make(chan struct{}), memory: pages{}, dirty: map[string]bool{}, drive: drive,
		identity: sandbox.Identity{PID: v.h.nextPID, StartTicks: uint64(v.h.nextPID) * 100, HostBoot: v.h.HostBoot},
	}
	v.h.machines[dir] = m
	return m, errors.Join(v.h.FailAfterBoot, os.WriteFile(filepath.Join(dir, "console"), []byte(v.h.ConsoleText), 0o600))
}

func (v vmm) Boot(ctx context.Context, spec sandbox.BootSpec) (sandbox.Machine, error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	m, err := v.start(ctx, spec.Dir, spec.Slot, "vmm.boot")
	if m == nil {
		return nil, err
	}
	m.running = true
	m.guest = bootedGuest(spec.ID, m.identity.PID)
	return m, err
}

func (v vmm) Restore(ctx context.Context, spec sandbox.RestoreSpec) (sandbox.Machine, error) {
	var state vmState
	var content pages
	memory, err := spec.Memory(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(readJSON(spec.StatePath, &state), readJSON(memory.Path, &content)); err != nil {
		return nil, err
	}
	v.h.happen("vmm.restore")
	if state.Drive != sandbox.DiskName {
		return nil, fmt.Errorf("drive %q cannot be opened", state.Drive)
	}
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	m, err := v.start(ctx, spec.Dir, spec.Slot, "vmm.restore")
	if m == nil {
		return nil, err
	}
	m.memory, m.guest = content, state.Guest
	m.guest.Own = false
	return m, err
}

func (v vmm) Adopt(id sandbox.Identity, dir string) (sandbox.Machine, error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	m, ok := v.h.machines[dir]
	if !ok || m.identity != id {
		return nil, fmt.Errorf("no process %d of that start runs", id.PID)
	}
	return m, nil
}

func (v vmm) Orphans(root string) (map[string]sandbox.Identity, error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	found := map[string]sandbox.Identity{}
	for dir, m := range v.h.machines {
		if strings.HasPrefix(dir, root+"/") {
			found[dir] = m.identity
		}
	}
	return found, nil
}

func (v vmm) Console(dir string, limit int) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, "console"))
	if err != nil {
		return nil, err
	}
	return bytes.Clone(data[max(0, len(data)-limit):]), nil
}

// diskRegion is how much of its disk, from the start, a user's program keeps its values in. The disk may be a
// file or a device.
const diskRegion = 64 << 10

// onDisk reads or, with change, rewrites the region through the file that the machine has open.
func (m *Machine) onDisk(change func(pages)) (pages, error) {
	region := make([]byte, diskRegion)
	n, err := m.drive.ReadAt(region, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	content := pages{}
	if data := bytes.TrimRight(region[:n], "\x00"); len(data) > 0 {
		if err := json.Unmarshal(data, &content); err != nil {
			return nil, err
		}
	}
	if change == nil {
		return content, nil
	}
	change(content)
	data, err := json.Marshal(content)
	if err == nil && len(data) > diskRegion {
		err = errors.New("the disk is full")
	}
	if err != nil {
		return nil, err
	}
	clear(region)
	copy(region, data)
	_, err = m.drive.WriteAt(region, 0)
	return content, err
}
