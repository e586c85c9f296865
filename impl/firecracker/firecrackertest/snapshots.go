package firecrackertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
	"wrenn/impl/need"
)

// memMiB is the memory of the suite's guests.
const memMiB = 192

// snapshot is the two files of a snapshot.
type snapshot struct{ state, memory string }

func newSnapshot(dir, name string) snapshot {
	return snapshot{state: filepath.Join(dir, name+".state"), memory: filepath.Join(dir, name+".memory")}
}

// create makes a snapshot of the paused machine.
func (v *vm) create(kind firecracker.SnapshotType, s snapshot) {
	v.t.Helper()
	begin := time.Now()
	require.NoError(v.t, v.CreateSnapshot(v.t.Context(), firecracker.SnapshotCreate{Type: kind, StatePath: s.state,
		MemoryPath: s.memory, MemSizeMiB: memMiB}))
	info, err := os.Stat(s.memory)
	require.NoError(v.t, err)
	assert.EqualValues(v.t, memMiB<<20, info.Size())
	v.t.Logf("%s snapshot: %s, %d MiB allocated", kind, time.Since(begin).Round(time.Millisecond), allocated(v.t, s.memory)>>20)
}

// loadFile is the usual load: paused, from the snapshot's own file.
func (s snapshot) loadFile() firecracker.SnapshotLoad {
	return firecracker.SnapshotLoad{StatePath: s.state, Memory: firecracker.MemoryBackend{Type: firecracker.BackendFile, Path: s.memory},
		TrackDirtyPages: true, MemSizeMiB: memMiB}
}

func (v *vm) load(l firecracker.SnapshotLoad) {
	v.t.Helper()
	begin := time.Now()
	require.NoError(v.t, v.LoadSnapshot(v.t.Context(), l))
	v.t.Logf("load by %s: %s", l.Memory.Type, time.Since(begin).Round(time.Millisecond))
}

func (v *vm) requireState(want firecracker.State) {
	v.t.Helper()
	info, err := v.Info(v.t.Context())
	require.NoError(v.t, err)
	require.Equal(v.t, want, info.State)
}

// requireSound lets the guest check its memory twice over.
func (v *vm) requireSound() {
	v.t.Helper()
	v.awaitTicks(v.ticks() + 33)
	assert.NotContains(v.t, string(v.output()), "corrupt", "the guest's memory is not what the guest wrote")
}

// disk makes the root drive of a machine, at the path that is the same in every directory.
func disk(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "root.disk"), make([]byte, 1<<20), 0o600))
}

// blockDisk does the same with a block device that is reached by a link, and holds content.
func blockDisk(t *testing.T, dir string, content []byte) {
	t.Helper()
	need.Program(t, "losetup")
	image := filepath.Join(dir, "image")
	require.NoError(t, os.WriteFile(image, content, 0o600))
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { assert.NoError(t, exec.Command("losetup", "--detach", device).Run()) })
	require.NoError(t, os.Symlink(device, filepath.Join(dir, "root.disk")))
}

// tickOnDisk is what the churning guest wrote to its disk last.
func tickOnDisk(t *testing.T, dir string) uint64 {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "root.disk"))
	require.NoError(t, err)
	return binary.LittleEndian.Uint64(raw[4096:])
}

func rootDrive() firecracker.Drive {
	return firecracker.Drive{DriveID: "root", PathOnHost: "root.disk", IsRootDevice: true}
}

// snapshotLife: what is refused when, a Full, the source that runs on, and the machine that counts on from it.
func (s *suite) snapshotLife(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	v := s.launch(t, "")
	full := newSnapshot(dir, "full")
	create := firecracker.SnapshotCreate{Type: firecracker.SnapshotFull, StatePath: full.state, MemoryPath: full.memory, MemSizeMiB: memMiB}
	requireFault(t, v.CreateSnapshot(ctx, create), beforeStart)
	blockDisk(t, v.dir, make([]byte, 1<<20))
	require.NoError(t, v.PutDrive(ctx, rootDrive()))
	requireFault(t, v.LoadSnapshot(ctx, full.loadFile()),
		"Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	s.boot(t, v, "churn") // the refusal has changed nothing
	v.awaitTicks(20)
	requireFault(t, v.CreateSnapshot(ctx, create), "save/restore unavailable while running")
	requireFault(t, v.LoadSnapshot(ctx, full.loadFile()), afterStart)
	require.NoError(t, v.Pause(ctx))
	missing := create
	missing.MemoryPath = "/nonexistent/memory"
	requireFault(t, v.CreateSnapshot(ctx, missing), "No such file or directory (os error 2)")
	v.create(firecracker.SnapshotFull, full)
	v.requireState(firecracker.StatePaused)
	time.Sleep(100 * time.Millisecond) // what was on its way to the console
	last := v.ticks()
	before := checksum(t, full)
	assert.LessOrEqual(t, uint64(last), tickOnDisk(t, v.dir), "what the guest wrote has reached the disk")
	restored := s.launch(t, "")
	content, err := os.ReadFile(filepath.Join(v.dir, "root.disk"))
	require.NoError(t, err)
	blockDisk(t, restored.dir, content)

	require.NoError(t, v.Resume(ctx))
	v.awaitTicks(last + 5)

	restored.load(full.loadFile())
	restored.requireState(firecracker.StatePaused)
	config, err := restored.VMConfig(ctx)
	require.NoError(t, err)
	assert.Equal(t, memMiB, config.Machine.MemSizeMiB)
	assert.True(t, config.Machine.TrackDirtyPages)
	require.Len(t, config.Drives, 1)
	assert.Equal(t, "root.disk", config.Drives[0].PathOnHost)
	requireFault(t, restored.Start(ctx), afterStart)
	time.Sleep(300 * time.Millisecond)
	assert.Equal(t, -1, restored.ticks(), "it runs before it is resumed")
	require.NoError(t, restored.Resume(ctx))
	// The line at the moment of the pause may have been told in two halves.
	assert.Contains(t, []int{last + 1, last + 2}, restored.firstTick(), "it counts on from where it was")
	restored.requireSound()
	require.Eventually(t, func() bool { return tickOnDisk(t, restored.dir) > uint64(last+3) }, stepLimit, 20*time.Millisecond,
		"its disk works")
	assert.Equal(t, before, checksum(t, full), "a load changes nothing of the snapshot")
	require.NoError(t, restored.CtrlAltDel(ctx))
	assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 0}, restored.awaitExit())
	v.requireSound()
}

// badLoads: what fails inside a load ends the process with 1, and says why.
func (s *suite) badLoads(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	v := s.launch(t, "")
	disk(t, v.dir)
	require.NoError(t, v.PutDrive(ctx, rootDrive()))
	s.boot(t, v, "churn")
	v.awaitTicks(3)
	require.NoError(t, v.Pause(ctx))
	good := newSnapshot(dir, "good")
	v.create(firecracker.SnapshotFull, good)
	require.NoError(t, v.process.Kill(ctx))
	state, err := os.ReadFile(good.state)
	require.NoError(t, err)
	flip := func(at int) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			bad := bytes.Clone(state)
			bad[at] ^= 4
			require.NoError(t, os.WriteFile(path, bad, 0o600))
		}
	}
	write := func(content []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, content, 0o600)) }
	}
	for name, test := range map[string]struct {
		state  func(*testing.T, string) // writes a state file
		memory int64                    // its size in MiB, 0 for the good file, -1 for none
		noDisk bool
	}{
		"no state":             {state: func(*testing.T, string) {}},
		"empty state":          {state: write(nil)},
		"half a state":         {state: write(state[:len(state)/2])},
		"a byte short":         {state: write(state[:len(state)-1])},
		"a page of state":      {state: write(state[:4096])},
		"foreign state":        {state: write(bytes.Repeat([]byte("foreign"), 2000))},
		"flipped at the start": {state: flip(0)},
		"flipped early":        {state: flip(100)},
		"flipped in the midst": {state: flip(len(state) / 2)},
		"flipped at the end":   {state: flip(len(state) - 1)},
		"smaller memory":       {memory: memMiB / 2},
		"no memory":            {memory: -1},
		"no disk":              {noDisk: true},
	} {
		t.Run(name, func(t *testing.T) {
			v := s.launch(t, "")
			l := good.loadFile()
			if test.state != nil {
				l.StatePath = filepath.Join(v.dir, "state")
				test.state(t, l.StatePath)
			}
			if test.memory != 0 {
				l.Memory.Path = filepath.Join(v.dir, "memory")
			}
			if test.memory > 0 {
				require.NoError(t, os.WriteFile(l.Memory.Path, nil, 0o600))
				require.NoError(t, os.Truncate(l.Memory.Path, test.memory<<20))
			}
			if !test.noDisk {
				disk(t, v.dir)
			}
			err := v.LoadSnapshot(t.Context(), l)
			requireFault(t, err, "Load snapshot error: Failed to restore from snapshot: ")
			t.Log(err)
			assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 1}, v.awaitExit())
		})
	}
}

// diffChain: five generations, each loaded from what the ones before it amount to. Base and diffs, merged by
// the rule that a hole is unchanged, are what a Full of the same moment holds.
func (s *suite) diffChain(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	v := s.launch(t, "")
	s.boot(t, v, "churn")
	v.awaitTicks(5)
	require.NoError(t, v.Pause(ctx))
	base := newSnapshot(dir, "base")
	v.create(firecracker.SnapshotFull, base)
	// A machine that booted makes diffs, too.
	require.NoError(t, v.Resume(ctx))
	v.awaitTicks(v.ticks() + 20)
	require.NoError(t, v.Pause(ctx))
	merged := filepath.Join(dir, "merged")
	copyFile(t, base.memory, merged)
	zeroed := s.step(t, v, dir, "booted", merged)
	assert.Positive(t, zeroed, "the guest zeroes pages all the time, and none is in the diff")
	last := v.ticks()
	state := filepath.Join(dir, "booted.state")
	for generation := range 5 {
		require.NoError(t, v.process.Kill(ctx))
		flat := filepath.Join(dir, fmt.Sprintf("flat%d", generation))
		copyFile(t, merged, flat)
		before := sum(t, flat)
		v = s.launch(t, "")
		v.load(snapshot{state, flat}.loadFile())
		require.NoError(t, v.Resume(ctx))
		assert.Contains(t, []int{last + 1, last + 2}, v.firstTick(), "generation %d", generation)
		v.requireSound()
		require.NoError(t, v.Pause(ctx))
		time.Sleep(100 * time.Millisecond)
		name := fmt.Sprintf("diff%d", generation)
		zeroed := s.step(t, v, dir, name, merged)
		assert.Positive(t, zeroed, "no zeroed page in the diff of generation %d", generation)
		assert.Equal(t, before, sum(t, flat), "the file that generation %d was loaded from has changed", generation)
		last, state = v.ticks(), filepath.Join(dir, name+".state")
	}
}

// step makes a Diff and a Full of the same moment, merges the diff and compares. It returns how many pages of
// the diff were zeroed: they hold nothing and held something before.
func (s *suite) step(t *testing.T, v *vm, dir, name, merged string) int {
	t.Helper()
	diff, full := newSnapshot(dir, name), newSnapshot(dir, "check")
	v.create(firecracker.SnapshotDiff, diff)
	v.create(firecracker.SnapshotFull, full)
	zeroed := merge(t, merged, diff.memory)
	requireSameFile(t, full.memory, merged)
	return zeroed
}

// clones: two machines from one file at once; the file stays as it is, and each makes diffs of its own.
func (s *suite) clones(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	v := s.launch(t, "")
	s.boot(t, v, "churn")
	v.awaitTicks(5)
	require.NoError(t, v.Pause(ctx))
	base := newSnapshot(dir, "base")
	v.create(firecracker.SnapshotFull, base)
	require.NoError(t, v.process.Kill(ctx))
	before := checksum(t, base)
	var clones [2]*vm
	for i := range clones {
		clones[i] = s.launch(t, "")
		l := base.loadFile()
		l.ResumeVM = true
		clones[i].load(l)
		clones[i].requireState(firecracker.StateRunning)
	}
	for i, c := range clones {
		c.requireSound()
		require.NoError(t, c.Pause(ctx))
		diff, full := newSnapshot(dir, fmt.Sprintf("diff%d", i)), newSnapshot(dir, fmt.Sprintf("full%d", i))
		// The same diff twice: the second holds what the first did.
		c.create(firecracker.SnapshotDiff, diff)
		require.NoError(t, c.Resume(ctx))
		c.requireSound()
		require.NoError(t, c.Pause(ctx))
		second := newSnapshot(dir, fmt.Sprintf("second%d", i))
		c.create(firecracker.SnapshotDiff, second)
		c.create(firecracker.SnapshotFull, full)
		merged := filepath.Join(dir, "merged")
		copyFile(t, base.memory, merged)
		merge(t, merged, diff.memory)
		merge(t, merged, second.memory)
		requireSameFile(t, full.memory, merged)
		// A Full into a file of the same size leaves nothing of what was there, nor does a Diff onto its base.
		c.create(firecracker.SnapshotDiff, snapshot{second.state, diff.memory})
		c.create(firecracker.SnapshotFull, snapshot{full.state, second.memory})
		requireSameFile(t, full.memory, second.memory)
		assert.Equal(t, before, checksum(t, base), "clone %d has changed the snapshot", i)
	}
	assert.NotEqual(t, clones[0].process.Identity().PID, clones[1].process.Identity().PID)
}
