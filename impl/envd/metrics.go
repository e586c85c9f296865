package envd

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/answer"
)

// getEnvs answers the environment that every process gets.
func (d *daemon) getEnvs(w http.ResponseWriter, _ *http.Request) {
	answer.JSON(w, http.StatusOK, d.settings.Env())
}

type metrics struct {
	Timestamp   int64   `json:"ts"` // seconds since the epoch
	CPUCount    int     `json:"cpu_count"`
	CPUUsedPct  float64 `json:"cpu_used_pct"` // of all processors together, 0 to 100
	MemTotal    uint64  `json:"mem_total"`    // bytes, like all below
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

func (d *daemon) getMetrics(w http.ResponseWriter, _ *http.Request) {
	m, err := readMetrics(d.cpu)
	if err != nil {
		answer.Error(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer.JSON(w, http.StatusOK, m)
}

func readMetrics(cpu *cpuMeter) (metrics, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return metrics{}, fmt.Errorf("read memory use: %w", err)
	}
	mem := parseMeminfo(raw)
	used, err := cpu.percent()
	if err != nil {
		return metrics{}, err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs("/", &disk); err != nil {
		return metrics{}, fmt.Errorf("read disk use: %w", err)
	}
	m := metrics{
		Timestamp: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsedPct: used,
		MemTotal: mem["MemTotal"], MemUsed: mem["MemTotal"] - min(mem["MemTotal"], mem["MemAvailable"]), MemCache: mem["Cached"],
		DiskUsed:  (disk.Blocks - disk.Bfree) * uint64(disk.Bsize),
		DiskTotal: disk.Blocks * uint64(disk.Bsize),
	}
	m.MemTotalMiB, m.MemUsedMiB = m.MemTotal>>20, m.MemUsed>>20
	return m, nil
}

// parseMeminfo reads lines of "Name:  123 kB" into bytes.
func parseMeminfo(raw []byte) map[string]uint64 {
	out := map[string]uint64{}
	for sc := bufio.NewScanner(bytes.NewReader(raw)); sc.Scan(); {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			continue
		}
		if f := strings.Fields(rest); len(f) > 0 {
			if n, err := strconv.ParseUint(f[0], 10, 64); err == nil {
				out[name] = n << 10
			}
		}
	}
	return out
}

// cpuMeter tells how busy the processors were since it was last asked.
type cpuMeter struct {
	mu          sync.Mutex
	busy, total uint64 // jiffies since boot
	last        float64
}

func newCPUMeter() *cpuMeter {
	m := &cpuMeter{}
	m.busy, m.total, _ = cpuTimes()
	return m
}

// percent is 0 to 100, with two decimals. Asked again within a jiffy it repeats itself.
func (m *cpuMeter) percent() (float64, error) {
	busy, total, err := cpuTimes()
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if total > m.total && busy >= m.busy {
		m.last = math.Round(1e4*float64(busy-m.busy)/float64(total-m.total)) / 100
		m.busy, m.total = busy, total
	}
	return m.last, nil
}

// cpuTimes reads the first line of /proc/stat: user nice system idle iowait irq softirq steal guest…;
// guest time is contained in user time.
func cpuTimes() (busy, total uint64, err error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read processor use: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	for i, f := range strings.Fields(line) {
		n, err := strconv.ParseUint(f, 10, 64)
		if i == 0 || i > 8 || err != nil {
			continue
		}
		total += n
		if i != 4 && i != 5 { // idle, iowait
			busy += n
		}
	}
	return busy, total, nil
}
