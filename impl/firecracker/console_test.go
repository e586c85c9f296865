package firecracker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func TestA04_CapConsoleKeepsTheTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	for name, test := range map[string]struct {
		size int
		cut  bool
	}{"empty": {0, false}, "small": {100, false}, "at twice the limit": {2000, false}, "over": {2001, true}, "far over": {100_000, true}} {
		t.Run(name, func(t *testing.T) {
			content := make([]byte, test.size)
			for i := range content {
				content[i] = byte('a' + i*7%26)
			}
			require.NoError(t, os.WriteFile(path, content, 0o600))
			cut, err := CapConsole(path, 1000)
			require.NoError(t, err)
			assert.Equal(t, test.cut, cut)
			want := content
			if test.cut {
				want = content[len(content)-1000:]
			}
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, string(want), string(got))
		})
	}
	_, err := CapConsole(filepath.Join(t.TempDir(), "none"), 1000)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A guest that prints without end meets the cutting many times: the file stays bounded, and what is left
// are whole lines in their order, ending with the last one.
func TestA04_CapConsoleWhileTheGuestPrints(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	writer, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer writer.Close()
	const limit, lines = 64 << 10, 100_000
	var done atomic.Bool
	failed := make(chan error, 1)
	go func() {
		defer done.Store(true)
		for i := range lines {
			if _, err := fmt.Fprintf(writer, "line %08d\n", i); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	cuts := 0
	for !done.Load() {
		cut, err := CapConsole(path, limit)
		require.NoError(t, err)
		if cut {
			cuts++
		}
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, <-failed)
	_, err = CapConsole(path, limit)
	require.NoError(t, err)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	t.Logf("%d cuts, %d bytes left of %d", cuts, len(raw), lines*14)
	assert.Greater(t, cuts, 2)
	assert.LessOrEqual(t, len(raw), 2*limit)
	assert.True(t, strings.HasSuffix(string(raw), fmt.Sprintf("line %08d\n", lines-1)))
	last := -1
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n")[1:] {
		var n int
		_, err := fmt.Sscanf(line, "line %08d", &n)
		require.NoError(t, err, line)
		require.Greater(t, n, last)
		last = n
	}
}

func TestA04_KeepConsoleCapped(t *testing.T) {
	need.Root(t)
	p, cfg, err := launchPlayer(t.Context(), t, "listens")
	require.NoError(t, err)
	keep := func(ctx context.Context, path string) <-chan struct{} {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			KeepConsoleCapped(ctx, slog.New(slog.DiscardHandler), p, path, 1000)
		}()
		return ended
	}
	ended := func(c <-chan struct{}, why string) {
		select {
		case <-c:
		case <-time.After(patience):
			require.FailNow(t, "goes on", why)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended(keep(ctx, cfg.ConsolePath), "after its context")
	ended(keep(t.Context(), cfg.ConsolePath+".gone"), "without a file")

	require.NoError(t, os.WriteFile(cfg.ConsolePath, make([]byte, 50_000), 0o600))
	c := keep(t.Context(), cfg.ConsolePath)
	require.Eventually(t, func() bool {
		info, err := os.Stat(cfg.ConsolePath)
		return err == nil && info.Size() == 1000
	}, patience, 20*time.Millisecond)
	require.NoError(t, p.Kill(t.Context()))
	ended(c, "after its vmm")
}

func TestTailQuotesTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("x", 5000)+"\nthe end\n"), 0o600))
	got := tail(path)
	assert.LessOrEqual(t, len(got), consoleTail+4)
	assert.True(t, strings.HasSuffix(got, `the end"`), got)
	assert.Contains(t, tail("/nonexistent"), "unreadable")
}
