package sandbox

import (
	"fmt"
	"slices"
)

// State is a state of a sandbox's life.
type State string

// The states. Creating, Pausing, Resuming and Destroying are passed through; the others last.
const (
	Creating   State = "creating"
	Running    State = "running"
	Pausing    State = "pausing"
	Paused     State = "paused"
	Resuming   State = "resuming"
	Destroying State = "destroying"
	Gone       State = "gone"
	Failed     State = "failed"
)

// transitions is the whole table of legal moves; what is not here does not happen.
var transitions = map[State][]State{
	Creating:   {Running, Failed, Destroying},
	Running:    {Pausing, Destroying, Failed},
	Pausing:    {Paused, Running, Destroying, Failed},
	Paused:     {Resuming, Destroying, Failed},
	Resuming:   {Running, Paused, Destroying, Failed},
	Failed:     {Destroying},
	Destroying: {Gone},
	Gone:       nil,
}

// States lists every state.
func States() []State {
	return []State{Creating, Running, Pausing, Paused, Resuming, Destroying, Gone, Failed}
}

// CanBecome reports whether the table allows the move from s to next.
func (s State) CanBecome(next State) bool { return slices.Contains(transitions[s], next) }

// conflict is the error for an act that the present state does not allow.
func (s State) conflict(id, act string) error {
	return fmt.Errorf("%w: sandbox %s is %s, so it cannot be %s", ErrConflict, id, s, act)
}
