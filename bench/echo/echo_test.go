package echo

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// terminal answers each key after what delay says for it, and says that it is ready in two pieces.
func terminal(t *testing.T, delay func(n int) time.Duration) io.ReadWriteCloser {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		_, _ = io.WriteString(theirs, "rea")
		_, _ = io.WriteString(theirs, "dy\r\n")
		buf := make([]byte, 1)
		for n := 0; ; n++ {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
			time.Sleep(delay(n))
			if _, err := theirs.Write(buf); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { <-done })
	return ours
}

func TestAStallCountsForEveryKeyThatItKeepsWaiting(t *testing.T) {
	const stall, interval = 200 * time.Millisecond, 10 * time.Millisecond
	typist, err := NewTypist(terminal(t, func(n int) time.Duration {
		if n == 5 {
			return stall
		}
		return 0
	}), Config{Interval: interval, Limit: 10 * time.Second})
	require.NoError(t, err)
	defer typist.Close()
	for range 15 {
		require.NoError(t, typist.Press())
	}
	require.NoError(t, typist.Finish())
	samples := typist.Samples()
	require.Len(t, samples, 15)
	assert.GreaterOrEqual(t, samples[5], stall)
	for i := 6; i < 15; i++ {
		// Each may have been typed later than it was due.
		assert.GreaterOrEqual(t, samples[i], stall-time.Duration(i-5)*interval-50*time.Millisecond, "key %d was typed while another one was stalled", i)
		assert.Less(t, samples[i], samples[i-1], "keys do not queue up behind a stall")
	}
}

func TestABlockedTerminalIsNoticed(t *testing.T) {
	release := make(chan struct{})
	typist, err := NewTypist(terminal(t, func(n int) time.Duration {
		if n == 2 {
			<-release
		}
		return 0
	}), Config{Interval: time.Millisecond, Limit: 100 * time.Millisecond})
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, typist.Press())
	}
	require.ErrorIs(t, typist.Finish(), ErrBlocked)
	require.ErrorIs(t, typist.Press(), ErrBlocked)
	samples := typist.Samples()
	assert.Len(t, samples, 20)
	assert.GreaterOrEqual(t, samples[2], 100*time.Millisecond)
	close(release)
	typist.Close()
}

func TestAnEchoOfAnotherKeyIsNoEcho(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		_, _ = io.WriteString(theirs, "ready")
		_, _ = theirs.Read(make([]byte, 1))
		_, _ = io.WriteString(theirs, "z")
	}()
	typist, err := NewTypist(ours, Config{Interval: time.Millisecond, Limit: 10 * time.Second})
	require.NoError(t, err)
	defer typist.Close()
	require.NoError(t, typist.Press())
	require.ErrorContains(t, typist.Finish(), "came back as 'z'")
}

func TestATerminalThatEndsIsNoticed(t *testing.T) {
	ours, theirs := net.Pipe()
	require.NoError(t, theirs.Close())
	_, err := NewTypist(ours, Config{Limit: 10 * time.Second})
	require.ErrorIs(t, err, io.EOF)
}

func TestQuantile(t *testing.T) {
	var samples []time.Duration
	for i := 100; i > 0; i-- {
		samples = append(samples, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 0.999: 100, 1: 100} {
		assert.Equal(t, want, Quantile(samples, q), "%v", q)
	}
	assert.Zero(t, Quantile(nil, 0.5))
}
