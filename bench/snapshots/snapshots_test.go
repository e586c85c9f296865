package snapshots_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// BenchmarkPause pauses and resumes a machine of 1 GiB that has changed so many MiB since it was restored.
// Beside it another of the same snapshot, in the same state, is stopped and written by the VMM alone (PATCH /vm and
// PUT /snapshot/create as a Diff, "vmm"), and the snapshot that was resumed is loaded once more by a VMM alone, out
// of the same flat file and with the disk already there ("vmm-resume": from the start of the process to the answer
// of PATCH /vm Resumed).
//
// "added" is what Wrenn's call takes longer than the VMM's own, in percent of that; "until-commit" is the part
// before the pause is durable, after which the host's resources are given back.
func BenchmarkPause(b *testing.B) {
	s := start(b)
	defer s.Stop()
	source := create(b, s, large)
	dirty(b, s, source, 256, 0)
	gold, _, err := s.Client.CreateSnapshot(patience(b), source.SandboxID, "gold")
	require.NoError(b, err)
	alone := newBare(b, s, source.SandboxID)
	require.NoError(b, s.Client.Kill(patience(b), source.SandboxID))
	for _, mib := range []int{0, 16, 64, 256} {
		b.Run(fmt.Sprintf("dirty=%dMiB", mib), func(b *testing.B) {
			paused, resumed := figures{}, figures{}
			for round := range rounds {
				ours, raw := create(b, s, gold.SnapshotID), create(b, s, gold.SnapshotID)
				dirty(b, s, ours, mib, round)
				dirty(b, s, raw, mib, round)
				pauseBoth(b, s, ours, raw, paused)
				resumeBoth(b, s, ours, alone, resumed)
				for _, box := range []apiclient.Sandbox{ours, raw} {
					require.NoError(b, s.Client.Kill(patience(b), box.SandboxID))
				}
			}
			for name, of := range map[string]figures{"pause": paused, "resume": resumed} {
				for figure := range of {
					b.ReportMetric(of.median(figure), name+"-"+figure+"-p50-ms")
				}
				b.ReportMetric(of.added("total"), name+"-added-percent")
			}
			b.ReportMetric(paused.added("until-commit"), "pause-until-commit-added-percent")
			figures{}.report(b)
		})
	}
}

// added is how much longer than the VMM's own call something takes, in percent of that.
func (f figures) added(name string) float64 { return 100 * (f.median(name)/f.median("vmm") - 1) }

// pauseBoth has the VMM write one machine, and pauses the other as users do.
func pauseBoth(b *testing.B, s *harness.System, ours, raw apiclient.Sandbox, f figures) {
	b.Helper()
	api := vmmAt(b, filepath.Join(boxDir(s, raw.SandboxID), "vmm.sock"))
	dir := filepath.Join(s.Dir, "agent/bare")
	f.add("vmm", timed(b, func() error {
		if err := api.state("Paused"); err != nil {
			return err
		}
		return api.snapshot(dir, "Diff")
	}))
	require.NoError(b, os.RemoveAll(dir))
	until := 0.0
	for _, stage := range pause(b, s, ours.SandboxID) {
		f.add(stage.Name, stage.Ms)
		if stage.Name != "park" && stage.Name != "total" {
			until += stage.Ms
		}
	}
	f.add("until-commit", until)
}

// resumeBoth resumes a machine as users do, and then loads the same snapshot into a VMM alone.
func resumeBoth(b *testing.B, s *harness.System, box apiclient.Sandbox, alone *bare, f figures) {
	b.Helper()
	boot := resume(b, s, box.SandboxID)
	f.stages(boot.Stages)
	f.add("total", boot.TotalMs)
	dir := boxDir(s, box.SandboxID)
	memory := filepath.Join(dir, "memory.flat")
	if _, err := os.Stat(memory); err != nil {
		memory = filepath.Join(dir, "snapshot/memory.0") // its layers have been merged
	}
	launched, loaded := alone.load(b, filepath.Join(dir, "snapshot"), memory)
	f.add("vmm-launch", launched)
	f.add("vmm-load", loaded)
	f.add("vmm", launched+loaded)
}

// BenchmarkStart measures from the call that creates a sandbox to the end of its first command, of a cold boot
// and from a named snapshot, by both ways to provide memory. "faster" is how many times.
func BenchmarkStart(b *testing.B) {
	for _, backend := range []string{"file", "uffd"} {
		b.Run("memory="+backend, func(b *testing.B) {
			s := start(b, "--memory-backend", backend)
			defer s.Stop()
			source := create(b, s, "base")
			s.Exec(source, "true")
			snap, _, err := s.Client.CreateSnapshot(patience(b), source.SandboxID, "gold")
			require.NoError(b, err)
			require.NoError(b, s.Client.Kill(patience(b), source.SandboxID))
			f := figures{}
			for range rounds {
				for name, template := range map[string]string{"cold": "base", "restored": snap.SnapshotID} {
					var box apiclient.Sandbox
					f.add(name, timed(b, func() error {
						box = create(b, s, template)
						return nil
					}))
					f.add(name+"-exec", timed(b, func() error { _, err := s.TryExec(box, "true"); return err }))
					if name == "restored" {
						f.stages(box.Wrenn.Stages)
					}
					require.NoError(b, s.Client.Kill(patience(b), box.SandboxID))
				}
			}
			b.ReportMetric((f.median("cold")+f.median("cold-exec"))/(f.median("restored")+f.median("restored-exec")), "times-faster")
			f.report(b)
		})
	}
}
