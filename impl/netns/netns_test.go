package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/impl/netns"
)

// current names the network namespace of the calling thread.
func current() string {
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return err.Error()
	}
	return link
}

func create(tb testing.TB, name string) *netns.Handle {
	tb.Helper()
	need.Root(tb)
	ns, err := netns.Create(name)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		assert.NoError(tb, ns.Close())
		assert.NoError(tb, netns.Delete(name))
	})
	return ns
}

func TestN03_CreateIsWhatIproute2Sees(t *testing.T) {
	need.Program(t, "ip")
	ns := create(t, "as-iproute2")
	var inside string
	require.NoError(t, ns.Do(func() error { inside = current(); return nil }))

	out, err := exec.Command("ip", "netns", "exec", "as-iproute2", "readlink", "/proc/self/ns/net").CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Equal(t, inside, strings.TrimSpace(string(out)))
	assert.NotEqual(t, current(), inside)
	out, err = exec.Command("ip", "netns", "list").CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Contains(t, string(out), "as-iproute2")

	out, err = exec.Command("ip", "netns", "add", "by-iproute2").CombinedOutput()
	require.NoError(t, err, string(out))
	theirs, err := netns.Open("by-iproute2")
	require.NoError(t, err)
	require.NoError(t, theirs.Close())
	require.NoError(t, netns.Delete("by-iproute2"))
}

func TestN03_DirectoryIsMadeAndShared(t *testing.T) {
	need.Root(t)
	if _, err := os.Stat(netns.Dir); err == nil {
		require.NoError(t, exec.Command("umount", netns.Dir).Run())
		require.NoError(t, os.Remove(netns.Dir))
	}
	names, err := netns.List()
	require.NoError(t, err)
	assert.Empty(t, names)
	create(t, "first")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var shared int
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if fields[4] == netns.Dir && strings.HasPrefix(fields[6], "shared:") {
			shared++
		}
	}
	assert.Equal(t, 1, shared, "mounts of %s that are shared", netns.Dir)
}

func TestN03_DeleteReachesOtherMountNamespaces(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare")
	for _, propagation := range []string{"slave", "private"} {
		t.Run(propagation, func(t *testing.T) {
			name := "seen-" + propagation
			create(t, name)
			other := exec.Command("unshare", "--mount", "--propagation", propagation, "sleep", "60")
			require.NoError(t, other.Start())
			defer func() { other.Process.Kill(); other.Wait() }()
			mounts := func() string {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", other.Process.Pid))
				return string(b)
			}
			comm := func() string {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", other.Process.Pid))
				return strings.TrimSpace(string(b))
			}
			require.Eventually(t, func() bool { return comm() == "sleep" }, 10*time.Second, 5*time.Millisecond)
			require.Contains(t, mounts(), "/run/netns/"+name)
			require.NoError(t, netns.Delete(name))
			assert.NotContains(t, mounts(), name, "the namespace lives on in another mount namespace")
		})
	}
}

func TestN05_DeleteTakesOffWhatAnotherProgramMountedOver(t *testing.T) {
	create(t, "covered")
	path := filepath.Join(netns.Dir, "covered")
	for range 2 {
		require.NoError(t, exec.Command("mount", "--bind", path, path).Run())
	}
	require.NoError(t, netns.Delete("covered"))
	assert.NoFileExists(t, path)
}

func TestCreateRefusesATakenName(t *testing.T) {
	ns := create(t, "taken")
	_, err := netns.Create("taken")
	require.ErrorIs(t, err, fs.ErrExist)
	again, err := netns.Open("taken")
	require.NoError(t, err, "the failed Create harmed the existing namespace")
	defer again.Close()
	var a, b string
	require.NoError(t, ns.Do(func() error { a = current(); return nil }))
	require.NoError(t, again.Do(func() error { b = current(); return nil }))
	assert.Equal(t, a, b)
}

func TestNamesThatAreNoFileNames(t *testing.T) {
	need.Root(t)
	for _, name := range []string{"", ".", "..", "a/b", "../x", "/abs", "nul\x00", strings.Repeat("x", 256)} {
		_, err := netns.Create(name)
		require.ErrorIs(t, err, netns.ErrName, "%q", name)
		_, err = netns.Open(name)
		require.ErrorIs(t, err, netns.ErrName, "%q", name)
		require.ErrorIs(t, netns.Delete(name), netns.ErrName, "%q", name)
	}
}

func TestN06_WhatACrashInCreateLeaves(t *testing.T) {
	need.Root(t)
	create(t, "makes-the-directory")
	require.NoError(t, os.WriteFile(filepath.Join(netns.Dir, "half"), nil, 0))
	_, err := netns.Open("half")
	require.ErrorIs(t, err, netns.ErrNotNamespace)
	names, err := netns.List()
	require.NoError(t, err)
	assert.Contains(t, names, "half")
	require.NoError(t, netns.Delete("half"))
	_, err = netns.Open("half")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, netns.Delete("half"), "deleting what is not there")
}

func TestN11_DoNeverLeaksANamespaceIntoOtherGoroutines(t *testing.T) {
	need.Root(t)
	home := current()
	const namespaces, visits = 8, 40
	var wg sync.WaitGroup
	for i := range namespaces {
		name := fmt.Sprintf("busy-%d", i)
		ns := create(t, name)
		var want string
		require.NoError(t, ns.Do(func() error { want = current(); return nil }))
		for range 4 {
			wg.Go(func() {
				for range visits {
					var got string
					err := ns.Do(func() error { got = current(); return nil })
					assert.NoError(t, err)
					assert.Equal(t, want, got)
					assert.Equal(t, home, current(), "outside Do")
				}
			})
		}
	}
	wg.Wait()
	assertAllThreadsIn(t, home)
}

func assertAllThreadsIn(t *testing.T, home string) {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	require.NoError(t, err)
	require.NotEmpty(t, threads)
	for _, path := range threads {
		if link, err := os.Readlink(path); err == nil {
			assert.Equal(t, home, link, path)
		}
	}
}

func TestDoReturnsTheFunctionsError(t *testing.T) {
	ns := create(t, "errors")
	boom := errors.New("boom")
	require.ErrorIs(t, ns.Do(func() error { return boom }), boom)
}

func TestDoPassesPanicAndGoexitOn(t *testing.T) {
	ns := create(t, "panics")
	home := current()
	func() {
		defer func() {
			p := fmt.Sprint(recover())
			assert.Contains(t, p, "boom")
			assert.Contains(t, p, "netns_test.go", "the stack of the panic")
		}()
		ns.Do(func() error { panic("boom") })
	}()
	finished, returned := make(chan bool, 1), false
	go func() {
		defer func() { finished <- returned }()
		ns.Do(func() error { exitGoroutine(); return nil })
		returned = true
	}()
	select {
	case r := <-finished:
		assert.False(t, r, "Do returned though its function ended the goroutine")
	case <-time.After(10 * time.Second):
		t.Fatal("Do hangs after Goexit")
	}
	require.Eventually(t, func() bool {
		threads, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, path := range threads {
			if link, err := os.Readlink(path); err == nil && link != home {
				return false
			}
		}
		return true
	}, 10*time.Second, 10*time.Millisecond, "a thread stayed in the namespace")
}

func TestNamespaceLivesOnInItsHandle(t *testing.T) {
	need.Root(t)
	ns, err := netns.Create("nameless")
	require.NoError(t, err)
	require.NoError(t, netns.Delete("nameless"))
	home, inside := current(), ""
	require.NoError(t, ns.Do(func() error { inside = current(); return nil }))
	assert.NotEqual(t, home, inside)
	require.NoError(t, ns.Close())
	require.Error(t, ns.Do(func() error { return nil }), "Do on a closed handle")
}

func TestNoDescriptorIsLeaked(t *testing.T) {
	need.Root(t)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	create(t, "warm-up")
	before := count()
	for i := range 20 {
		name := fmt.Sprintf("fd-%d", i)
		ns, err := netns.Create(name)
		require.NoError(t, err)
		require.NoError(t, ns.Do(func() error { return nil }))
		_, err = netns.Create(name)
		require.Error(t, err)
		require.NoError(t, ns.Close())
		require.NoError(t, netns.Delete(name))
	}
	assert.Equal(t, before, count())
}
