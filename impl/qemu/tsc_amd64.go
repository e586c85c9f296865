package qemu

import (
	"bufio"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscSpan is how long the counter is compared with the clock: at 50 ms the error of a clock reading
// (under 1 µs) is 20 parts per million, as good as a common quartz.
const tscSpan = 50 * time.Millisecond

// tscKHz returns the frequency of the host's time stamp counter in kHz. Under emulation the guest
// reads that counter, and Linux hangs now and then when it tries to find the frequency itself, so it is
// told. The call takes tscSpan.
func tscKHz() int {
	tsc0, t0 := tscSample()
	time.Sleep(tscSpan)
	tsc1, t1 := tscSample()
	measured := float64(tsc1-tsc0) / (float64(t1.Sub(t0)) / float64(time.Millisecond))
	// Where the host kernel knows the frequency for certain (inside a VM), cpuinfo shows it exactly.
	if told := cpuinfoKHz(); told > 0 && math.Abs(told-measured)/measured < 1e-3 {
		return int(math.Round(told))
	}
	return int(math.Round(measured))
}

// tscSample pairs the counter with the clock, from the tightest of ten tries.
func tscSample() (uint64, time.Time) {
	var tsc uint64
	var at time.Time
	tightest := uint64(math.MaxUint64)
	for range 10 {
		before := rdtsc()
		now := time.Now()
		after := rdtsc()
		if gap := after - before; gap < tightest {
			tightest, tsc, at = gap, before+gap/2, now
		}
	}
	return tsc, at
}

// cpuinfoKHz returns "cpu MHz" of /proc/cpuinfo where it does not vary with load, else 0.
func cpuinfoKHz() float64 {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	var mhz float64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "cpu MHz":
			mhz, _ = strconv.ParseFloat(value, 64)
		case "flags":
			if !strings.Contains(" "+value+" ", " tsc_known_freq ") {
				return 0
			}
			return mhz * 1000
		}
	}
	return 0
}
