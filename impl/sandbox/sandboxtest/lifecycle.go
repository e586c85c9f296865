package sandboxtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/egress"
	"wrenn/impl/sandbox"
)

// Ground is a host that the lifecycle suite runs on.
type Ground struct {
	// Config is a Manager's; the suite makes and closes the Managers itself.
	Config sandbox.Config
	// Template is one that exists.
	Template string
	// Restart ends what an agent keeps in memory of the host, as its death would. Nil does nothing.
	Restart func()
	// Crash ends the machine of a sandbox from inside.
	Crash func(t *testing.T, id string)
	// Write lets a user's program in a guest keep a value in its memory and on its disk; an empty one is erased
	// in both, which leaves zeros. Read returns what the program then finds.
	Write func(t *testing.T, id, key, value string)
	Read  func(t *testing.T, id, key string) (inMemory, onDisk string)
	// Self says who the guest is.
	Self func(t *testing.T, id string) Self
	// Check looks for what no error tells of, at the end of each test. Nil does nothing.
	Check func(t *testing.T)
	// Census lists what exists on the host beyond files below Config.Dir.
	Census func(t *testing.T) []string
	// Patience bounds each wait; a cold boot by emulation takes many seconds.
	Patience time.Duration
}

// part is one test of the suite.
type part struct {
	name string
	run  func(t *testing.T, g *suite)
}

// pauses are those of the tests that put a machine away and bring it back.
var pauses = []part{
	{"pause and resume", testPauseResume},
	{"a paused one survives the agent", testPausedSurvives},
	{"snapshots become templates", testSnapshots},
}

// Lifecycle runs the suite; newGround is called once per test and registers its own clean-up.
func Lifecycle(t *testing.T, newGround func(t *testing.T) Ground) {
	runAll(t, newGround, append([]part{
		{"create, get, list, destroy", testCreateDestroy},
		{"a deadline reaps", testDeadline},
		{"one id twice", testDuplicate},
		{"destroy during create", testDestroyDuringCreate},
		{"a cancelled create leaves nothing", testCancelledCreate},
		{"many at once", testManyAtOnce},
		{"a machine that ends by itself", testCrash},
		{"a new life adopts", testAdopt},
		{"refusals", testRefusals},
		{"a pause of files alone", testFilesOnly},
		{"a snapshot of a paused one", testSnapshotOfPaused},
		{"pause at the deadline", testPauseAtDeadline},
		{"pause, resume and destroy at once", testAtOnce},
		{"a damaged snapshot is refused", testDamaged},
		{"refusals of pauses and snapshots", testPauseRefusals},
	}, pauses...))
}

// Pauses runs the part of the suite that a way of keeping memory or disks can fail.
func Pauses(t *testing.T, newGround func(t *testing.T) Ground) { runAll(t, newGround, pauses) }

func runAll(t *testing.T, newGround func(t *testing.T) Ground, parts []part) {
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			g := newGround(t)
			s := &suite{Ground: g, before: g.Census(t)}
			s.start(t)
			t.Cleanup(func() { s.finish(t) })
			p.run(t, s)
		})
	}
}

type suite struct {
	Ground
	before  []string
	manager *sandbox.Manager
	next    int
}

func (s *suite) start(t *testing.T) {
	t.Helper()
	var err error
	s.manager, err = sandbox.NewManager(s.Config)
	require.NoError(t, err)
	finish, err := s.manager.Recover()
	require.NoError(t, err)
	_, err = finish(t.Context())
	require.NoError(t, err)
}

// finish destroys what is left and checks that the host is as it was.
func (s *suite) finish(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), s.Patience)
	defer cancel()
	assert.NoError(t, s.manager.Close(ctx, true))
	assert.Equal(t, s.before, s.Census(t), "the host is not as it was")
	if s.Check != nil {
		s.Check(t)
	}
	left, err := s.manager.ListSnapshots()
	assert.NoError(t, err)
	for _, n := range left {
		assert.NoError(t, s.manager.DeleteSnapshot(n.Name, false))
	}
	entries, err := os.ReadDir(s.Config.Dir)
	assert.NoError(t, err)
	assert.Empty(t, entries, "directories of sandboxes stayed")
}

func (s *suite) request() sandbox.CreateRequest {
	s.next++
	return sandbox.CreateRequest{
		ID: fmt.Sprintf("life%d", s.next), Template: s.Template, Timeout: time.Hour, AllowInternet: true,
		Metadata: map[string]string{"n": fmt.Sprint(s.next)}, AccessToken: "secret",
	}
}

func (s *suite) create(t *testing.T, req sandbox.CreateRequest) sandbox.Info {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	info, err := s.manager.Create(ctx, req)
	require.NoError(t, err)
	return info
}

func testCreateDestroy(t *testing.T, s *suite) {
	req := s.request()
	info := s.create(t, req)
	assert.Equal(t, sandbox.Running, info.State)
	assert.Equal(t, req.ID, info.ID)
	assert.Equal(t, req.Metadata, info.Metadata)
	assert.Equal(t, sandbox.Cold, info.BootPath)
	assert.NotEmpty(t, info.EnvdVersion)
	assert.WithinDuration(t, time.Now().Add(time.Hour), info.Deadline, time.Minute)
	var names []string
	for _, st := range info.Stages {
		names = append(names, st.Name)
		assert.GreaterOrEqual(t, st.Duration, time.Duration(0), st.Name)
	}
	assert.Equal(t, []string{"slot", "journal", "disk", "network", "vmm", "kernel", "init", "envd"}, names)
	got, err := s.manager.Get(req.ID)
	require.NoError(t, err)
	assert.Equal(t, info, got)
	assert.Len(t, s.manager.List(), 1)
	assert.NotEqual(t, s.before, s.Census(t))
	console, err := s.manager.Console(req.ID, 1024)
	require.NoError(t, err)
	assert.LessOrEqual(t, len(console), 1024)

	deadline, err := s.manager.SetDeadline(t.Context(), req.ID, 2*time.Hour, false)
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now().Add(2*time.Hour), deadline, time.Minute)
	same, err := s.manager.SetDeadline(t.Context(), req.ID, time.Minute, true)
	require.NoError(t, err)
	assert.Equal(t, deadline, same, "extend only must not shorten")

	require.NoError(t, s.manager.Destroy(t.Context(), req.ID))
	_, err = s.manager.Get(req.ID)
	require.ErrorIs(t, err, sandbox.ErrNotFound)
	require.ErrorIs(t, s.manager.Destroy(t.Context(), req.ID), sandbox.ErrNotFound)
	assert.NoDirExists(t, filepath.Join(s.Config.Dir, req.ID))
}

func testDeadline(t *testing.T, s *suite) {
	req := s.request()
	s.create(t, req)
	_, err := s.manager.SetDeadline(t.Context(), req.ID, time.Second, false)
	require.NoError(t, err)
	assert.Eventually(t, func() bool { return len(s.manager.List()) == 0 }, s.Patience, 20*time.Millisecond, "it outlived its deadline")
}

func testDuplicate(t *testing.T, s *suite) {
	req := s.request()
	const n = 4
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _, errs[i] = s.manager.Create(t.Context(), req) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		assert.ErrorIs(t, err, sandbox.ErrExists)
	}
	assert.Equal(t, 1, won)
}

func testDestroyDuringCreate(t *testing.T, s *suite) {
	req := s.request()
	created := make(chan error, 1)
	go func() { _, err := s.manager.Create(context.Background(), req); created <- err }()
	require.Eventually(t, func() bool { return len(s.manager.List()) == 1 || len(created) == 1 }, s.Patience, time.Millisecond)
	err := s.manager.Destroy(t.Context(), req.ID)
	require.NoError(t, err)
	if err := <-created; err != nil {
		assert.ErrorIs(t, err, sandbox.ErrConflict)
	}
	assert.Empty(t, s.manager.List())
}

func testCancelledCreate(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.manager.Create(ctx, s.request())
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, s.manager.List())
	assert.Equal(t, s.before, s.Census(t))
}

func testManyAtOnce(t *testing.T, s *suite) {
	var wg sync.WaitGroup
	for range 4 {
		req := s.request()
		wg.Go(func() {
			_, err := s.manager.Create(t.Context(), req)
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	slots := map[int]bool{}
	for _, info := range s.manager.List() {
		assert.False(t, slots[info.Slot], "slot %d twice", info.Slot)
		slots[info.Slot] = true
	}
	assert.Len(t, slots, 4)
}

func testCrash(t *testing.T, s *suite) {
	req := s.request()
	s.create(t, req)
	s.Crash(t, req.ID)
	require.Eventually(t, func() bool {
		info, err := s.manager.Get(req.ID)
		return err == nil && info.State == sandbox.Failed && info.Slot == 0
	}, s.Patience, 10*time.Millisecond, "the end of the machine went unnoticed")
	info, err := s.manager.Get(req.ID)
	require.NoError(t, err)
	assert.NotEmpty(t, info.Failure)
	assert.Equal(t, s.before, s.Census(t), "a failed sandbox holds on to the host")
	_, err = s.manager.SetDeadline(t.Context(), req.ID, time.Minute, false)
	require.ErrorIs(t, err, sandbox.ErrConflict)
	_, err = s.manager.Console(req.ID, 100)
	require.NoError(t, err, "the console of a failed sandbox is why it is kept")
}

func testAdopt(t *testing.T, s *suite) {
	lives, dies := s.request(), s.request()
	before := s.create(t, lives)
	s.create(t, dies)
	rules := egress.Rules{AllowOut: []string{"*.example.com", "192.0.2.0/24"}, DenyOut: []string{"0.0.0.0/0"}}
	require.NoError(t, s.manager.SetNetwork(t.Context(), lives.ID, rules))
	require.NoError(t, s.manager.Close(t.Context(), false))
	s.Crash(t, dies.ID)
	if s.Restart != nil {
		s.Restart()
	}
	s.start(t)
	after, err := s.manager.Get(lives.ID)
	require.NoError(t, err)
	assert.True(t, before.Deadline.Equal(after.Deadline), "%v became %v", before.Deadline, after.Deadline)
	assert.Equal(t, before.Slot, after.Slot)
	assert.Equal(t, before.Address, after.Address)
	assert.Equal(t, sandbox.Running, after.State)
	assert.Equal(t, rules, after.Network)
	require.NoError(t, s.manager.SetNetwork(t.Context(), lives.ID, egress.Rules{AllowInternet: true}))
	_, err = s.manager.Get(dies.ID)
	require.ErrorIs(t, err, sandbox.ErrNotFound)
	fresh := s.create(t, s.request())
	assert.NotEqual(t, after.Slot, fresh.Slot)
	s.Crash(t, lives.ID)
	require.Eventually(t, func() bool {
		info, err := s.manager.Get(lives.ID)
		return err == nil && info.State == sandbox.Failed
	}, s.Patience, 10*time.Millisecond, "the end of an adopted machine went unnoticed")
}

func testRefusals(t *testing.T, s *suite) {
	good := s.request()
	for field, spoil := range map[string]func(*sandbox.CreateRequest){
		"sandboxID": func(r *sandbox.CreateRequest) { r.ID = "../x" },
		"template":  func(r *sandbox.CreateRequest) { r.Template = "%2e%2e" },
		"vcpus":     func(r *sandbox.CreateRequest) { r.VCPUs = 33 },
		"memory":    func(r *sandbox.CreateRequest) { r.MemoryMiB = 127 },
		"timeout":   func(r *sandbox.CreateRequest) { r.Timeout = 0 },
		"metadata":  func(r *sandbox.CreateRequest) { r.Metadata = map[string]string{"": "x"} },
		"envVars":   func(r *sandbox.CreateRequest) { r.EnvVars = map[string]string{"A": string(make([]byte, 1<<20))} },
	} {
		req := good
		spoil(&req)
		_, err := s.manager.Create(t.Context(), req)
		require.ErrorIs(t, err, sandbox.ErrInvalid, field)
		assert.ErrorContains(t, err, field)
	}
	req := good
	req.Template = "nosuch"
	_, err := s.manager.Create(t.Context(), req)
	require.ErrorIs(t, err, sandbox.ErrNoTemplate)
	assert.ErrorContains(t, err, "nosuch")
	for _, id := range []string{"../x", "%2e%2e", "a\x00", "", "0123456789012345678901234567890123456789012345678901234567890123x"} {
		_, err := s.manager.Get(id)
		require.ErrorIs(t, err, sandbox.ErrInvalid, "%q", id)
		require.ErrorIs(t, s.manager.Destroy(t.Context(), id), sandbox.ErrInvalid, "%q", id)
		_, err = s.manager.SetDeadline(t.Context(), id, time.Hour, false)
		require.ErrorIs(t, err, sandbox.ErrInvalid, "%q", id)
		_, err = s.manager.Console(id, 1)
		require.ErrorIs(t, err, sandbox.ErrInvalid, "%q", id)
	}
	assert.Equal(t, s.before, s.Census(t))
}
