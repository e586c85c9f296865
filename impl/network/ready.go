package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"wrenn/impl/step"
)

// The acts under which the steps of CreateReady and HandOver run.
const (
	ReadyAct    = "network.ready"
	HandOverAct = "network.handover"
)

// CreateReady makes the network of a slot ahead of need: all of it but the policy. Until HandOver nothing
// passes it in either direction, not even connections that the host opens. On an error nothing is left,
// and the error names the step.
func (h *Host) CreateReady(ctx context.Context, slot Slot) error {
	if err := slot.Check(); err != nil {
		return fmt.Errorf("%s: %w", ReadyAct, err)
	}
	return h.make(ctx, ReadyAct, slot, h.ReadySteps(slot))
}

// ReadySteps lists what CreateReady does, for one run: the steps of CreateSteps with another end.
func (h *Host) ReadySteps(slot Slot) []step.Step {
	s := h.site(slot)
	return append(s.bareSteps(), step.Step{Name: "closed", Do: plain(s.inside(func() error { return forward("0") }))})
}

// HandOver gives a network that CreateReady made its policy: before it the network is closed, after it the
// policy holds, and in between it is closed too. It is for once; SetPolicy changes a policy later. After an
// error the network has to be removed.
//
// Closed is a network by not forwarding, rather than by rules: to change rules that are there makes the
// kernel wait some ten milliseconds until no packet uses the old ones, as long as a whole network takes.
func (h *Host) HandOver(ctx context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("%s: %w", HandOverAct, err)
	}
	return h.make(ctx, HandOverAct, slot, h.HandOverSteps(slot, policy))
}

// HandOverSteps lists what HandOver does, for one run.
func (h *Host) HandOverSteps(slot Slot, policy Policy) []step.Step {
	s := h.site(slot)
	steps := append([]step.Step{{Name: "look", Do: plain(s.stillThere)}}, h.policySteps(s, policy)...)
	return append(steps, step.Step{Name: "open", Do: plain(s.inside(func() error { return forward("1") }))})
}

// stillThere looks whether somebody took the host's half away while the network waited, perhaps for hours:
// a network manager that removes what it does not know. That the route can be added means that it was gone.
func (s *site) stillThere() error {
	if err := s.addRoute(); !errors.Is(err, fs.ErrExist) {
		return errors.Join(errors.New("its route was gone"), err)
	}
	return nil
}

// forward runs in the namespace: "1" lets packets through it, as far as the rules do.
func forward(value string) error { return writeSettings(setting{path: ipForward, value: value}) }
