package qemu

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestABootThatStandsStillIsStartedAnew, but neither one that only gets little of a processor, nor one that is held
// by a call, nor one that has read its disk, and none more than twice.
func TestABootThatStandsStillIsStartedAnew(t *testing.T) {
	const fine = 40 * time.Millisecond
	for name, c := range map[string]struct {
		share  time.Duration // of a processor per second, of a guest that boots
		hangs  int           // so many boots stand still
		booted time.Duration // from power-on to the first read, of one that does not
		spins  bool
		held   bool
		resets int
	}{
		"healthy":                 {share: fine, booted: 8 * time.Second},
		"slow":                    {share: fine / 2, booted: 3 * time.Minute},
		"hangs once":              {share: fine, hangs: 1, booted: 8 * time.Second, resets: 1},
		"hangs twice":             {share: fine, hangs: 2, booted: 8 * time.Second, resets: 2},
		"spins once":              {share: time.Second, hangs: 1, spins: true, booted: 8 * time.Second, resets: 1},
		"hangs always":            {share: fine, hangs: 1000, resets: bootResets},
		"held from its beginning": {hangs: 1000, held: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, resets := time.Now(), 0
				var log bytes.Buffer
				bootWatch{
					exited: make(chan struct{}), log: slog.New(slog.NewTextHandler(&log, nil)),
					used: func() (time.Duration, error) {
						if resets < c.hangs && !c.spins {
							return 0, nil
						}
						return time.Duration(time.Since(begun).Seconds() * float64(c.share)), nil
					},
					waiting: func() (bool, error) {
						return !c.held && (resets < c.hangs || time.Since(begun) < c.booted), nil
					},
					reset: func() error { resets++; begun = time.Now(); return nil },
				}.run()
				assert.Equal(t, c.resets, resets)
				assert.Equal(t, c.resets, bytes.Count(log.Bytes(), []byte("started anew")))
			})
		})
	}
}

func TestAWatchEndsWithItsGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exited := make(chan struct{})
		go func() { time.Sleep(time.Second); close(exited) }()
		w := bootWatch{exited: exited, used: func() (time.Duration, error) { return 0, nil }}
		begun := time.Now()
		w.run()
		assert.Equal(t, time.Second, time.Since(begun))
		var log bytes.Buffer
		w.log, w.used = slog.New(slog.NewTextHandler(&log, nil)), func() (time.Duration, error) { return 0, errors.New("boom") }
		w.run()
		assert.Contains(t, log.String(), "boom")
	})
}

func TestProcessorTimeIsRead(t *testing.T) {
	self := &guest{cmd: &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}}
	before, err := self.used()
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
		}
		now, err := self.used()
		return err == nil && now > before
	}, patience, time.Millisecond)
}
