// The tests of vmexec run it as go test does, on test programs that end in every way there is.
package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// patience bounds one run: 4 s on an idle machine under emulation.
const patience = 3 * time.Minute

// built are vmexec and the test program sick, in a folder that goes with the tests.
var built struct{ dir, vmexec, sick string }

func TestMain(m *testing.M) {
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func build(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "vmexec-test-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	built.dir, built.vmexec, built.sick = dir, filepath.Join(dir, "vmexec"), filepath.Join(dir, "sick.test")
	for _, argv := range [][]string{
		{"go", "build", "-o", built.vmexec, "."},
		{"go", "test", "-c", "-cover", "-o", built.sick, "./testdata/sick"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%v: %w: %s", argv, err, out)
		}
	}
	return m.Run(), nil
}

// run is one run of vmexec.
type run struct {
	stdout, stderr string
	code           int
}

// command is vmexec on sick, with a deadline and a folder for temporary files of its own.
func command(t *testing.T, arguments ...string) *exec.Cmd {
	t.Helper()
	need.Program(t, "qemu-system-x86_64")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, built.vmexec, append([]string{built.sick}, arguments...)...)
	cmd.Dir = "testdata/sick"
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	return cmd
}

// finish runs the command to its end. Nothing may stay of it.
func finish(t *testing.T, cmd *exec.Cmd) run {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	t.Logf("%.1f s", time.Since(start).Seconds())
	r := run{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	assert.Empty(t, temporary(t, cmd), "temporary files")
	return r
}

func temporary(t *testing.T, cmd *exec.Cmd) []os.DirEntry {
	t.Helper()
	for _, kv := range cmd.Env {
		if dir, found := strings.CutPrefix(kv, "TMPDIR="); found && strings.Contains(dir, "Test") {
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			return entries
		}
	}
	require.Fail(t, "the command has no folder of its own")
	return nil
}

func only(test string) string { return "-test.run=^" + test + "$" }

func TestEndings(t *testing.T) {
	for _, c := range []struct {
		test      string
		code      int
		out, err  string // what stdout and stderr must contain
		arguments []string
	}{
		{test: "TestPass", code: 0, out: "--- PASS: TestPass"},
		{test: "TestFail", code: 1, out: "--- FAIL: TestFail"},
		{test: "TestPanic", code: 2, out: "panic: at the disco"},
		{test: "TestExit", code: 42, out: "=== RUN   TestExit"},
		{test: "TestKilled", code: 128 + 9, err: "was ended by SIGKILL"},
		{test: "TestHang", code: 2, out: "panic: test timed out after 1s", arguments: []string{"-test.timeout=1s"}},
		{test: "TestSkip", code: 1, out: "this test needs no-such-program, and WRENN_NEED says that it must run here"},
		{test: "TestLeakGoroutine", code: 1, out: "found unexpected goroutines"},
		{test: "TestLeakProcess", code: 1, out: "--- PASS: TestLeakProcess", err: "the tests left a process: "},
		{test: "TestKernelPanic", code: 125, out: "=== RUN   TestKernelPanic", err: "Kernel panic - not syncing: sysrq triggered crash"},
	} {
		t.Run(c.test, func(t *testing.T) {
			r := finish(t, command(t, append(c.arguments, "-test.v", only(c.test))...))
			assert.Equal(t, c.code, r.code, "stdout: %s\nstderr: %s", r.stdout, r.stderr)
			assert.Contains(t, r.stdout, c.out)
			assert.Contains(t, r.stderr, c.err)
			if c.err == "" {
				assert.Empty(t, r.stderr)
			}
		})
	}
}

func TestAnExceptedAbilityIsSkipped(t *testing.T) {
	cmd := command(t, "-test.v", only("TestSkip"))
	cmd.Env = append(cmd.Env, "WRENN_NEED=all,-no-such-program")
	r := finish(t, cmd)
	assert.Zero(t, r.code)
	assert.Contains(t, r.stdout, "--- SKIP: TestSkip")
}

func TestOutputIsExact(t *testing.T) {
	r := finish(t, command(t, only("TestOutput")))
	require.Zero(t, r.code)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	got, found := strings.CutPrefix(r.stdout, string(bytes.Repeat(all, 4096)))
	assert.True(t, found, "a megabyte came back changed")
	assert.True(t, strings.HasPrefix(got, "PASS\n"), "what follows: %q", got)
}

func TestFilesComeBack(t *testing.T) {
	dir := t.TempDir()
	profile := filepath.Join(dir, "deep", "cover.out")
	r := finish(t, command(t, "-test.coverprofile="+profile, "-test.outputdir="+dir, "-test.artifacts", "-test.bench=.", "-test.benchtime=10x",
		"-test.v", only("TestFiles")))
	require.Zero(t, r.code, "%s%s", r.stdout, r.stderr)
	assert.Regexp(t, `BenchmarkLoop\S*\s+10\s+[0-9.]+ ns/op`, r.stdout)
	coverage, err := os.ReadFile(profile)
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^mode: set\n(.*\n)*wrenn/vagrant/vmexec/testdata/sick/sick.go:\S+ 1 1$`, string(coverage))
	var found []string
	require.NoError(t, filepath.WalkDir(filepath.Join(dir, "_artifacts"), func(path string, _ fs.DirEntry, err error) error {
		if filepath.Base(path) == "big" {
			found = append(found, path)
		}
		return err
	}))
	require.Len(t, found, 1, "artifacts")
	data, err := os.ReadFile(found[0])
	require.NoError(t, err)
	assert.True(t, bytes.Equal(bytes.Repeat([]byte("hello\n"), 100_000), data))
}

func TestEnvironmentIsWhatIsAllowed(t *testing.T) {
	cmd := command(t, "-test.v", only("TestEnvironment"))
	cmd.Env = append(cmd.Env, "WRENN_COLOUR=blue", "SECRET=hidden", "VMEXEC_ENV=FRUIT,VEG_*", "FRUIT=apple", "VEG_ROOT=carrot")
	r := finish(t, cmd)
	require.Zero(t, r.code)
	for _, want := range []string{"WRENN_COLOUR=blue", "FRUIT=apple", "VEG_ROOT=carrot", "HOME=/root", "WRENN_NEED=all"} {
		assert.Contains(t, r.stdout, want)
	}
	assert.NotContains(t, r.stdout, "hidden")
	assert.NotContains(t, r.stdout, "VMEXEC_ENV")
}

// TestByGoTest: as a person uses it, with the race detector, whose programs are dynamic executables.
func TestByGoTest(t *testing.T) {
	need.Program(t, "qemu-system-x86_64", "gcc")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for name, c := range map[string]struct {
		want      string // a regular expression
		arguments []string
	}{
		"json":  {`"Action":"pass","Package":"wrenn/vagrant/vmexec/testdata/sick","Test":"TestPass"`, []string{"-json", "-run", "TestPass", "./testdata/sick"}},
		"race":  {`ok  \twrenn/vagrant/vmexec/testdata/sick`, []string{"-race", "-run", "TestPass", "./testdata/sick"}},
		"cover": {`coverage: [0-9.]+% of statements`, []string{"-cover", "-run", "TestPass", "./testdata/sick"}},
		"world": {"--- PASS: TestWhatAPackageAsksFor", []string{"-v", "./testdata/world"}},
		// Packages side by side, one of them with a machine inside its machine.
		"several": {"(?s)ok .*nested.*ok .*world|ok .*world.*ok .*nested", []string{"-p", "2", "./testdata/nested", "./testdata/world"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-exec", built.vmexec}, c.arguments...)...)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Regexp(t, c.want, string(out))
			assert.NotContains(t, string(out), "warning")
		})
	}
}

// begin starts vmexec on a test that hangs, and returns when that runs, with QEMU's pid.
func begin(t *testing.T) (cmd *exec.Cmd, stdout, stderr *lines, qemu int) {
	t.Helper()
	cmd = command(t, "-test.v", only("TestHang"))
	stdout, stderr = &lines{}, &lines{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return strings.Contains(stdout.String(), "=== RUN   TestHang") }, patience, 10*time.Millisecond, "%s", stderr)
	children, err := exec.Command("pgrep", "-P", fmt.Sprint(cmd.Process.Pid)).Output()
	require.NoError(t, err)
	_, err = fmt.Sscan(string(children), &qemu)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(qemu, syscall.SIGKILL) // what a broken vmexec left must not stay
		}
	})
	return cmd, stdout, stderr, qemu
}

func TestSignals(t *testing.T) {
	for _, c := range []struct {
		signal   syscall.Signal
		code     int
		out, err string
	}{
		{signal: syscall.SIGINT, code: 130, err: "vmexec: interrupt: ended the machine"},
		{signal: syscall.SIGTERM, code: 143, err: "vmexec: terminated: ended the machine"},
		{signal: syscall.SIGQUIT, code: 131, err: "vmexec: quit: ended the machine", out: "sick.TestHang("},
		{signal: syscall.SIGKILL, code: -1},
	} {
		t.Run(c.signal.String(), func(t *testing.T) {
			cmd, stdout, stderr, qemu := begin(t)
			require.NoError(t, cmd.Process.Signal(c.signal))
			assert.Error(t, cmd.Wait())
			assert.Equal(t, c.code, cmd.ProcessState.ExitCode())
			assert.Contains(t, stdout.String(), c.out)
			assert.Contains(t, stderr.String(), c.err)
			assert.Eventually(t, func() bool { return syscall.Kill(qemu, 0) != nil }, 30*time.Second, 10*time.Millisecond, "QEMU lives on")
			assert.Empty(t, temporary(t, cmd), "temporary files")
		})
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ ask, want string }{
		"unknown key":     {"colour blue", `VMEXEC_ASK: line 1: "colour" is none of`},
		"no value":        {"memory", "is not KEY VALUE"},
		"too much":        {"memory 99999999", "memory: "},
		"unknown module":  {"module no_such_module", "no_such_module"},
		"unknown program": {"program no-such-program", "no-such-program"},
		"missing file":    {"file no-such-file", "no-such-file"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, only("TestPass"))
			cmd.Env = append(cmd.Env, "VMEXEC_ASK="+c.ask)
			r := finish(t, cmd)
			assert.Equal(t, 125, r.code)
			assert.Contains(t, r.stderr, c.want)
		})
	}
}
