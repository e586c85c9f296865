package harness

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// ourPath is in the paths of everything that the suites give a program under test.
const ourPath = "/wrenn-e2e-"

func mounts(proc string) ([]string, error) {
	found, err := lines(proc + "/mountinfo")
	for i, line := range found {
		found[i] = strings.Fields(line)[4]
	}
	return found, err
}

// vmms lists the processes that run a guest for an agent.
func vmms() ([]string, error) {
	return commands(func(pid int, args string) bool {
		// Those of other tests run in temporary directories of their own, with other names.
		return strings.Contains(args, " --api-sock ") && strings.Contains(args, ourPath)
	})
}

// processes lists those of a Host, or on the machine those that the suites gave files to, save what the
// harness itself has started: a census with an agent and one without are comparable.
func (h *Host) processes() ([]string, error) {
	harness := 0 // the parent of a Host's processes is in none of its namespaces
	if h == nil {
		harness = os.Getpid()
	}
	return commands(func(pid int, args string) bool {
		return pid != os.Getpid() && parent(pid) != harness && (h != nil || strings.Contains(args, ourPath))
	})
}

// parent is a process's parent, -1 when the process has ended.
func parent(pid int) int {
	status, err := lines("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return -1
	}
	for _, line := range status {
		if number, ok := strings.CutPrefix(line, "PPid:"); ok {
			if ppid, err := strconv.Atoi(strings.TrimSpace(number)); err == nil {
				return ppid
			}
		}
	}
	return -1
}

// commands lists the command lines of the processes in /proc that which takes. Kernel threads and the dead
// have none.
func commands(which func(pid int, args string) bool) ([]string, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	out := []string{}
	for _, path := range found {
		cmdline, err := os.ReadFile(path)
		pid, numberErr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || numberErr != nil || len(cmdline) == 0 {
			continue // it has ended meanwhile
		}
		args := strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		if which(pid, args) {
			out = append(out, args)
		}
	}
	return out, err
}

// loops lists the files behind loop devices, which belong to the whole machine: only those of the Host's
// directories, or of any suite's for the machine.
func (h *Host) loops() ([]string, error) {
	found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	out := []string{}
	for _, path := range found {
		file, err := lines(path)
		if err == nil && len(file) == 1 && h.within(file[0]) {
			out = append(out, file[0])
		}
	}
	return out, err
}

// mapped lists the devices of the device mapper.
func mapped() ([]string, error) {
	found, err := names("/dev/mapper")
	out := []string{}
	for _, name := range found {
		if strings.HasPrefix(name, "wrenn") {
			out = append(out, name)
		}
	}
	return out, err
}

// cgroups lists the control groups that are ours, in either version's tree.
func cgroups() ([]string, error) {
	out := []string{}
	for _, depth := range []string{"/*wrenn*", "/*/*wrenn*", "/*/*/*wrenn*"} {
		found, err := filepath.Glob("/sys/fs/cgroup" + depth)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// States in /proc/net/tcp, udp and unix.
const (
	tcpListens  = "0A"
	udpUnbound  = "07"
	unixAccepts = "00010000"
)

// sockets lists what accepts connections: of a Host everything, of the machine the Unix sockets of the
// suites, since its ports are others' too.
func (h *Host) sockets() ([]string, error) {
	out := []string{}
	found, err := lines(h.proc() + "/net/unix")
	if err != nil {
		return nil, err
	}
	for _, line := range found {
		f := strings.Fields(line)
		if len(f) == 8 && f[3] == unixAccepts && (h != nil || strings.Contains(f[7], ourPath)) {
			out = append(out, "unix "+f[7])
		}
	}
	if h == nil {
		return out, nil
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		found, err := lines(h.proc() + "/net/" + table)
		if err != nil {
			return nil, err
		}
		for _, line := range found {
			f := strings.Fields(line)
			if len(f) > 3 && (f[3] == tcpListens || f[3] == udpUnbound) {
				out = append(out, table+" "+f[1])
			}
		}
	}
	return out, nil
}

// agentLock is an agent's while it runs and worth nothing afterwards.
const agentLock = "wrenn-agent.lock"

// runFiles lists what is in /run: of a Host all, of the machine what is Wrenn's. The folder of named
// namespaces is a kind of its own.
func (h *Host) runFiles() ([]string, error) {
	found, err := names("/run")
	out := []string{}
	for _, name := range found {
		if name != agentLock && (h != nil && name != "netns" || strings.HasPrefix(name, "wrenn")) {
			out = append(out, name)
		}
	}
	return out, err
}

// passing are files that come and go while nothing happens: disks that are copied ahead of need, what an agent
// has learned of its templates, and what SQLite keeps beside its database.
var passing = regexp.MustCompile(`/ready/|/\.?hashes\.json|\.db-(wal|shm|journal)$`)

// files lists the Host's directories.
func (h *Host) files() ([]string, error) {
	out := []string{}
	if h == nil {
		return out, nil
	}
	for _, dir := range h.dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err == nil && !passing.MatchString(path) {
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// keepsFilesIn makes dir part of the host's census and says whether it was not so far.
func (h *Host) keepsFilesIn(dir string) bool {
	if h == nil || h.within(dir) {
		return false
	}
	h.dirs = append(h.dirs, dir)
	return true
}

// within tells whether a path is in one of the host's directories.
func (h *Host) within(path string) bool {
	if h == nil {
		return strings.Contains(path, ourPath)
	}
	for _, dir := range h.dirs {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}
