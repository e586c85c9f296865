package qemu

import (
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"sync"
)

// Limits that Firecracker sets.
const (
	maxVCPUs = 32
	// defaultArgs is Firecracker's command line where none is given; it has no console and no modules.
	defaultArgs = "reboot=k panic=1 pci=off nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd"
)

// state of the microVM, in the words of GET /.
type state string

const (
	notStarted state = "Not started"
	running    state = "Running"
	paused     state = "Paused"
)

// machine is the one microVM of the process: what was configured, and the guest once it runs. Calls are
// served one at a time, as by Firecracker.
type machine struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	state   state
	boot    *bootSource
	machine machineConfig
	drives  []drive // the root drive first
	nics    []nic
	taps    map[string]*os.File // by iface_id, attached since PUT
	macs    map[string]string   // by iface_id, as given or made up
	entropy *entropy
	logger  *loggerConfig
	metrics *metricsConfig
	guest   *guest
	memory  *memory
	shaper  *shaper
	tsc     func() int

	// configured says that something was given which a snapshot would bring: none can be loaded any more.
	configured bool
	// pageServer is the connection to the page server of a machine that was loaded by Uffd; it stays open
	// for the server to see our end.
	pageServer io.Closer
	fatal      error // why no guest was ever there, once ended is closed

	// ended is closed when a started guest is gone; code then holds the exit code.
	ended chan struct{}
	code  int
}

func newMachine(cfg Config, log *slog.Logger) *machine {
	m := &machine{
		cfg:     cfg,
		log:     log,
		state:   notStarted,
		machine: machineConfig{VCPUCount: 1, MemSizeMiB: 128, HugePages: "None"}, // Firecracker's defaults
		taps:    map[string]*os.File{},
		macs:    map[string]string{},
		shaper:  &shaper{},
		ended:   make(chan struct{}),
	}
	// The measurement takes 50 ms, which the configuring calls hide.
	measured := make(chan int, 1)
	go func() { measured <- tscKHz() }()
	m.tsc = sync.OnceValue(func() int { return <-measured })
	return m
}

// close ends a running guest and gives back what the machine holds.
func (m *machine) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest != nil {
		m.guest.kill()
	}
	if err := m.shaper.remove(); err != nil {
		m.log.Warn("rate limits left behind", "error", err)
	}
	for _, tap := range m.taps {
		_ = tap.Close() // nothing was written that could be lost
	}
	m.memory.close()
	if m.pageServer != nil {
		_ = m.pageServer.Close() // nothing is ever sent on it
	}
	m.tsc() // lets the measuring goroutine end
}

func (m *machine) beforeStart() error {
	if m.fatal != nil {
		return m.fatal // a load has failed, and the process is about to end
	}
	if m.state != notStarted {
		return errAfterStart
	}
	return nil
}

// configure is for calls that give the machine what a boot needs, whether they then succeed or not.
func (m *machine) configure() error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	m.configured = true
	return nil
}

func (m *machine) afterStart() error {
	if m.state == notStarted {
		return errBeforeStart
	}
	return nil
}

func (m *machine) putMachineConfig(c machineConfig) error {
	if err := m.configure(); err != nil {
		return err
	}
	if c.HugePages == "" {
		c.HugePages = "None"
	}
	if err := c.check(); err != nil {
		return err
	}
	m.machine = c
	return nil
}

func (m *machine) patchMachineConfig(p machinePatch) error {
	if err := m.configure(); err != nil {
		return err
	}
	if p == (machinePatch{}) {
		return faultf("Empty PATCH request.")
	}
	c := m.machine
	setIf(&c.VCPUCount, p.VCPUCount)
	setIf(&c.MemSizeMiB, p.MemSizeMiB)
	setIf(&c.SMT, p.SMT)
	setIf(&c.CPUTemplate, p.CPUTemplate)
	setIf(&c.TrackDirtyPages, p.TrackDirtyPages)
	setIf(&c.HugePages, p.HugePages)
	if err := c.check(); err != nil {
		return err
	}
	m.machine = c
	return nil
}

func setIf[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

func (c machineConfig) check() error {
	if c.VCPUCount < 1 || c.VCPUCount > maxVCPUs || (c.SMT && c.VCPUCount > 1 && c.VCPUCount%2 == 1) {
		return faultf("Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.")
	}
	if c.MemSizeMiB < 1 {
		return faultf("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.")
	}
	if c.HugePages != "None" {
		return faultf("Machine config error: firecracker-qemu supports no huge_pages other than None.")
	}
	if c.CPUTemplate != "" && c.CPUTemplate != "None" {
		return faultf("Machine config error: firecracker-qemu supports no cpu_template other than None.")
	}
	return nil
}

func (m *machine) putBootSource(b bootSource) error {
	if err := m.configure(); err != nil {
		return err
	}
	if err := canOpen(b.KernelImagePath, os.O_RDONLY); err != nil {
		return faultf("Boot source error: The kernel file cannot be opened: %s", osText(err))
	}
	if b.InitrdPath != nil {
		if err := canOpen(*b.InitrdPath, os.O_RDONLY); err != nil {
			return faultf("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. %s", osText(err))
		}
	}
	m.boot = &b
	return nil
}

func (m *machine) putDrive(d drive) error {
	if err := m.configure(); err != nil {
		return err
	}
	if d.Socket != nil {
		return faultf("Drive config error: firecracker-qemu does not support vhost-user drives.")
	}
	at := slices.IndexFunc(m.drives, func(o drive) bool { return o.DriveID == d.DriveID })
	root := slices.IndexFunc(m.drives, func(o drive) bool { return o.IsRootDevice })
	if d.IsRootDevice && root >= 0 && root != at {
		return faultf("Drive config error: A root block device already exists!")
	}
	if err := d.complete(); err != nil {
		return err
	}
	if at >= 0 {
		m.drives = slices.Delete(m.drives, at, at+1)
	} else {
		at = len(m.drives)
	}
	if d.IsRootDevice {
		at = 0 // the root drive is /dev/vda
	}
	m.drives = slices.Insert(m.drives, at, d)
	return nil
}

// complete fills in defaults and refuses what cannot be opened.
func (d *drive) complete() error {
	if d.CacheType == "" {
		d.CacheType = "Unsafe"
	}
	if d.IOEngine == "" {
		d.IOEngine = "Sync"
	}
	if d.CacheType != "Unsafe" && d.CacheType != "Writeback" {
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`, expected `Unsafe` or `Writeback`.", d.CacheType)
	}
	if d.IOEngine != "Sync" && d.IOEngine != "Async" {
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`, expected `Sync` or `Async`.", d.IOEngine)
	}
	flags := os.O_RDWR
	if d.IsReadOnly {
		flags = os.O_RDONLY
	}
	if err := canOpen(d.PathOnHost, flags); err != nil {
		return faultf("Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: %s %s",
			osText(err), d.PathOnHost)
	}
	return nil
}

var macPattern = regexp.MustCompile(`^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$`)

func (m *machine) putNIC(n nic) error {
	if err := m.configure(); err != nil {
		return err
	}
	if n.GuestMAC != nil && !macPattern.MatchString(*n.GuestMAC) {
		return faultf("An error occurred when deserializing the json body of a request: invalid value: string %q, expected a MAC address.", *n.GuestMAC)
	}
	if n.MTU != nil && (*n.MTU < 68 || *n.MTU > 65535) {
		return faultf("Network config error: invalid MTU %d: it must be from 68 to 65535.", *n.MTU)
	}
	at := slices.IndexFunc(m.nics, func(o nic) bool { return o.IfaceID == n.IfaceID })
	for i, o := range m.nics {
		if i != at && n.GuestMAC != nil && o.GuestMAC != nil && sameMAC(*o.GuestMAC, *n.GuestMAC) {
			return faultf("Network config error: The MAC address is already in use: %s", *n.GuestMAC)
		}
	}
	if at >= 0 {
		// The interface that is replaced may hold the very TAP that the new one names.
		_ = m.taps[n.IfaceID].Close()
		delete(m.taps, n.IfaceID)
		m.nics = slices.Delete(m.nics, at, at+1)
	}
	tap, err := openTAP(n.HostDevName)
	if err != nil {
		return faultf("Network config error: Could not create the network device: Open tap device failed: %s", err)
	}
	m.taps[n.IfaceID], m.macs[n.IfaceID] = tap, randomMAC()
	if n.GuestMAC != nil {
		m.macs[n.IfaceID] = *n.GuestMAC
	}
	m.nics = append(m.nics, n)
	return nil
}

func (m *machine) putEntropy(e entropy) error {
	if err := m.configure(); err != nil {
		return err
	}
	m.entropy = &e
	return nil
}

// start powers the guest on.
func (m *machine) start() error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if m.boot == nil {
		return faultf("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	if err := m.shaper.apply(m.nics); err != nil {
		return faultf("Start microvm error: set the network rate limits: %s", err)
	}
	memory, err := newMemory(int64(m.machine.MemSizeMiB) << 20)
	if err != nil {
		return faultf("Start microvm error: %s", err)
	}
	m.memory = memory
	g, err := startGuest(m, nil)
	if err != nil {
		m.memory.close()
		m.memory = nil
		return faultf("Start microvm error: %s", err)
	}
	m.guest, m.state = g, running
	go m.await(g)
	if m.cfg.Accel != "kvm" && len(m.drives) > 0 {
		go g.watchBoot(m.log)
	}
	return nil
}

// await ends the machine when its guest has ended.
func (m *machine) await(g *guest) {
	<-g.exited
	m.code = g.exitCode()
	close(m.ended)
}

func (m *machine) setState(want string) error {
	if err := m.afterStart(); err != nil {
		return err
	}
	var command string
	var to state
	switch want {
	case "Paused":
		command, to = "stop", paused
	case "Resumed":
		command, to = "cont", running
	default:
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`, expected `Paused` or `Resumed`.", want)
	}
	if to == m.state {
		return nil // Firecracker takes a repeated call as done
	}
	if err := m.guest.qmp.do(command, nil, nil); err != nil {
		return faultf("Internal VMM error: %s", err)
	}
	m.state = to
	return nil
}

func (m *machine) act(kind string) error {
	switch kind {
	case "InstanceStart":
		return m.start()
	case "FlushMetrics":
		if err := m.afterStart(); err != nil {
			return err
		}
		return m.flushMetrics()
	case "SendCtrlAltDel":
		if err := m.afterStart(); err != nil {
			return err
		}
		return m.guest.ctrlAltDel()
	}
	return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`.", kind)
}

func (m *machine) config() fullConfig {
	c := fullConfig{Drives: m.drives, BootSource: m.boot, Logger: m.logger, Machine: &m.machine,
		Metrics: m.metrics, NICs: m.nics, Entropy: m.entropy}
	if c.Drives == nil {
		c.Drives = []drive{}
	}
	if c.NICs == nil {
		c.NICs = []nic{}
	}
	if c.BootSource == nil {
		c.BootSource = &bootSource{}
	}
	return c
}
