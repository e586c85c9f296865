package pack

import (
	"fmt"
	"path/filepath"
)

// DefaultModules are loaded in every machine: devices for disks and networks, what iptables uses on
// its nf_tables back end, and SVM, which QEMU emulates. On a processor without SVM kvm_amd is refused
// by the kernel.
var DefaultModules = []string{
	"dm_snapshot", "dm_flakey", "loop", "tun", "veth", "dummy", "overlay",
	"nf_tables", "nft_compat", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_limit", "nft_log", "nft_reject_ipv4",
	"nf_conntrack_netlink", "xt_MASQUERADE", "xt_conntrack", "xt_nat", "xt_tcpudp", "xt_comment", "xt_mark", "xt_multiport",
	"xt_addrtype", "ipt_REJECT",
	"sch_tbf", "sch_htb", "sch_ingress", "cls_u32", "cls_matchall", "act_mirred", "ifb",
}

// defaultPrograms are there in every machine if this machine has them: what test scripts use.
var defaultPrograms = []string{
	"sh", "bash", "cat", "echo", "printf", "true", "false", "test", "[", "sleep", "env", "id", "kill", "ps", "pgrep", "nice", "setsid", "timeout",
	"ls", "cp", "mv", "rm", "ln", "mkdir", "rmdir", "touch", "chmod", "chown", "stat", "readlink", "realpath", "mktemp", "truncate",
	"fallocate", "dd", "sync", "df", "du", "find", "xargs", "head", "tail", "tee", "tr", "cut", "sort", "uniq", "wc", "seq", "grep", "sed",
	"awk", "cmp", "diff", "date", "uname", "hostname", "md5sum", "sha256sum", "od", "yes", "stty", "tty", "nohup", "su", "basename", "dirname",
	"mount", "umount", "mountpoint", "findmnt", "unshare", "nsenter", "losetup", "blockdev", "dmsetup", "mkfs.ext4", "e2fsck", "resize2fs", "debugfs", "dumpe2fs",
	"ip", "tc", "ss", "sysctl", "iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ping", "modprobe",
}

// defaultFiles are there in every machine if this machine has them: names of users and services, and
// the plug-ins of iptables.
var defaultFiles = []string{
	"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/hosts", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services", "/etc/mke2fs.conf",
	"/etc/iproute2", "/usr/lib/x86_64-linux-gnu/xtables",
}

// companions are files that a program opens by name at run time.
var companions = map[string][]string{
	"qemu-system-x86_64": {
		"/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so", "/usr/share/qemu/*.bin", "/usr/share/qemu/*.rom", "/usr/share/seabios/bios*.bin",
	},
}

// AddDefaults adds what every machine has, as far as this machine has it.
func (t *Tree) AddDefaults() error {
	for _, name := range defaultPrograms {
		path, err := lookUp(name)
		if err != nil {
			continue
		}
		if err := t.addObject(path); err != nil {
			return fmt.Errorf("pack program %s: %w", name, err)
		}
	}
	_, err := t.addMatches(defaultFiles)
	return err
}

// AddAsked adds what a package asks for; all of it must be there.
func (t *Tree) AddAsked(a Ask) error {
	for _, name := range a.Programs {
		if err := t.AddProgram(name); err != nil {
			return fmt.Errorf("pack program %s, which the package asks for: %w", name, err)
		}
		if _, err := t.addMatches(companions[filepath.Base(name)]); err != nil {
			return fmt.Errorf("what %s opens: %w", name, err)
		}
	}
	for _, pattern := range a.Files {
		found, err := t.addMatches([]string{pattern})
		if err == nil && found == 0 {
			err = fmt.Errorf("there is no %s", pattern)
		}
		if err != nil {
			return fmt.Errorf("what the package asks for: %w", err)
		}
	}
	return nil
}

// addMatches adds all files that match a pattern, and returns how many there were.
func (t *Tree) addMatches(patterns []string) (int, error) {
	n := 0
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return n, fmt.Errorf("pattern %s: %w", pattern, err)
		}
		for _, path := range paths {
			if err := t.Add(path); err != nil {
				return n, fmt.Errorf("pack: %w", err)
			}
		}
		n += len(paths)
	}
	return n, nil
}
