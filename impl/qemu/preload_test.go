package qemu

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/firecracker/firecrackertest"
	"wrenn/impl/need"
)

func pagerSocket(t *testing.T) string {
	t.Helper()
	need.Root(t)                        // userfaultfd
	dir, err := os.MkdirTemp("", "fcq") //nolint:usetesting // a socket's path must stay short
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "pager.sock")
}

func memoryContent(t *testing.T, size int) (string, []byte) {
	t.Helper()
	content := make([]byte, size)
	scribble(seeded(t), content, 100)
	path := filepath.Join(t.TempDir(), "memory")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path, content
}

func TestPreload(t *testing.T) {
	socket := pagerSocket(t)
	path, content := memoryContent(t, someMemory)
	server := firecrackertest.ServePages(t, socket, path, 0)
	before := openFiles(t)
	m, conn, err := preload(socket, someMemory, patience)
	require.NoError(t, err)
	assert.EqualValues(t, someMemory/pageSize, server.Copied.Load()+server.Zeroed.Load(), "each page once")
	got := make([]byte, someMemory)
	require.NoError(t, readFull(m.file, got, 0))
	assert.True(t, bytes.Equal(content, got))
	assert.True(t, m.private)
	select {
	case <-server.HungUp:
		require.FailNow(t, "the connection was closed")
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, conn.Close())
	<-server.HungUp
	m.close()
	require.Eventually(t, func() bool { return openFiles(t) <= before }, patience, time.Millisecond, "descriptors leaked")
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// A page server that dies must not leave anybody waiting for it, nor let missing pages pass for zeros.
func TestPreloadWithoutAServer(t *testing.T) {
	path, _ := memoryContent(t, someMemory)
	t.Run("nobody there", func(t *testing.T) {
		_, _, err := preload(pagerSocket(t), someMemory, patience)
		require.ErrorContains(t, err, "Failed to connect to UDS Unix stream: No such file or directory (os error 2)")
	})
	t.Run("dies in the midst", func(t *testing.T) {
		socket := pagerSocket(t)
		firecrackertest.ServePages(t, socket, path, 100)
		begin := time.Now()
		_, _, err := preload(socket, someMemory, patience)
		require.ErrorIs(t, err, errServerGone)
		assert.Less(t, time.Since(begin), patience/2)
	})
	t.Run("says nothing", func(t *testing.T) {
		socket := pagerSocket(t)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		require.NoError(t, err)
		defer l.Close()
		accepted := make(chan struct{})
		go func() {
			defer close(accepted)
			conn, err := l.AcceptUnix()
			if !assert.NoError(t, err) {
				return
			}
			defer conn.Close()
			_, uffd, err := firecrackertest.Handshake(conn)
			if !assert.NoError(t, err) {
				return
			}
			assert.Equal(t, unix.O_NONBLOCK, flagsOf(t, uffd)&unix.O_NONBLOCK, "as Firecracker's is")
			_, _ = conn.Read(make([]byte, 1)) // until it is given up
			assert.NoError(t, unix.Close(uffd))
		}()
		_, _, err = preload(socket, someMemory, 300*time.Millisecond)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		<-accepted
	})
}

func flagsOf(t *testing.T, fd int) int {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	require.NoError(t, err)
	return flags
}
