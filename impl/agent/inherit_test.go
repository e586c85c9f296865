package agent

import (
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestF01_APortThatADeadAgentsChildHoldsIsWaitedFor has a process with a port that it does not know of, as one
// has that was forked and has not yet executed.
func TestF01_APortThatADeadAgentsChildHoldsIsWaitedFor(t *testing.T) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := first.Addr().String()
	file, err := first.(*net.TCPListener).File()
	require.NoError(t, err)
	heir := exec.Command("sleep", "0.2")
	heir.ExtraFiles = append(heir.ExtraFiles, file)
	require.NoError(t, heir.Start())
	require.NoError(t, file.Close())
	require.NoError(t, first.Close())

	begin := time.Now()
	l, err := listen(t.Context(), addr)
	require.NoError(t, err)
	assert.Greater(t, time.Since(begin), 50*time.Millisecond, "the heir did not hold the port, so nothing was tried")
	require.NoError(t, heir.Wait())

	_, err = listen(t.Context(), addr)
	require.ErrorIs(t, err, unix.EADDRINUSE, "a port that stays taken")
	require.NoError(t, l.Close())
}
