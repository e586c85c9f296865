package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"wrenn/impl/agent"
	"wrenn/impl/rootfs"
)

// check is one line of `wrenn doctor`.
type check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
	// optional checks that fail do not make the doctor fail.
	optional bool
}

func doctorCommand(o *options) *cobra.Command {
	var cfg agent.Config
	var networks bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether sandboxes can run on this machine, with which VMM, and why",
		Long: `Say whether sandboxes can run on this machine, with which VMM, and why. Each VMM is probed by booting a
tiny guest, whatever was found before.

With --network it lists instead what Wrenn has in the kernel for networks (namespaces, links, routes, rules),
the sandbox that each belongs to, and what belongs to nobody. It asks the agent, or where none runs goes by
the journals of the sandboxes. It fails when there is an orphan.`,
		Example: "  sudo wrenn doctor\n  sudo wrenn doctor --network\n  sudo wrenn doctor --network --json | jq '.objects[] | select(.role == \"orphan\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if networks {
				return doctorNetwork(cmd, o)
			}
			cfg.Dir, cfg.ProbeAfresh = filepath.Join(o.dataDir(), "agent"), true
			cfg.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			checks := examine(cmd.Context(), cfg)
			failed := 0
			for _, c := range checks {
				if !c.OK && !c.optional {
					failed++
				}
			}
			if o.json {
				if err := printJSON(cmd.OutOrStdout(), checks); err != nil {
					return err
				}
			} else {
				printChecks(cmd, checks)
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d checks failed", failed, len(checks))
			}
			return nil
		},
	}
	cfg.Flags(cmd.Flags())
	cmd.Flags().BoolVar(&networks, "network", false, "list the kernel's objects of all networks, with their owners")
	return cmd
}

func printChecks(cmd *cobra.Command, checks []check) {
	for _, c := range checks {
		mark := "ok  "
		if !c.OK {
			mark = "FAIL"
			if c.optional {
				mark = "no  "
			}
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%s  %-18s %s\n", mark, c.Name, c.Detail)
		if !c.OK && c.Remedy != "" {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "      %-18s → %s\n", "", c.Remedy)
		}
	}
}

// examine runs all checks; one that fails does not keep the others from running.
func examine(ctx context.Context, cfg agent.Config) []check {
	checks := []check{rootCheck()}
	for _, p := range []string{"iptables", "ip", "unshare"} {
		checks = append(checks, programCheck(p))
	}
	checks = append(checks, deviceCheck("/dev/net/tun", false), deviceCheck("/dev/kvm", true), imageCheck(cfg), spaceCheck(cfg.Dir))
	if !checks[0].OK {
		return checks
	}
	choice := agent.Choose(ctx, cfg)
	for _, a := range choice.Tried {
		checks = append(checks, check{Name: "vmm " + a.Name, OK: a.OK, Detail: oneLine(a.Reason), optional: true})
	}
	vmm := check{Name: "vmm", OK: choice.Err == nil, Detail: oneLine(choice.Reason)}
	if choice.Err != nil {
		vmm.Detail = "no VMM works here"
		vmm.Remedy = "install qemu-system-x86 and build the image (make deps image), or run on a machine with KVM"
	}
	return append(checks, vmm)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func rootCheck() check {
	c := check{Name: "root", OK: os.Geteuid() == 0, Detail: "runs as root", Remedy: "run it with sudo"}
	if !c.OK {
		c.Detail = "not root: the VMMs cannot be probed"
	}
	return c
}

func programCheck(name string) check {
	path, err := exec.LookPath(name)
	if err != nil {
		return check{Name: name, Detail: "not found", Remedy: "run `make deps`"}
	}
	return check{Name: name, OK: true, Detail: path}
}

func deviceCheck(path string, optional bool) check {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return check{Name: path, Detail: err.Error(), optional: optional}
	}
	_ = f.Close()
	return check{Name: path, OK: true, Detail: "opens", optional: optional}
}

func imageCheck(cfg agent.Config) check {
	c := check{Name: "image", Remedy: "run `make image`, or name another directory with --image-dir"}
	templates, err := rootfs.List(cfg.ImageDir)
	if err != nil || len(templates) == 0 {
		c.Detail = fmt.Sprintf("no template in %s", cfg.ImageDir)
		return c
	}
	c.OK, c.Detail = true, fmt.Sprintf("%s: templates %s", cfg.ImageDir, strings.Join(templates, ", "))
	return c
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// spaceCheck wants room for a handful of disks that guests have filled (2 GiB each).
func spaceCheck(dir string) check {
	const wanted = 10 << 30
	c := check{Name: "disk space", Remedy: "free some, or put the data elsewhere with --dir"}
	for !exists(dir) {
		dir = filepath.Dir(dir)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		c.Detail = err.Error()
		return c
	}
	free := s.Bavail * uint64(s.Bsize)
	c.OK, c.Detail = free >= wanted, fmt.Sprintf("%d GiB free at %s", free>>30, dir)
	return c
}
