// Package guest is vmexec inside the virtual machine: PID 1, which makes the machine a usable Linux,
// runs one test program in it, and sends out what that wrote and how it ended.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/vagrant/vmexec/link"
)

// IsInit reports whether this process is the machine's init.
func IsInit() bool { return os.Getpid() == 1 && os.Args[0] == "/init" }

// Main does the machine's job and ends the machine. What goes wrong before the line to the host is open
// is said on the console.
func Main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vmexec: in the machine:", err)
	}
	// The host ends the machine when it has the last frame; this is for when it never gets one.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	if err := mountAll(); err != nil {
		return err
	}
	job, err := readJob()
	if err != nil {
		return err
	}
	for _, m := range job.Modules {
		err := loadModule(m)
		if err != nil && strings.HasPrefix(m, "kvm_") {
			// A processor without SVM or VMX refuses its driver. Tests that need /dev/kvm will say so.
			fmt.Fprintln(os.Stderr, "vmexec: in the machine:", err)
		} else if err != nil {
			return err
		}
	}
	line, err := openLine()
	if err != nil {
		return err
	}
	out := link.NewWriter(line)
	if err := settle(); err != nil {
		return out.Exit(link.Status{Code: 1, Error: err.Error()})
	}
	if err := out.Send(link.Ready, nil); err != nil {
		return err
	}
	status := execute(job, line, out)
	if err := sendFiles(job.Out, link.Stream{Kind: link.Files, To: out}); err != nil {
		status.Error = err.Error()
	}
	if err := out.Exit(status); err != nil {
		return err
	}
	time.Sleep(lastFrameWait)
	return nil
}

// lastFrameWait is how long the host has to take the last frame and end the machine, which takes
// milliseconds.
const lastFrameWait = 10 * time.Second

func readJob() (link.Job, error) {
	var job link.Job
	data, err := os.ReadFile(link.JobPath)
	if err == nil {
		err = json.Unmarshal(data, &job)
	}
	if err != nil {
		return job, fmt.Errorf("read the job: %w", err)
	}
	return job, os.Remove(link.JobPath)
}

// openLine waits for the device: its driver finds it a moment after it is loaded.
func openLine() (*os.File, error) {
	const wait, poll = 10 * time.Second, 2 * time.Millisecond
	for deadline := time.Now().Add(wait); ; time.Sleep(poll) {
		line, err := os.OpenFile(link.DevicePath, os.O_RDWR, 0)
		if err == nil || time.Now().After(deadline) {
			return line, err
		}
	}
}

func loadModule(name string) error {
	f, err := os.Open(filepath.Join("/modules", name))
	if err != nil {
		return fmt.Errorf("open kernel module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters[name], 0); err != nil {
		return fmt.Errorf("load kernel module %s: %w", name, err)
	}
	return nil
}

// parameters keep drivers from making devices that nobody asked for and a census would count.
var parameters = map[string]string{"dummy.ko": "numdummies=0", "ifb.ko": "numifbs=0"}
