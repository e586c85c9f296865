package machine

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func TestTheConsoleKeepsItsEnd(t *testing.T) {
	var c Console
	var all bytes.Buffer
	for i := range 20_000 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		n, err := c.Write([]byte(line))
		require.NoError(t, err)
		require.Equal(t, len(line), n)
	}
	assert.Len(t, c.String(), consoleKept)
	assert.True(t, strings.HasSuffix(all.String(), c.String()))
}

// TestTheCounterIsMeasuredWell compares with a tenth of a second's reading; a guest that is told a wrong
// frequency has a clock that runs away.
func TestTheCounterIsMeasuredWell(t *testing.T) {
	start, before := time.Now(), rdtsc()
	time.Sleep(100 * time.Millisecond)
	took, ticks := time.Since(start), rdtsc()-before
	want := float64(ticks) / (float64(took) / float64(time.Millisecond))
	assert.InEpsilon(t, want, TSCKHz(), 0.01)
}

func TestAMachineThatCannotStart(t *testing.T) {
	initramfs, err := Memory("test")
	require.NoError(t, err)
	defer initramfs.Close()
	t.Setenv("PATH", t.TempDir())
	_, err = Start(Config{Initramfs: initramfs, Memory: 256, CPUs: 1})
	assert.ErrorContains(t, err, "qemu-system-x86")
}

func TestKillEndsTheMachineAndTheLine(t *testing.T) {
	need.Program(t, Program)
	initramfs, err := Memory("test")
	require.NoError(t, err)
	defer initramfs.Close()
	m, err := Start(Config{Kernel: "no-such-kernel", Initramfs: initramfs, Memory: 256, CPUs: 1})
	require.NoError(t, err)
	require.NoError(t, m.Line.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = m.Line.Read(make([]byte, 1))
	require.Error(t, err, "QEMU did not end without a kernel")
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	m.Kill()
	m.Kill()
	assert.Contains(t, m.Console.String(), "no-such-kernel")
	assert.NoFileExists(t, fmt.Sprintf("/proc/%d", m.cmd.Process.Pid))
}
