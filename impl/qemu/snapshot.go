package qemu

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// createSnapshot writes state and memory of the paused machine, both to the disk before it answers.
func (m *machine) createSnapshot(c snapshotCreate) error {
	if c.SnapshotType != "" && c.SnapshotType != "Full" && c.SnapshotType != "Diff" {
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`, expected `Diff` or `Full`.", c.SnapshotType)
	}
	if err := m.afterStart(); err != nil {
		return err
	}
	if m.state != paused {
		return faultf("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	devices, err := m.guest.deviceState()
	if err != nil {
		return faultf("Create snapshot error: Cannot save the microVM state: %s", err)
	}
	content, err := encodeState(m.describe(), devices)
	if err != nil {
		return faultf("Create snapshot error: Cannot serialize the microVM state: %s", err)
	}
	if err := writeState(c.SnapshotPath, content); err != nil {
		return faultf("Create snapshot error: %s", err)
	}
	file, err := openMemoryFile(c.MemFilePath, m.memory.size)
	if err != nil {
		return faultf("Create snapshot error: %s", err)
	}
	if err := m.memory.save(m.guest.cmd.Process.Pid, c.SnapshotType == "Diff", file); err != nil {
		_ = file.close(false) // the first error is the one to tell
		return faultf("Create snapshot error: Cannot write memory file: %s", err)
	}
	if err := file.close(true); err != nil {
		return faultf("Create snapshot error: Cannot perform sync_all on the memory backing file: %s", osText(err))
	}
	return nil
}

func (m *machine) describe() description {
	return description{QEMU: m.guest.version, Machine: machineType, Accel: m.cfg.Accel, CPU: cpuModel(m.cfg.Accel),
		Config: m.machine, Drives: m.drives, NICs: m.nics, MACs: m.macs, Entropy: m.entropy}
}

// deviceState is what QEMU saves of everything but the memory. It writes to a file by its name; a memfd of
// ours has one, and leaves nothing behind.
func (g *guest) deviceState() ([]byte, error) {
	fd, err := unix.MemfdCreate("device-state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file for the device state: %w", err)
	}
	f := os.NewFile(uintptr(fd), "device-state")
	defer f.Close()
	// "live" set to false leaves the images with this QEMU, which goes on.
	args := object{"filename": fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), "live": false}
	if err := g.qmp.do("xen-save-devices-state", args, nil); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxDeviceState+1))
}

// loadSnapshot makes the machine of a snapshot, paused or running. Once it has begun, a failure ends the
// process, as Firecracker's does.
func (m *machine) loadSnapshot(l snapshotLoad) error {
	if err := l.complete(); err != nil {
		return err
	}
	if err := m.beforeStart(); err != nil {
		return err
	}
	if m.configured {
		return faultf("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	if err := m.restore(l); err != nil {
		err = faultf("Load snapshot error: Failed to restore from snapshot: %s", err)
		m.fail(err)
		return err
	}
	if !l.ResumeVM {
		return nil
	}
	if err := m.setState("Resumed"); err != nil {
		err = faultf("Load snapshot error: Failed to resume microVM: %s", err)
		m.fail(err)
		return err
	}
	return nil
}

// complete checks what decoding does not, and turns the deprecated way to name a memory file into the present
// one.
func (l *snapshotLoad) complete() error {
	const cannot = "An error occurred when deserializing the json body of a request: "
	switch {
	case l.MemBackend != nil && l.MemFilePath != nil:
		return faultf(cannot + "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.")
	case l.MemBackend == nil && l.MemFilePath == nil:
		return faultf(cannot + "missing field: either `mem_backend` or `mem_file_path` is required.")
	case l.MemBackend == nil:
		l.MemBackend = &memBackend{BackendPath: *l.MemFilePath, BackendType: "File"}
	}
	if t := l.MemBackend.BackendType; t != "File" && t != "Uffd" {
		return faultf(cannot+"unknown variant `%s`, expected `File` or `Uffd`.", t)
	}
	for _, o := range l.NetworkOverrides {
		if o.IfaceID == nil {
			return faultf(cannot + "missing field `iface_id`.")
		}
		if o.HostDevName == nil {
			return faultf(cannot + "missing field `host_dev_name`.")
		}
	}
	return nil
}

// restore configures the machine as the state file says and lets QEMU load it.
func (m *machine) restore(l snapshotLoad) error {
	state, d, err := readState(l.SnapshotPath)
	if err != nil {
		return fmt.Errorf("Failed to get snapshot state from file: %w", err) //nolint:staticcheck // Firecracker's words
	}
	defer state.Close()
	if err := d.check(m.cfg.Accel); err != nil {
		return fmt.Errorf("Invalid snapshot state: %s %w", l.SnapshotPath, err) //nolint:staticcheck // Firecracker's words
	}
	for _, o := range l.NetworkOverrides {
		at := slices.IndexFunc(d.NICs, func(n nic) bool { return n.IfaceID == *o.IfaceID })
		if at < 0 {
			return fmt.Errorf("Failed to get snapshot state from file: Unknown Network Device.") //nolint:staticcheck // Firecracker's words
		}
		d.NICs[at].HostDevName = *o.HostDevName
	}
	if l.VsockOverride != nil {
		return fmt.Errorf("Failed to get snapshot state from file: Unknown Vsock Device.") //nolint:staticcheck // Firecracker's words
	}
	if err := m.loadMemory(*l.MemBackend, int64(d.Config.MemSizeMiB)<<20); err != nil {
		return fmt.Errorf("Failed to load guest memory: %w", err) //nolint:staticcheck // Firecracker's words
	}
	if l.ClockRealtime {
		// Firecracker loads no snapshot with it whose clock was not a kvmclock with the host's time.
		return fmt.Errorf("Failed to build microVM from snapshot: clock_realtime: the snapshot holds no host time of a kvmclock") //nolint:staticcheck // Firecracker's words
	}
	if err := m.build(d, state, l.TrackDirtyPages || l.EnableDiffSnapshots); err != nil {
		return fmt.Errorf("Failed to build microVM from snapshot: %w", err) //nolint:staticcheck // Firecracker's words
	}
	return nil
}

func (m *machine) loadMemory(b memBackend, size int64) (err error) {
	if b.BackendType == "Uffd" {
		if m.memory, m.pageServer, err = preload(b.BackendPath, size, preloadTimeout(size)); err != nil {
			return fmt.Errorf("Error creating guest memory from uffd: %w", err)
		}
		return nil
	}
	if m.memory, err = openMemory(b.BackendPath, size); err != nil {
		return fmt.Errorf("Error creating guest memory from file: %w", err)
	}
	return nil
}

// build opens what the machine needs and starts QEMU on the state.
func (m *machine) build(d description, state *os.File, track bool) error {
	m.machine, m.drives, m.entropy = d.Config, d.Drives, d.Entropy
	m.machine.TrackDirtyPages = track
	for i := range m.drives {
		if err := m.drives[i].complete(); err != nil {
			return err
		}
	}
	for _, n := range d.NICs {
		tap, err := openTAP(n.HostDevName)
		if err != nil {
			return fmt.Errorf("Open tap device failed: %w", err) //nolint:staticcheck // Firecracker's words
		}
		m.taps[n.IfaceID], m.macs[n.IfaceID] = tap, d.MACs[n.IfaceID]
		m.nics = append(m.nics, n)
	}
	if err := m.shaper.apply(m.nics); err != nil {
		return fmt.Errorf("set the network rate limits: %w", err)
	}
	g, err := startGuest(m, &incoming{state: state, fd: m.fdState(), qemu: d.QEMU})
	if err != nil {
		return err
	}
	m.guest, m.state = g, paused
	go m.await(g)
	return nil
}

// fail ends the process, once the call at hand is answered.
func (m *machine) fail(err error) {
	if m.guest != nil {
		// Its end, which is watched, ends the process with 1.
		_ = m.guest.cmd.Process.Kill()
		return
	}
	m.fatal, m.code = err, exitError
	close(m.ended)
}

// qemuVersion is major and minor; the third number counts corrections, which leave the format alone.
func (g *guest) qemuVersion() (string, error) {
	var v struct {
		QEMU struct {
			Major json.Number `json:"major"`
			Minor json.Number `json:"minor"`
		} `json:"qemu"`
	}
	if err := g.qmp.do("query-version", nil, &v); err != nil {
		return "", err
	}
	return v.QEMU.Major.String() + "." + v.QEMU.Minor.String(), nil
}
