package machine

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

var cpuMHz = regexp.MustCompile(`(?m)^cpu MHz\s*: ([0-9.]+)$`)

// TSCKHz returns the frequency of this machine's time stamp counter in kHz: as the kernel knows it where
// it knows it for certain (inside most virtual machines), else measured in 50 ms, which is good to some
// 20 parts per million.
func TSCKHz() int {
	info, err := os.ReadFile("/proc/cpuinfo")
	if found := cpuMHz.FindSubmatch(info); err == nil && found != nil && strings.Contains(string(info), " tsc_known_freq") {
		if mhz, err := strconv.ParseFloat(string(found[1]), 64); err == nil {
			return int(mhz * 1000)
		}
	}
	const span = 50 * time.Millisecond
	start, before := time.Now(), rdtsc()
	time.Sleep(span)
	took, ticks := time.Since(start), rdtsc()-before
	return int(float64(ticks) / (float64(took) / float64(time.Millisecond)))
}
