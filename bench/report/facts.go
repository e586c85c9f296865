package main

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"wrenn/bench/ground"
)

// fact is one line of the benchmark format's configuration.
type fact struct{ key, value string }

// commandTime bounds each program that is asked for a fact.
const commandTime = 10 * time.Second

// facts are what figures depend on. What cannot be found out is "unknown".
func facts(ctx context.Context) []fact {
	return []fact{
		{"date", time.Now().UTC().Format(time.RFC3339)},
		{"commit", commit(ctx)},
		{"kernel", file("/proc/sys/kernel/osrelease")},
		{"cpu-model", cpuModel()},
		{"cores", strconv.Itoa(runtime.NumCPU())},
		{"load-average", file("/proc/loadavg")},
		{"cpu-pressure", file("/proc/pressure/cpu")},
		{"go", runtime.Version()},
		{"vmm", ground.VMM()},
		{"tcp-congestion-control", file("/proc/sys/net/ipv4/tcp_congestion_control")},
		{"tcp-wmem", file("/proc/sys/net/ipv4/tcp_wmem")},
		{"ssh", output(ctx, "ssh", "-V")},
		{"nginx", output(ctx, "nginx", "-v")},
		{"terminado", output(ctx, "/usr/bin/python3", "-c", "import terminado; print(terminado.__version__)")},
	}
}

const unknown = "unknown"

// file is the first line of a file.
func file(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return unknown
	}
	return firstLine(string(raw))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	if line = strings.Join(strings.Fields(line), " "); line == "" {
		return unknown
	}
	return line
}

// output is the first line that a program prints, wherever it prints it.
func output(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return unknown
	}
	return firstLine(string(out))
}

// commit is the checkout's, with a plus where it was changed.
func commit(ctx context.Context) string {
	id := output(ctx, "git", "rev-parse", "--short=12", "HEAD")
	if id != unknown && output(ctx, "git", "status", "--porcelain", "--untracked-files=no") != unknown {
		id += "+"
	}
	return id
}

func cpuModel() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}
