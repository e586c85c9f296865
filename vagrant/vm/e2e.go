package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// suites are run in this order.
var suites = []suite{
	{dir: "e2e", limit: 40 * time.Minute, emulated: "TestA01_One|TestA02|TestA06|TestA07|TestN09_AGuest"},
	{dir: "e2e/snapshot", limit: 20 * time.Minute, emulated: "TestS05_Processes"},
	{dir: "e2e/drift", limit: 30 * time.Minute},
	{dir: "e2e/streams", limit: 10 * time.Minute},
	{dir: "e2e/network", limit: 10 * time.Minute},
	{dir: "e2e/sdk", limit: 20 * time.Minute},
	{dir: "fault", tags: "fault", limit: 30 * time.Minute, emulated: "TestF01_EveryStep$/network.create/veth_after_kill"},
}

// suitesLimit bounds all suites together, copies of results included.
const suitesLimit = 80 * time.Minute

// Places in the machine and, under build/e2e, here.
const (
	artifactsDir = scratchDir + "/artifacts"
	resultsName  = "build/e2e"
)

// keepEnv, if it is not empty, leaves the machine up after the suites.
const keepEnv = "KEEP"

// e2e runs the suites, or the tests of them that a regular expression names, in the machine.
func (c *config) e2e(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, upLimit+suitesLimit)
	defer cancel()
	start := time.Now()
	disk, err := c.pack(ctx, suites)
	if err != nil {
		return fmt.Errorf("pack the suites: %w", err)
	}
	m, err := c.up(ctx)
	if err != nil {
		return err
	}
	if err = m.runSuites(ctx, disk, args); err != nil && !m.kvm && m.died() {
		// No test can bring down a machine that runs on KVM and not be looked at. An emulated one is brought
		// down by the emulator.
		fmt.Fprintf(os.Stderr, "vm: the emulated machine has died (%v); once more, in another. Its console:\n%s\n", err, m.console())
		if err := m.leave(false); err != nil {
			return err
		}
		if m, err = c.up(ctx); err != nil {
			return err
		}
		err = m.runSuites(ctx, disk, args)
	}
	// Where a run was cut short, its processes are still in the machine.
	keep := ctx.Err() == nil && (m.found || os.Getenv(keepEnv) != "")
	err = errors.Join(err, m.leave(keep))
	fmt.Fprintf(os.Stderr, "vm: %.0f s in all, results in %s\n", time.Since(start).Seconds(), resultsName)
	return err
}

func (m *vm) runSuites(ctx context.Context, disk string, args []string) error {
	results := filepath.Join(m.root, resultsName)
	if err := errors.Join(os.RemoveAll(results), os.MkdirAll(results, 0o755)); err != nil {
		return err
	}
	if err := m.attach(ctx, disk); err != nil {
		return err
	}
	inside := m.ssh(ctx, nil, "sh -c "+quote(m.script(args)))
	// gotestsum shows the tests as they run, and writes the results.
	cmd := exec.CommandContext(ctx, filepath.Join(m.root, "build/bin/gotestsum"), append([]string{
		"--format", "standard-verbose", "--hide-summary", "output",
		"--junitfile", filepath.Join(results, "junit.xml"), "--jsonfile", filepath.Join(results, "tests.json"),
		"--raw-command", "--",
	}, inside.Args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	// The context may have ended, which may be why the suites did; the logs are wanted all the more.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if fetchErr := m.fetch(after, results); fetchErr != nil {
		fmt.Fprintf(os.Stderr, "vm: cannot bring the logs: %v; the machine's console:\n%s\n", fetchErr, m.console())
	}
	return fmt.Errorf("the suites failed: %w", errors.Join(err, ctx.Err()))
}

// script runs the suites in the machine, or the tests that args name, all of them whatever fails. Its output is
// that of test2json.
func (m *vm) script(args []string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "exec 2>&1\nmkdir -p %[1]s\nexport TMPDIR=%[2]s/tmp WRENN_ARTIFACTS=%[1]s WRENN_NEED=%[3]s\ncode=0\n", artifactsDir, scratchDir, needs(m.root))
	for _, suite := range suites {
		run := ""
		if !m.kvm {
			run = suite.emulated
		}
		if len(args) > 0 {
			run = args[0]
		} else if !m.kvm && run == "" {
			continue
		}
		flags := fmt.Sprintf("-test.v=test2json -test.count=1 -test.timeout=%s -test.run=%s", suite.limit, quote(run))
		if !m.kvm {
			flags += " -test.short"
		}
		fmt.Fprintf(&s, "cd %s/%s && %s/build/bin/test2json -t -p %s ./%s %s || code=1\n",
			treeDir, suite.dir, treeDir, suite.pkg(), filepath.Base(suite.binary()), flags)
	}
	return s.String() + "exit $code\n"
}

// needs is which abilities the tests must find in the machine: all, but for Firecracker unless this machine
// has brought it.
func needs(root string) string {
	_, err := os.Stat(filepath.Join(root, "build/bin/firecracker")) // what `make deps` fetches, where it can
	if err == nil || os.Getenv(firecrackerEnv) != "" {
		return "all"
	}
	return "all,-firecracker"
}

// fetch brings what failing tests left for people, and the machine's console.
func (m *vm) fetch(ctx context.Context, results string) error {
	if err := copyFile(m.path("console.log"), filepath.Join(results, "console.log")); err != nil {
		return err
	}
	dir := filepath.Join(results, "artifacts")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	inside := m.ssh(ctx, nil, "sh -c "+quote("dmesg > "+artifactsDir+"/dmesg; tar -cSf - -C "+artifactsDir+" ."))
	unpack := exec.CommandContext(ctx, "tar", "-xSf", "-", "-C", dir)
	pipe, err := inside.StdoutPipe()
	if err != nil {
		return err
	}
	unpack.Stdin = pipe
	if err := inside.Start(); err != nil {
		return err
	}
	return errors.Join(unpack.Run(), inside.Wait())
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}
