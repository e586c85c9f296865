package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// File descriptors that QEMU inherits, after the three standard ones; TAPs follow, and after them the state
// that is loaded, if any.
const (
	fdQMP = 3 + iota
	fdMemory
	fdFirstTAP
)

// argv is QEMU's command line. What holds names from outside is passed as JSON, where no comma or equals
// sign in a path can smuggle in an option.
//
// What was measured on an emulated 2.6 GHz core (QEMU 7.2, Debian's 6.1 cloud kernel, 256 MiB; from
// power-on to the first line of /init, median):
//
//	as below, ELF vmlinux through PVH        1.36 s
//	with cryptomgr.notests (emulationArgs)   1.1 s
//	bzImage                                  1.58 s   it unpacks itself first
//	gzipped initramfs, 2 CPUs, qemu64        ± 0.05 s no difference
//	x-option-roms=off                        ± 0.05 s no difference
//	pit=off,pic=off                          1.4 s    no difference
//	and rtc=off                              3.8 s    the kernel then calibrates otherwise
//	anonymous RAM, memfd, 1 GiB              ± 0.05 s no difference
//	tb-size 64, 256 or default               ± 0.05 s no difference
//
// The i8042 keyboard controller makes `reboot=k` immediate (without it the kernel knocks on a missing
// port for 1.4 s) and gives SendCtrlAltDel something to press, both as in Firecracker.
func (m *machine) argv() []string {
	argv := append(m.platform(true), "-kernel", m.boot.KernelImagePath, "-append", m.commandLine())
	if m.boot.InitrdPath != nil {
		argv = append(argv, "-initrd", *m.boot.InitrdPath)
	}
	return append(argv, m.devices()...)
}

// incomingArgv is the command line of a QEMU that goes on from a device state, which it inherits after the
// TAPs, over memory that stays as it is: QEMU maps the file privately. It has to name the very machine and
// devices, in the same order, that the state was saved from, and nothing of a boot.
func (m *machine) incomingArgv() []string {
	argv := append(m.platform(false), m.devices()...)
	return append(argv,
		// xen-save-devices-state writes neither a configuration section, which QEMU would insist on, nor
		// a description of the rest, whose lack it would complain of on the console.
		"-global", "migration.send-configuration=off", "-machine", "suppress-vmdesc=on",
		// The state is given once QEMU has told its version.
		"-incoming", "defer")
}

// fdState is the number of the state that QEMU inherits.
func (m *machine) fdState() int { return fdFirstTAP + len(m.nics) }

// machineType is QEMU's. A state that is loaded was saved from the same one.
const machineType = "microvm,acpi=on,rtc=on"

// platform is the machine without kernel and virtio devices.
func (m *machine) platform(share bool) []string {
	argv := []string{
		m.cfg.QEMU, "-name", "wrenn",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// QEMU may neither fork, nor exec, nor gain rights, nor change its limits.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", machineType + ",memory-backend=ram",
	}
	argv = append(argv, m.accelerator()...)
	return append(argv,
		"-cpu", cpuModel(m.cfg.Accel),
		"-smp", fmt.Sprint(m.machine.VCPUCount),
		"-m", fmt.Sprintf("%dM", m.machine.MemSizeMiB),
		// Shared memory in a memfd of ours: a snapshot can read it while QEMU only tells device states.
		"-object", jsonArg(object{"qom-type": "memory-backend-file", "id": "ram", "share": share,
			"size": int64(m.machine.MemSizeMiB) << 20, "mem-path": fmt.Sprintf("/proc/self/fd/%d", fdMemory)}),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		// The guest's console is our own stdin and stdout, as with Firecracker.
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "i8042",
		"-S",
	)
}

// devices are the virtio devices in the order that decides their addresses.
func (m *machine) devices() []string {
	var argv []string
	for _, d := range m.drives {
		argv = append(argv, d.argv()...)
	}
	for i, n := range m.nics {
		argv = append(argv, n.argv(fdFirstTAP+i, m.macs[n.IfaceID])...)
	}
	if m.entropy != nil {
		argv = append(argv, m.entropy.argv()...)
	}
	return argv
}

func (m *machine) accelerator() []string {
	if m.cfg.Accel == "kvm" {
		return []string{"-accel", "kvm"}
	}
	// 128 MiB of translated code hold a booted guest's working set (some 60 MiB) and bound the cost
	// per sandbox; QEMU's default of 1 GiB does not.
	return []string{"-accel", "tcg,thread=multi,tb-size=128"}
}

// cpuModel is QEMU's. A state that is loaded under another one "succeeds", and the guest never runs again.
func cpuModel(accel string) string {
	if accel == "kvm" {
		return "host"
	}
	return "max"
}

// commandLine is the guest kernel's: what was asked for, what Firecracker adds, and what emulation needs.
func (m *machine) commandLine() string {
	args := []string{defaultArgs}
	if m.boot.BootArgs != nil {
		args = []string{*m.boot.BootArgs}
	}
	if len(m.drives) > 0 && m.drives[0].IsRootDevice {
		root := m.drives[0]
		device, mode := "/dev/vda", "rw"
		if root.PartUUID != nil {
			device = "PARTUUID=" + *root.PartUUID
		}
		if root.IsReadOnly {
			mode = "ro"
		}
		args = append(args, "root="+device, mode)
	}
	args = append(args, "pci=off")
	if m.cfg.Accel != "kvm" {
		args = append(args, emulationArgs(m.tsc())...)
	}
	return strings.Join(args, " ")
}

// emulationArgs help a kernel on an emulated processor. Without the frequency of the time stamp counter
// half of all boots hang at its calibration on a busy machine; the kernel's self-tests of its ciphers
// take 0.3 s of emulated time and test nothing that changes from boot to boot.
func emulationArgs(tscKHz int) []string {
	args := []string{"cryptomgr.notests"}
	if tscKHz > 0 {
		args = append(args, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", tscKHz))
	}
	return args
}

type object = map[string]any

// argv describes file node, raw node and throttle node (so that file and limits can change while the guest
// runs), and the disk on top. Firecracker reads and writes through the host's page cache, as this does;
// cache_type Unsafe ignores the guest's flushes.
func (d drive) argv() []string {
	group := object{"qom-type": "throttle-group", "id": "limits_" + d.DriveID, "limits": throttleLimits(d.RateLimiter)}
	raw := object{"driver": "raw", "node-name": d.rawNode(), "read-only": d.IsReadOnly, "file": d.fileNode(0)}
	throttle := object{"driver": "throttle", "node-name": d.throttleNode(), "read-only": d.IsReadOnly,
		"throttle-group": "limits_" + d.DriveID, "file": d.rawNode()}
	disk := object{"driver": "virtio-blk-device", "id": "drive_" + d.DriveID, "drive": d.throttleNode()}
	return []string{
		"-object", jsonArg(group),
		"-blockdev", jsonArg(d.fileOptions(0)), "-blockdev", jsonArg(raw), "-blockdev", jsonArg(throttle),
		"-device", jsonArg(disk),
	}
}

// fileOptions describes the drive's backing file; generation tells apart the files that follow each other.
// QEMU would lock images; Firecracker does not, and a snapshot's successor may open the disk of a machine
// that is still paused.
func (d drive) fileOptions(generation int) object {
	driver := "file"
	if info, err := os.Stat(d.PathOnHost); err == nil && info.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	return object{"driver": driver, "node-name": d.fileNode(generation), "filename": d.PathOnHost,
		"read-only": d.IsReadOnly, "locking": "off", "cache": object{"direct": false, "no-flush": d.CacheType == "Unsafe"},
		// A load would write the whole disk out and forget it: a page cache may be stale where a machine has come
		// from another host, and ours never do.
		"drop-cache": false}
}

func (d drive) fileNode(generation int) string { return fmt.Sprintf("f%d_%s", generation, d.DriveID) }
func (d drive) rawNode() string                { return "r_" + d.DriveID }
func (d drive) throttleNode() string           { return "t_" + d.DriveID }

// throttleLimits translates Firecracker's buckets. QEMU's bucket of bps-total-max equals Firecracker's
// size, but QEMU refuses one that holds less than a second's worth; such a burst is left out, and a tenth
// of a second's worth remains.
func throttleLimits(l *rateLimiter) object {
	limits := object{}
	if l == nil {
		l = &rateLimiter{}
	}
	for name, bucket := range map[string]*tokenBucket{"bps-total": l.Bandwidth, "iops-total": l.Ops} {
		// Both are always named, so that an update can lift a limit.
		rate, burst := uint64(0), uint64(0)
		if bucket.limits() {
			rate = max(bucket.perSecond(), 1)
			if bucket.Size >= rate {
				burst = bucket.Size
			}
		}
		limits[name], limits[name+"-max"] = rate, burst
	}
	return limits
}

func (n nic) argv(fd int, mac string) []string {
	netdev := object{"type": "tap", "id": "tap_" + n.IfaceID, "fd": fmt.Sprint(fd)}
	device := object{"driver": "virtio-net-device", "id": "net_" + n.IfaceID, "netdev": "tap_" + n.IfaceID, "mac": mac}
	if n.MTU != nil {
		device["host_mtu"] = *n.MTU
	}
	return []string{"-netdev", jsonArg(netdev), "-device", jsonArg(device)}
}

func (e entropy) argv() []string {
	device := object{"driver": "virtio-rng-device", "id": "rng", "rng": "entropy"}
	if e.RateLimiter != nil && e.RateLimiter.Bandwidth.limits() {
		device["max-bytes"], device["period"] = e.RateLimiter.Bandwidth.Size, e.RateLimiter.Bandwidth.RefillTime
	}
	return []string{
		"-object", jsonArg(object{"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"}),
		"-device", jsonArg(device),
	}
}

// jsonArg renders an option; maps of strings, numbers and flags always marshal.
func jsonArg(o object) string {
	raw, err := json.Marshal(o)
	if err != nil {
		panic("option is not JSON: " + err.Error())
	}
	return string(raw)
}
