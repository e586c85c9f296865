//go:build fault

package fault

import (
	"fmt"

	"wrenn/impl/network"
	"wrenn/impl/sandbox"
	"wrenn/impl/step"
)

// point is one place of the matrix: what happens at which moment of which step.
type point struct{ act, step, moment, kind string }

func (p point) String() string { return fmt.Sprintf("%s/%s %s %s", p.act, p.step, p.moment, p.kind) }

// where is the point as impl/step traces it, without the fault.
func (p point) where() string { return p.act + "/" + p.step + " " + p.moment }

// arm is the line that arms the fault at the n-th time that the point is passed.
func (p point) arm(n int) string { return fmt.Sprintf("%s %s %d", p.where(), p.kind, n) }

// act is a list of steps.
type act struct {
	name  string
	steps []string
	// undone are those of the steps that have an undo which an error can reach.
	undone []string
	start  start
	// real acts need a VMM with virtual machines. The disk of one without is mounted by the host, which writes
	// to it when it is unmounted, after the snapshot was sealed: such a snapshot is refused.
	real bool
}

// start is what begins an act.
type start int

const (
	byCreate start = iota
	byDestroy
	byDeath  // of the VMM
	byPause  // of a sandbox's files: the VMM of these rows has no memory that it could write
	byPark   // likewise, in what follows once the snapshot is committed, where an error is not the caller's
	byResume // of such a one
	byKeep   // a snapshot of such a one
)

// acts are those that make and remove, with their steps from the code. Those of a restart are cleanup's.
func acts() []act {
	create := new(network.Host).CreateSteps(1, network.Policy{})
	return []act{
		{name: network.CreateAct, steps: step.Names(create), undone: undoable(create)},
		{name: network.RemoveAct, steps: step.Names(new(network.Host).RemoveSteps(1)), start: byDestroy},
		{name: sandbox.CreateAct, steps: sandbox.CreateSteps()},
		{name: sandbox.DestroyAct, steps: sandbox.DestroySteps(), start: byDestroy},
		{name: sandbox.FailAct, steps: sandbox.FailSteps(), start: byDeath},
		{name: sandbox.PauseAct, steps: step.Names(sandbox.PauseSteps()), undone: undoable(sandbox.PauseSteps()), start: byPause},
		{name: sandbox.ParkAct, steps: sandbox.ParkSteps(), start: byPark},
		{name: sandbox.ResumeAct, steps: sandbox.ResumeSteps(), start: byResume, real: true},
		{name: sandbox.KeepAct, steps: step.Names(sandbox.KeepSteps()), undone: undoable(sandbox.KeepSteps()), start: byKeep},
	}
}

// wakes is what a restart does with a sandbox that it finds half paused; impl/sandbox has its rows, and those of
// snapshots of machines that run, on parts in memory.
const wakes = sandbox.WakeAct

// cleanup are the points at which a restart can be killed while it clears up.
func cleanup() []point {
	var all []point
	for _, name := range sandbox.RecoverSteps() {
		all = append(all, point{sandbox.RecoverAct, name, "before", "kill"}, point{sandbox.RecoverAct, name, "after", "kill"})
	}
	for _, name := range step.Names(new(network.Host).RemoveSteps(1)) {
		all = append(all, point{network.RemoveAct, name, "after", "kill"})
	}
	return all
}

func undoable(steps []step.Step) []string {
	var names []string
	for _, s := range steps {
		if s.Undo != nil {
			names = append(names, s.Name)
		}
	}
	return names
}

// matrix is every step x {before, after} x {kill, error}, without those before a step that are the same as
// those after the one in front of it: a kill between two steps is one point.
func matrix() []point {
	var all []point
	for _, a := range acts() {
		if a.real {
			continue
		}
		for i, name := range a.steps {
			if i == 0 {
				all = append(all, point{a.name, name, "before", "kill"})
			}
			all = append(all, point{a.name, name, "after", "kill"}, point{a.name, name, "before", "error"}, point{a.name, name, "after", "error"})
		}
	}
	return all
}

// startOf is what begins the act of that name.
func startOf(name string) start {
	for _, a := range acts() {
		if a.name == name {
			return a.start
		}
	}
	panic("there is no act " + name)
}
