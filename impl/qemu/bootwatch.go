package qemu

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
)

// About one boot in three hundred by emulation stands still for good half a second after power-on (QEMU 7.2, two
// processors; real ones do not). A kernel that has not read its disk has nothing to lose, so it is reset.
const (
	bootLook  = 5 * time.Second // between two looks at a boot
	bootLooks = 24              // two minutes: what boots later is let alone
	// bootIdle is the processor time between two looks below which a guest stands still: a boot uses all that it
	// gets, which is this little where a hundred share a processor. Two looks in a row have to find it so.
	bootIdle = 50 * time.Millisecond
	// bootSpin is the processor time that no boot takes up to its disk: 3 to 6 s do on two processors. One that
	// has used more waits for a processor that will not answer, and spins.
	bootSpin = 30 * time.Second
	// bootResets bounds how often: what stands still again does so for a reason.
	bootResets = 2
)

// bootWatch looks after one boot.
type bootWatch struct {
	exited  <-chan struct{}
	used    func() (time.Duration, error) // processor time of QEMU so far
	waiting func() (bool, error)          // the guest runs, and has not read its disk
	reset   func() error
	log     *slog.Logger
}

// run returns when the boot needs no watch any more.
func (w bootWatch) run() {
	idle, resets := 0, 0
	last, err := w.used()
	powerOn := last
	for look := 0; look < bootLooks && err == nil; look++ {
		select {
		case <-w.exited:
			return
		case <-time.After(bootLook):
		}
		waiting, failed := w.waiting()
		if failed != nil || !waiting {
			return
		}
		var now time.Duration
		now, err = w.used()
		if idle++; now-last >= bootIdle {
			idle = 0
		}
		last = now
		if idle < 2 && now-powerOn < bootSpin || resets == bootResets {
			continue
		}
		idle, resets = 0, resets+1
		w.log.Warn("the guest's kernel does not come to read its disk; it is started anew", "time", resets, "used", now-powerOn)
		powerOn, err = now, w.reset()
	}
	if err != nil {
		w.log.Warn("a boot cannot be watched", "error", err)
	}
}

// watchBoot is for a guest that boots by emulation from a disk.
func (g *guest) watchBoot(log *slog.Logger) {
	bootWatch{exited: g.exited, used: g.used, waiting: g.waitsForDisk, reset: g.reset, log: log}.run()
}

// clockTick is the unit of times in /proc/PID/stat on every Linux of x86 and ARM (USER_HZ).
const clockTick = time.Second / 100

// used is the processor time of QEMU so far.
func (g *guest) used() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; utime and stime are the 14th and 15th field, so the 12th and 13th
	// behind it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", g.cmd.Process.Pid, stat)
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat is %q", g.cmd.Process.Pid, stat)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// waitsForDisk says whether the guest runs and has not read its disk.
func (g *guest) waitsForDisk() (bool, error) {
	var now struct {
		Running bool `json:"running"`
	}
	if err := g.qmp.do("query-status", nil, &now); err != nil {
		return false, err
	}
	var drives []struct {
		Stats struct {
			Reads int64 `json:"rd_operations"`
		} `json:"stats"`
	}
	if err := g.qmp.do("query-blockstats", nil, &drives); err != nil {
		return false, err
	}
	for _, d := range drives {
		if d.Stats.Reads > 0 {
			return false, nil
		}
	}
	return now.Running, nil
}

// reset starts the guest anew. QEMU was told to end at a reset (-no-reboot), since that is how guests power off.
func (g *guest) reset() error {
	act := func(reboot string) error { return g.qmp.do("set-action", object{"reboot": reboot}, nil) }
	if err := act("reset"); err != nil {
		return err
	}
	if err := g.qmp.do("system_reset", nil, nil); err != nil {
		return err
	}
	return act("shutdown")
}
