package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wrenn/vagrant/vm/box"
	"wrenn/vagrant/vm/ground"
	"wrenn/vagrant/vmexec/host"
	"wrenn/vagrant/vmexec/machine"
)

// Bounds of what Vagrant does: by emulation on a busy machine a boot takes minutes.
const (
	upLimit   = 15 * time.Minute
	downLimit = time.Minute
)

// vm is a machine that is up.
type vm struct {
	*config
	ground *ground.Ground
	env    []string
	kvm    bool // it runs on this machine's KVM, else by emulation
	// found says that it was up before this command, which then leaves it up.
	found bool
}

// upName marks a machine that is up and that nobody was working in when it was left.
const upName = "up"

// up brings the machine up, or takes the one that an earlier command left up. What a killed command left is
// taken down first.
func (c *config) up(ctx context.Context) (*vm, error) {
	b, err := c.buildBox(ctx)
	if err != nil {
		return nil, err
	}
	kvm, err := host.KVMWorks(ctx, c.root)
	if err != nil {
		return nil, err
	}
	m := &vm{config: c, kvm: kvm, env: c.environment(b, kvm)}
	if m.ground, err = ground.Find(c.dir); err != nil {
		return nil, err
	}
	// What runs may be of another box, or not as a command that was killed wanted it.
	mark := strings.Join(m.env, "\n")
	if was, err := os.ReadFile(c.path(upName)); m.ground != nil && err == nil && string(was) == mark {
		m.found = true
		return m, os.Remove(c.path(upName))
	}
	if err := c.down(); err != nil {
		return nil, err
	}
	start := time.Now()
	if m.ground, err = ground.Start(ctx, c.dir); err != nil {
		return nil, err
	}
	if err := m.boot(ctx, b); err != nil {
		return nil, errors.Join(fmt.Errorf("bring the machine up: %w; its console:\n%s", err, m.console()), c.down())
	}
	accel := map[bool]string{true: "KVM", false: "emulation"}[kvm]
	fmt.Fprintf(os.Stderr, "vm: up in %.0f s, by %s\n", time.Since(start).Seconds(), accel)
	return m, nil
}

func (c *config) path(name string) string { return filepath.Join(c.dir, name) }

// environment is what vagrant and the Vagrantfile are told.
func (c *config) environment(b box.Box, kvm bool) []string {
	driver := "qemu"
	if kvm {
		driver = "kvm"
	}
	memory, cpus := size(b, kvm)
	return []string{
		"WRENN_VM_DRIVER=" + driver, "WRENN_VM_MEMORY=" + memory, "WRENN_VM_CPUS=" + cpus,
		"WRENN_VM_CONSOLE=" + c.path("console.log"),
		"VAGRANT_CWD=" + filepath.Join(c.root, "vagrant"), "VAGRANT_HOME=" + c.path("home"), "VAGRANT_DOTFILE_PATH=" + c.path("machine"),
		"VAGRANT_DEFAULT_PROVIDER=libvirt", "VAGRANT_NO_PARALLEL=1", "VAGRANT_CHECKPOINT_DISABLE=1", "VAGRANT_BOX_UPDATE_CHECK_DISABLE=1",
		"WRENN_VM_BOX=" + b.Version,
	}
}

// boot hands the box to Vagrant and has it start the machine.
func (m *vm) boot(ctx context.Context, b box.Box) error {
	ctx, cancel := context.WithTimeout(ctx, upLimit)
	defer cancel()
	// A frequency that is measured differs a little each time, so it is no part of env.
	m.env = append(m.env[:len(m.env):len(m.env)], "WRENN_VM_TSC_KHZ="+strconv.Itoa(machine.TSCKHz()))
	defer func() { m.env = m.env[:len(m.env)-1] }()
	if err := m.vagrant(ctx, "box", "add", "--force", "--name", "wrenn", b.File); err != nil {
		return err
	}
	if err := m.vagrant(ctx, "up", "--no-tty"); err != nil {
		return err
	}
	out, err := m.output(ctx, "vagrant", "ssh-config")
	if err != nil {
		return err
	}
	return os.WriteFile(m.path("ssh-config"), []byte(out), 0o600)
}

// vagrant runs vagrant in the ground; its words are shown, less the progress of copies.
func (m *vm) vagrant(ctx context.Context, args ...string) error {
	cmd := m.ground.Command(ctx, "vagrant", args...)
	cmd.Env = append(os.Environ(), m.env...)
	log := &progress{out: os.Stderr}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("vagrant %s: %w", args[0], errors.Join(err, ctx.Err()))
	}
	return nil
}

// output runs a program in the ground and returns what it printed.
func (m *vm) output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := m.ground.Command(ctx, name, args...)
	cmd.Env = append(os.Environ(), m.env...)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(out), nil
}

// ssh is a command in the machine, as root.
func (m *vm) ssh(ctx context.Context, flags []string, command string) *exec.Cmd {
	args := append([]string{"-F", m.path("ssh-config"), "-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=30"}, flags...)
	return m.ground.Command(ctx, "ssh", append(args, "wrenn", "sudo", "-n", command)...)
}

// leave ends the work in the machine: it is taken down, or marked as one that can be taken again.
func (m *vm) leave(keep bool) error {
	if !keep {
		return m.down()
	}
	return os.WriteFile(m.path(upName), []byte(strings.Join(m.env, "\n")), 0o644)
}

// down takes the machine down, and all that was made for it but the box. A disk that nobody will read again
// need not be written to its end, so the machine is not asked to shut down.
func (c *config) down() error {
	g, err := ground.Find(c.dir)
	if err != nil {
		return err
	}
	if g != nil {
		err = g.Stop()
	} else {
		err = ground.Clean(c.dir)
	}
	for _, name := range []string{upName, "machine", "home", "ssh-config"} {
		err = errors.Join(err, os.RemoveAll(c.path(name)))
	}
	if err != nil {
		return fmt.Errorf("take the machine down: %w", err)
	}
	return nil
}

// died says whether the machine's own kernel has given up.
func (m *vm) died() bool { return strings.Contains(m.console(), "Kernel panic") }

// console is the end of what the machine's kernel said.
func (m *vm) console() string {
	content, err := os.ReadFile(m.path("console.log"))
	if errors.Is(err, fs.ErrNotExist) {
		return "(none)"
	}
	const kept = 8 << 10
	return string(content[max(0, len(content)-kept):])
}
