package sandbox_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(t *testing.T, h *sandboxtest.Host) sandbox.Config {
	return sandbox.Config{
		Dir: filepath.Join(t.TempDir(), "sandboxes"), Logger: slog.New(slog.DiscardHandler),
		Network: h.Network(), Disk: h.Disk(), Memory: h.Memory(), VMM: h.VMM(), Guest: h.Guest(), MemoryMiB: 4096,
	}
}

func newManager(t *testing.T, cfg sandbox.Config) *sandbox.Manager {
	m, err := sandbox.NewManager(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close(context.Background(), true)) })
	return m
}

func request(id string) sandbox.CreateRequest {
	return sandbox.CreateRequest{ID: id, Template: "base", Timeout: time.Hour}
}

func TestA07_LifecycleInMemory(t *testing.T) {
	sandboxtest.Lifecycle(t, func(t *testing.T) sandboxtest.Ground {
		h := sandboxtest.NewHost()
		return h.Ground(config(t, h))
	})
}

func TestA07_EveryStateIsReachableAndEndsInGone(t *testing.T) {
	reached := map[sandbox.State]bool{sandbox.Creating: true}
	for range sandbox.States() {
		for _, from := range sandbox.States() {
			for _, to := range sandbox.States() {
				if reached[from] && from.CanBecome(to) {
					reached[to] = true
				}
			}
		}
	}
	for _, s := range sandbox.States() {
		assert.True(t, reached[s], "%s cannot be reached", s)
		if s != sandbox.Gone && s != sandbox.Destroying {
			assert.True(t, s.CanBecome(sandbox.Destroying), "%s cannot be destroyed", s)
		}
		assert.False(t, sandbox.Gone.CanBecome(s))
	}
	assert.False(t, sandbox.Paused.CanBecome(sandbox.Running), "paused machines resume first")
}

func TestN04_AnErrorAtAnyStepLeavesNothing(t *testing.T) {
	for act, step := range map[string]string{
		"disk.create": "disk", "network.create": "network", "vmm.boot": "vmm", "guest.init": "guest",
	} {
		t.Run(act, func(t *testing.T) {
			h := sandboxtest.NewHost()
			cfg := config(t, h)
			m := newManager(t, cfg)
			boom := errors.New("boom")
			h.Fail(act, boom)
			_, err := m.Create(t.Context(), request("a"))
			require.ErrorIs(t, err, boom)
			assert.ErrorContains(t, err, "step "+step)
			assert.Empty(t, h.Census())
			assert.Empty(t, m.List())
			assert.NoDirExists(t, filepath.Join(cfg.Dir, "a"))
			h.Fail(act, nil)
			_, err = m.Create(t.Context(), request("a"))
			require.NoError(t, err, "the id and the slot are usable again")
		})
	}
}

func TestA06_DestroyThatFailsIsRepeatedByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		m := newManager(t, config(t, h))
		_, err := m.Create(t.Context(), request("a"))
		require.NoError(t, err)
		for _, act := range []string{"vmm.kill", "network.remove"} {
			h.Fail(act, errors.New("busy"))
			require.ErrorContains(t, m.Destroy(t.Context(), "a"), "busy")
			info, err := m.Get("a")
			require.NoError(t, err)
			assert.Equal(t, sandbox.Destroying, info.State)
			assert.Contains(t, h.Census(), "slot 1", "a slot whose network stands must not be given out")
			h.Fail(act, nil)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Empty(t, m.List())
		assert.Empty(t, h.Census())
	})
}

func TestA06_CloseReturnsThoughATeardownFails(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m, err := sandbox.NewManager(cfg)
	require.NoError(t, err)
	_, err = m.Create(t.Context(), request("a"))
	require.NoError(t, err)
	h.Fail("network.remove", errors.New("busy"))
	require.ErrorContains(t, m.Close(t.Context(), true), "busy")
	h.Fail("network.remove", nil)
	h.Restart()
	next := newManager(t, cfg)
	finish, err := next.Recover()
	require.NoError(t, err)
	_, err = finish(t.Context())
	require.NoError(t, err)
	assert.Empty(t, h.Census(), "the next life does not finish it")
}

func TestA03_AFailedBootStillOwnsItsMachine(t *testing.T) {
	h := sandboxtest.NewHost()
	m := newManager(t, config(t, h))
	h.FailAfterBoot = errors.New("refused")
	_, err := m.Create(t.Context(), request("a"))
	require.ErrorIs(t, err, h.FailAfterBoot)
	assert.Empty(t, h.Census(), "a machine beside an error was forgotten")
}

func TestV03_AConsoleCannotDriveTheReadersTerminal(t *testing.T) {
	h := sandboxtest.NewHost()
	h.ConsoleText = "\x1b]0;PWNED\a\x1b[31mred\n"
	h.Fail("guest.init", errors.New("no answer"))
	m := newManager(t, config(t, h))
	_, err := m.Create(t.Context(), request("a"))
	require.ErrorContains(t, err, "PWNED[31mred")
	assert.NotContains(t, err.Error(), "\x1b")
}

func TestA03_AGuestThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		h.Hang = true
		m := newManager(t, config(t, h))
		_, err := m.Create(t.Context(), request("a"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "did not answer within 1m30s")
		assert.ErrorContains(t, err, "booted", "the console belongs to the error")
		assert.Empty(t, h.Census())
	})
}

func TestA03_AMachineThatDiesDuringBootSaysSo(t *testing.T) {
	h := sandboxtest.NewHost()
	h.Hang = true
	m := newManager(t, config(t, h))
	done := make(chan error, 1)
	go func() { _, err := m.Create(context.Background(), request("a")); done <- err }()
	require.Eventually(t, func() bool { return h.Crash("a") }, 10*time.Second, time.Millisecond)
	err := <-done
	require.ErrorContains(t, err, "the VMM ended (exit status 0)")
	assert.Empty(t, h.Census())
}

func TestA02_DeadlinesAreKeptWhileAnotherGuestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		m := newManager(t, config(t, h))
		req := request("quick")
		req.Timeout = 10 * time.Second
		_, err := m.Create(t.Context(), req)
		require.NoError(t, err)
		h.Hang = true
		go func() { _, _ = m.Create(context.Background(), request("slow")) }()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		_, err = m.Get("quick")
		require.ErrorIs(t, err, sandbox.ErrNotFound)
		_, err = m.Get("slow")
		require.NoError(t, err)
	})
}

func TestN01_NoSlotAndNoMemoryAreClear(t *testing.T) {
	h := sandboxtest.NewHost()
	h.Slots = 2
	m := newManager(t, config(t, h))
	for _, id := range []string{"a", "b"} {
		_, err := m.Create(t.Context(), request(id))
		require.NoError(t, err)
	}
	_, err := m.Create(t.Context(), request("c"))
	require.ErrorIs(t, err, sandbox.ErrNoSlot)
	big := request("d")
	big.MemoryMiB = 4096
	_, err = m.Create(t.Context(), big)
	require.ErrorIs(t, err, sandbox.ErrNoMemory)
	assert.ErrorContains(t, err, "costs 4224 MiB with its VMM, and 3328 of 4096 MiB are left")
	assert.Len(t, m.List(), 2)
}

// TestF01_DeathAtAnyPointIsMended abandons a Manager at each stage of a create and a destroy, as a
// SIGKILL would, and lets a new one find what is left.
func TestF01_DeathAtAnyPointIsMended(t *testing.T) {
	leave := map[string]func(t *testing.T, cfg sandbox.Config, h *sandboxtest.Host){
		"an empty directory": func(t *testing.T, cfg sandbox.Config, _ *sandboxtest.Host) {
			require.NoError(t, os.MkdirAll(filepath.Join(cfg.Dir, "a"), 0o700))
		},
		"a torn journal": func(t *testing.T, cfg sandbox.Config, _ *sandboxtest.Host) {
			require.NoError(t, os.MkdirAll(filepath.Join(cfg.Dir, "a"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(cfg.Dir, "a", "journal"), []byte(`{"version":1,"info":{"id":"a"`), 0o600))
		},
		"a journal of another sandbox": func(t *testing.T, cfg sandbox.Config, _ *sandboxtest.Host) {
			require.NoError(t, os.MkdirAll(filepath.Join(cfg.Dir, "a"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(cfg.Dir, "a", "journal"), []byte(`{"version":1,"info":{"id":"b","state":"running"}}`), 0o600))
		},
		"a machine whose create was not finished": func(t *testing.T, cfg sandbox.Config, h *sandboxtest.Host) {
			h.Hang = true
			abandon(t, cfg, h)
		},
		"a destroy that got half-way": func(t *testing.T, cfg sandbox.Config, h *sandboxtest.Host) {
			m, err := sandbox.NewManager(cfg)
			require.NoError(t, err)
			_, err = m.Create(t.Context(), request("a"))
			require.NoError(t, err)
			h.Fail("network.remove", errors.New("killed here"))
			require.Error(t, m.Destroy(t.Context(), "a"))
			require.NoError(t, m.Close(t.Context(), false))
			h.Fail("network.remove", nil)
		},
		"a machine of an earlier boot of the host": func(t *testing.T, cfg sandbox.Config, h *sandboxtest.Host) {
			m, err := sandbox.NewManager(cfg)
			require.NoError(t, err)
			_, err = m.Create(t.Context(), request("a"))
			require.NoError(t, err)
			require.NoError(t, m.Close(t.Context(), false))
			require.True(t, h.Crash("a"))
		},
	}
	for name, f := range leave {
		t.Run(name, func(t *testing.T) {
			h := sandboxtest.NewHost()
			cfg := config(t, h)
			f(t, cfg, h)
			h.Hang = false
			h.Restart()
			m := newManager(t, cfg)
			for range 2 { // a second restart changes nothing
				finish, err := m.Recover()
				require.NoError(t, err)
				_, err = finish(t.Context())
				require.NoError(t, err)
				assert.Empty(t, h.Census())
				assert.Empty(t, m.List())
				assert.NoDirExists(t, filepath.Join(cfg.Dir, "a"))
			}
		})
	}
}

// abandon runs a create up to a guest that does not answer and copies what is on disk at that moment.
func abandon(t *testing.T, cfg sandbox.Config, h *sandboxtest.Host) {
	original := cfg
	original.Dir = cfg.Dir + "-first-life"
	m, err := sandbox.NewManager(original)
	require.NoError(t, err)
	go func() { _, _ = m.Create(context.Background(), request("a")) }()
	require.Eventually(t, func() bool { return len(h.Census()) == 4 }, 10*time.Second, time.Millisecond)
	require.NoError(t, os.CopyFS(cfg.Dir, os.DirFS(original.Dir)))
	h.Fail("vmm.kill", errors.New("killed here"))
	h.Fail("network.remove", errors.New("killed here"))
	require.NoError(t, m.Close(t.Context(), false))
	h.Fail("vmm.kill", nil)
	h.Fail("network.remove", nil)
	h.Move(original.Dir, cfg.Dir)
}

func TestF01_AForeignFileIsLeftAlone(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	require.NoError(t, os.MkdirAll(filepath.Join(cfg.Dir, "Not-Ours"), 0o700))
	m := newManager(t, cfg)
	finish, err := m.Recover()
	require.NoError(t, err)
	_, err = finish(t.Context())
	require.NoError(t, err)
	assert.DirExists(t, filepath.Join(cfg.Dir, "Not-Ours"))
}
