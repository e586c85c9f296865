// Wrenn-init is the first program in every guest. It is /init of the initramfs: it loads the virtio
// modules, mounts the root disk, moves into it and, without being replaced, stays as PID 1: it sets up
// the network and the machine's identity, starts envd and reaps what envd leaves behind.
//
// It fails closed: whatever goes wrong is said in one line on the console, and the machine reboots,
// which (kernel argument reboot=k) ends the VMM. It never hangs and never goes on half set up.
//
// Without root= on the kernel command line it is the probe: it says that this VMM can run this kernel
// and reboots, so that a host learns in a second whether a VMM works at all.
//
// It imports no fmt and no net: on an emulated CPU every start-up cost of the Go runtime is multiplied
// by twenty.
package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// probeOK is what the probe prints, followed by the kernel's release. Hosts look for it.
const probeOK = "WRENN-PROBE-OK"

func main() {
	started := bootSeconds()
	if os.Getpid() != 1 {
		say("wrenn-init: not PID 1; it runs as /init of a Wrenn guest only")
		os.Exit(2)
	}
	defer func() {
		if r := recover(); r != nil {
			fatal("panic: " + describe(r))
		}
	}()
	fatal(run(started).Error())
}

// run boots the guest; it returns on failure only.
func run(started string) error {
	if err := mountAll(firstMounts); err != nil {
		return err
	}
	if err := leaveInitramfsOutput(); err != nil {
		return err
	}
	cfg, err := readConfig("/proc/cmdline")
	if err != nil {
		return err
	}
	if cfg.root == "" {
		say(probeOK + " " + kernelRelease())
		reboot()
	}
	loadModules("/modules")
	if err := enterRoot(cfg); err != nil {
		return err
	}
	if err := mountAll(guestMounts); err != nil {
		return err
	}
	setUpKernel()
	linkDevices()
	if err := setUpNetwork(cfg); err != nil {
		return err
	}
	for _, err := range setUpIdentity("/", cfg) {
		say("wrenn-init: " + err.Error())
	}
	return supervise(started)
}

// bootSeconds is the time since the machine started, suspended time included, in seconds.
func bootSeconds() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return "0"
	}
	return strconv.FormatFloat(float64(ts.Nano())/1e9, 'f', 3, 64)
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// describe turns a recovered value into text without fmt.
func describe(r any) string {
	switch v := r.(type) {
	case error:
		return v.Error()
	case string:
		return v
	}
	return "value of an unknown type"
}

// say prints one line on the console, which is what the kernel gave PID 1 as standard error.
func say(line string) {
	_, _ = os.Stderr.WriteString(line + "\n") // where the console is gone there is nobody to tell
}

// fatal says what failed and reboots.
func fatal(why string) {
	say("wrenn-init: fatal: " + why)
	reboot()
}
