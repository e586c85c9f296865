package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

type state string

// The states of a microVM, in the words of GET /.
const (
	notStarted state = "Not started"
	running    state = "Running"
	paused     state = "Paused"
)

// ending is how the process ends, err being what it says.
type ending struct {
	code int
	err  error
}

// machine is the one microVM of the process: what was configured, and the guest once it runs.
type machine struct {
	id      string
	console *os.File
	ended   chan ending // gets one value

	mu      sync.Mutex
	state   state
	machine machineConfig
	boot    *bootSource
	drives  []drive
	nic     *nic
	tap     *os.File // attached since PUT, as by Firecracker
	guest   *guest
}

func newMachine(id string, console *os.File) *machine {
	return &machine{
		id: id, console: console, ended: make(chan ending, 1), state: notStarted,
		machine: machineConfig{VCPUCount: 1, MemSizeMiB: 128}, // Firecracker's defaults
	}
}

func (m *machine) beforeStart() error {
	if m.state != notStarted {
		return errAfterStart
	}
	return nil
}

func (m *machine) putMachineConfig(c machineConfig) error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if c.VCPUCount < 1 || c.VCPUCount > 32 || c.MemSizeMiB < 1 {
		return fmt.Errorf("the machine configuration is invalid: %+v", c)
	}
	m.machine = c
	return nil
}

func (m *machine) putBootSource(b bootSource) error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if err := readable(b.KernelImagePath); err != nil {
		return fmt.Errorf("The kernel file cannot be opened: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	if b.InitrdPath != "" {
		if err := readable(b.InitrdPath); err != nil {
			return fmt.Errorf("The initrd file cannot be opened: %s", osText(err)) //nolint:staticcheck // Firecracker's words
		}
	}
	m.boot = &b
	return nil
}

func (m *machine) putDrive(d drive) error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if err := readable(d.PathOnHost); err != nil {
		return fmt.Errorf("Error manipulating the backing file: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	at := slices.IndexFunc(m.drives, func(o drive) bool { return o.DriveID == d.DriveID })
	for i, o := range m.drives {
		if i != at && o.IsRootDevice && d.IsRootDevice {
			return errors.New("A root block device already exists!") //nolint:staticcheck // Firecracker's words
		}
	}
	if at >= 0 {
		m.drives[at] = d
	} else {
		m.drives = append(m.drives, d)
	}
	return nil
}

func (m *machine) putNIC(n nic) error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if m.nic != nil && m.nic.IfaceID != n.IfaceID {
		return errors.New("procvmm has one network interface")
	}
	if m.tap != nil {
		_ = m.tap.Close() // nothing was written that could be lost
		m.tap, m.nic = nil, nil
	}
	tap, err := openTAP(n.HostDevName)
	if err != nil {
		return fmt.Errorf("Could not create the network device: Open tap device failed: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	m.tap, m.nic = tap, &n
	return nil
}

func (m *machine) act(what string) error {
	switch what {
	case "InstanceStart":
		return m.start()
	case "SendCtrlAltDel":
		if m.state == notStarted {
			return errBeforeStart
		}
		return m.guest.restart()
	}
	return fmt.Errorf("unknown variant `%s`", what)
}

// start powers the guest on. Without a root drive it is a probe, which says that this VMM works.
func (m *machine) start() error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if m.boot == nil {
		return errors.New("Cannot start microvm without kernel configuration.") //nolint:staticcheck // Firecracker's words
	}
	root := slices.IndexFunc(m.drives, func(d drive) bool { return d.IsRootDevice })
	if root < 0 {
		m.state = running
		_, err := fmt.Fprintln(m.console, "WRENN-PROBE-OK", kernelRelease())
		m.ended <- ending{code: exitOK, err: err}
		return nil
	}
	g, err := startGuest(guestConfig{
		Drive: m.drives[root], Args: m.boot.BootArgs, NIC: m.nic,
	}, m.tap, m.console)
	if err != nil {
		return fmt.Errorf("Start microvm error: %w", err) //nolint:staticcheck // Firecracker's words
	}
	m.guest, m.state = g, running
	go func() {
		err := <-g.ended
		end := ending{code: exitOK}
		if err != nil {
			end = ending{code: exitError, err: err}
		}
		m.ended <- end
	}()
	return nil
}

func (m *machine) setState(want string) error {
	if m.state == notStarted {
		return errBeforeStart
	}
	switch {
	case want == "Paused" && m.state == running:
		if err := m.guest.pause(); err != nil {
			return err
		}
		m.state = paused
	case want == "Resumed" && m.state == paused:
		if err := m.guest.resume(); err != nil {
			return err
		}
		m.state = running
	case want != "Paused" && want != "Resumed":
		return fmt.Errorf("unknown variant `%s`", want)
	}
	return nil
}

func (m *machine) config() vmConfig {
	c := vmConfig{Machine: m.machine, Drives: slices.Clone(m.drives), NICs: []nic{}}
	if c.Drives == nil {
		c.Drives = []drive{}
	}
	if m.boot != nil {
		c.BootSource = *m.boot
	}
	if m.nic != nil {
		c.NICs = append(c.NICs, *m.nic)
	}
	return c
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// osText renders the errors that callers look for as Firecracker's language does.
func osText(err error) string {
	for errno, text := range map[unix.Errno]string{
		unix.ENOENT: "No such file or directory", unix.ENODEV: "No such device", unix.EBUSY: "Device or resource busy",
	} {
		if errors.Is(err, errno) {
			return fmt.Sprintf("%s (os error %d)", text, int(errno))
		}
	}
	return err.Error()
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
