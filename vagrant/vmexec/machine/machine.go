// Package machine runs one throw-away virtual machine on QEMU: a kernel, an initramfs in memory, a
// console that is kept, and a serial line for the work.
package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config describes a machine.
type Config struct {
	Kernel    string   // path of the bzImage
	Initramfs *os.File // read from its start, whatever its offset
	Memory    int      // MiB
	CPUs      int
	KVM       bool // run on /dev/kvm, else by emulation
}

// Machine is one that was started. It ends with Kill, with the process that started it (however that
// ends), or by itself.
type Machine struct {
	Line    *os.File // to the port that link.DevicePath is the other end of
	Console *Console // what the kernel and QEMU said
	cmd     *exec.Cmd
}

// Program is QEMU, of Debian's package qemu-system-x86.
const Program = "qemu-system-x86_64"

// Start starts the machine. The calling goroutine must be locked to a thread that lives as long as the
// machine should: the kernel ends QEMU with the thread that started it.
func Start(c Config) (*Machine, error) {
	ours, theirs, err := linePair()
	if err != nil {
		return nil, fmt.Errorf("make the line to the machine: %w", err)
	}
	defer theirs.Close()
	m := &Machine{Line: ours, Console: &Console{}}
	m.cmd = exec.Command(Program, c.arguments()...) //nolint:noctx // Kill ends it, or the thread's end
	m.cmd.ExtraFiles = []*os.File{c.Initramfs, theirs}
	m.cmd.Stdout, m.cmd.Stderr = m.Console, m.Console
	// A group of its own: Ctrl-C in a terminal is for vmexec to handle.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s (Debian's package qemu-system-x86): %w", Program, err), ours.Close())
	}
	return m, nil
}

// File descriptors that the machine inherits.
const (
	initramfsFD = 3
	lineFD      = 4
)

func (c Config) arguments() []string {
	kernel := "console=ttyS0 quiet oops=panic panic=-1 reboot=t random.trust_cpu=on net.ifnames=0"
	accel, cpu := "kvm", "host"
	if !c.KVM {
		accel, cpu = "tcg,thread=multi", "max,svm=on,npt=on"
		// An emulated machine reads this machine's counter, and hangs now and then when it must measure it.
		kernel += " tsc=reliable tsc_early_khz=" + strconv.Itoa(TSCKHz())
	}
	return []string{
		"-M", "q35", "-accel", accel, "-cpu", cpu,
		"-m", strconv.Itoa(c.Memory), "-smp", strconv.Itoa(c.CPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=line,fd=" + strconv.Itoa(lineFD),
		"-device", "virtio-serial-pci,max_ports=2", "-device", "virtserialport,chardev=line,nr=1",
		"-kernel", c.Kernel, "-initrd", "/proc/self/fd/" + strconv.Itoa(initramfsFD),
		"-append", kernel,
	}
}

// linePair is a socket for us, which takes deadlines, and one for QEMU. (A net.Conn would do as well, but
// package net would make vmexec a dynamic executable, which is no init.)
func linePair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "line"), os.NewFile(uintptr(fds[1]), "line"), nil
}

// Signal passes a signal on to the test program.
func (m *Machine) Signal(s syscall.Signal) error {
	_, err := m.Line.Write([]byte{byte(s)})
	return err
}

// Kill ends the machine and waits until QEMU is gone. It may be called for one that has ended.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill() // gone already, then
	_ = m.cmd.Wait()         // its status says no more than the frames did
	_ = m.Line.Close()       // nothing is written any more
}

// Memory returns a file in memory, for an initramfs: it takes no name and leaves none.
func Memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
