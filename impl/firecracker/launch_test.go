package firecracker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func TestA04_Argv(t *testing.T) {
	cfg := LaunchConfig{Binary: "/bin/fc", ID: "i-1", SocketPath: "/run/s", Netns: "wrenn-ns-7", ExtraArgs: []string{"--no-seccomp"}}
	assert.Equal(t, strings.Fields("unshare --mount -- ip netns exec wrenn-ns-7 /bin/fc --api-sock /run/s --id i-1 --no-seccomp"), cfg.argv())
	cfg.Netns = ""
	assert.Equal(t, strings.Fields("unshare --mount -- /bin/fc --api-sock /run/s --id i-1 --no-seccomp"), cfg.argv())
}

func TestLaunchRefusesBadConfig(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	require.NoError(t, os.WriteFile(taken, nil, 0o600))
	good := LaunchConfig{Binary: "/bin/true", ID: "x", SocketPath: filepath.Join(dir, "s"), ConsolePath: filepath.Join(dir, "c")}
	for name, test := range map[string]struct {
		change func(*LaunchConfig)
		want   string
	}{
		"no binary":    {func(c *LaunchConfig) { c.Binary = "" }, "Binary is empty"},
		"no id":        {func(c *LaunchConfig) { c.ID = "" }, "ID is empty"},
		"not there":    {func(c *LaunchConfig) { c.Binary = "/nonexistent/fc" }, "no such file"},
		"long socket":  {func(c *LaunchConfig) { c.SocketPath = "/" + strings.Repeat("s", 110) }, "the limit is 103"},
		"socket taken": {func(c *LaunchConfig) { c.SocketPath = taken }, "file already exists"},
		"no dir":       {func(c *LaunchConfig) { c.Dir = "/nonexistent" }, `working directory "/nonexistent" is not a directory`},
		"file as dir":  {func(c *LaunchConfig) { c.Dir = taken }, "is not a directory"},
		"relative":     {func(c *LaunchConfig) { c.Dir, c.SocketPath = dir, "s" }, "must be absolute"},
		"no directory": {func(c *LaunchConfig) { c.ConsolePath = "/nonexistent/console" }, "console file"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			test.change(&cfg)
			_, err := Launch(t.Context(), cfg)
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestA03_VMMOutlivesTheRequest(t *testing.T) {
	need.Root(t)
	before := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, cfg, err := launchPlayer(ctx, t, "listens")
	require.NoError(t, err)
	cancel()
	select {
	case <-p.Done():
		require.FailNow(t, "the vmm died with the request's context")
	case <-time.After(300 * time.Millisecond):
	}
	id := p.Identity()
	require.NoError(t, id.check())
	assert.Equal(t, ExitStatus{}, p.ExitStatus())
	require.NoError(t, p.Err())

	info, err := os.Stat(cfg.ConsolePath)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	session, err := exec.Command("ps", "-o", "sid=,args=", "-p", strconv.Itoa(id.PID)).Output()
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(id.PID), strings.Fields(string(session))[0], "own session")
	assert.Contains(t, string(session), cfg.SocketPath)
	ours, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(id.PID) + "/ns/mnt")
	require.NoError(t, err)
	assert.NotEqual(t, ours, theirs, "own mount namespace")
	stdin, err := os.Readlink("/proc/" + strconv.Itoa(id.PID) + "/fd/0")
	require.NoError(t, err)
	assert.Equal(t, "/dev/null", stdin)

	require.NoError(t, p.Signal(syscall.SIGINT))
	awaitDone(t, p)
	assert.Equal(t, ExitStatus{Known: true, Code: 3}, p.ExitStatus())
	require.ErrorContains(t, p.Err(), "exit code 3")
	require.ErrorIs(t, p.Signal(syscall.SIGINT), ErrGone)
	require.NoError(t, p.Kill(t.Context()), "killing one that is gone")
	assert.Equal(t, before, openFiles(t), "descriptors leaked")
}

func TestA04_EnvironmentIsNotInherited(t *testing.T) {
	need.Root(t)
	t.Setenv("WRENN_TEST_SECRET", "s3cret")
	p, _, err := launchPlayer(t.Context(), t, "listens")
	require.NoError(t, err)
	env, err := os.ReadFile("/proc/" + strconv.Itoa(p.Identity().PID) + "/environ")
	require.NoError(t, err)
	assert.NotContains(t, string(env), "s3cret")
	assert.Contains(t, string(env), playVMM+"=listens")
}

// A snapshot records the paths of drives as they were given, so they are relative and mean the sandbox's own.
func TestS08_WorkingDirectory(t *testing.T) {
	need.Root(t)
	need.Program(t, "ip")
	ns := fmt.Sprintf("fcl-%d", os.Getpid())
	require.NoError(t, exec.Command("ip", "netns", "add", ns).Run())
	t.Cleanup(func() { assert.NoError(t, exec.Command("ip", "netns", "delete", ns).Run()) })
	self, err := os.Executable()
	require.NoError(t, err)
	for _, netns := range []string{"", ns} {
		dir := shortDir(t)
		p, err := Launch(t.Context(), LaunchConfig{Binary: self, ID: "player", Netns: netns, Dir: dir, SocketPath: filepath.Join(dir, "s"),
			ConsolePath: filepath.Join(dir, "console"), Env: []string{playVMM + "=listens"}, ReadyTimeout: patience})
		require.NoError(t, err)
		cwd, err := os.Readlink("/proc/" + strconv.Itoa(p.Identity().PID) + "/cwd")
		require.NoError(t, p.Kill(context.WithoutCancel(t.Context())))
		require.NoError(t, err)
		assert.Equal(t, dir, cwd, "network namespace %q", netns)
	}
}

func TestLaunchTellsHowTheVMMDied(t *testing.T) {
	need.Root(t)
	before := openFiles(t)
	_, _, err := launchPlayer(t.Context(), t, "dies")
	require.ErrorContains(t, err, "died during its start, exit code 7")
	require.ErrorContains(t, err, "no such kernel, no such luck")
	assert.Equal(t, before, openFiles(t), "descriptors leaked")
}

func TestLaunchEndsOneThatNeverListens(t *testing.T) {
	need.Root(t)
	_, cfg, err := launchPlayer(t.Context(), t, "deaf")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "playing deaf")
	left, err := Orphans(filepath.Dir(filepath.Dir(cfg.SocketPath)))
	require.NoError(t, err)
	assert.NotContains(t, left, filepath.Dir(cfg.SocketPath), "left running")
}

func TestLaunchTellsOfAMissingNamespace(t *testing.T) {
	need.Root(t)
	need.Program(t, "ip")
	dir := t.TempDir()
	_, err := Launch(t.Context(), LaunchConfig{Binary: "/bin/true", ID: "x", Netns: "wrenn-test-no-such-ns",
		SocketPath: filepath.Join(dir, "s"), ConsolePath: filepath.Join(dir, "console"), ReadyTimeout: patience})
	require.ErrorContains(t, err, "died during its start")
	require.ErrorContains(t, err, "wrenn-test-no-such-ns")
}

func TestLaunchObeysItsContext(t *testing.T) {
	need.Root(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := launchPlayer(ctx, t, "deaf")
	require.ErrorIs(t, err, context.Canceled)
}

func TestKillTakesTheWholeGroup(t *testing.T) {
	need.Root(t)
	p, cfg, err := launchPlayer(t.Context(), t, "parent")
	require.NoError(t, err)
	console, err := os.ReadFile(cfg.ConsolePath)
	require.NoError(t, err)
	_, after, found := strings.Cut(string(console), "child ")
	require.True(t, found)
	child, err := strconv.Atoi(strings.Fields(after)[0])
	require.NoError(t, err)
	require.NoError(t, p.Kill(t.Context()))
	assert.Equal(t, ExitStatus{Known: true, Code: -1, Signal: syscall.SIGKILL}, p.ExitStatus())
	require.Eventually(t, func() bool {
		_, err := startTicks(child)
		return err != nil
	}, patience, 10*time.Millisecond, "a process of the group goes on")
}

func TestA03_Adopt(t *testing.T) {
	need.Root(t)
	before := openFiles(t)
	p, cfg, err := launchPlayer(t.Context(), t, "listens")
	require.NoError(t, err)
	id := p.Identity()

	found, err := Orphans(filepath.Dir(filepath.Dir(cfg.SocketPath)))
	require.NoError(t, err)
	assert.Equal(t, id, found[filepath.Dir(cfg.SocketPath)])

	released, err := Adopt(id)
	require.NoError(t, err)
	released.Release()
	awaitDone(t, released)
	require.NoError(t, id.check(), "the vmm lives on after a release")

	adopted, err := Adopt(id)
	require.NoError(t, err)
	assert.Equal(t, id, adopted.Identity())
	require.NoError(t, adopted.Kill(t.Context()))
	awaitDone(t, adopted)
	assert.False(t, adopted.ExitStatus().Known)
	require.NoError(t, adopted.Err())
	awaitDone(t, p)

	_, err = Adopt(id)
	require.ErrorIs(t, err, ErrGone)
	assert.Equal(t, before, openFiles(t), "descriptors leaked")
}

func TestAdoptRefusesAReusedPID(t *testing.T) {
	self, err := identify(os.Getpid())
	require.NoError(t, err)
	for name, change := range map[string]func(*Identity){
		"other start": func(id *Identity) { id.StartTicks++ },
		"other boot":  func(id *Identity) { id.BootID = "another" },
		"no process":  func(id *Identity) { id.PID = 1 << 22 },
	} {
		t.Run(name, func(t *testing.T) {
			id := self
			change(&id)
			_, err := Adopt(id)
			require.ErrorIs(t, err, ErrGone)
		})
	}
	_, err = Adopt(Identity{PID: 1})
	require.Error(t, err)
	_, err = Adopt(Identity{})
	require.Error(t, err)
}
