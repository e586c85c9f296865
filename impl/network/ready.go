package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"wrenn/impl/step"
)

// ReadyAct is the act under which the steps of CreateReady run.
const ReadyAct = "network.ready"

// CreateReady makes the network of a slot ahead of need: all of it but the policy. Until HandOver nothing
// passes it in either direction, not even connections that the host opens. On an error nothing is left,
// and the error names the step.
func (h *Host) CreateReady(ctx context.Context, slot Slot) error {
	if err := slot.Check(); err != nil {
		return fmt.Errorf("%s: %w", ReadyAct, err)
	}
	return h.make(ctx, ReadyAct, slot, h.ReadySteps(slot))
}

// ReadySteps lists what CreateReady does, for one run: the steps of CreateSteps with another last one.
func (h *Host) ReadySteps(slot Slot) []step.Step {
	s := &site{slot: slot}
	steps := h.CreateSteps(slot, Policy{})
	return append(steps[:len(steps)-1], step.Step{Name: "closed", Do: plain(s.inside(stopForwarding))})
}

// HandOver gives a network that CreateReady made its policy: before it the network is closed, after it the
// policy holds, and in between it is closed too. It is for once; SetPolicy changes a policy later. After an
// error the network has to be removed.
//
// Closed is a network by not forwarding, rather than by rules: to change rules that are there makes the
// kernel wait some ten milliseconds until no packet uses the old ones, as long as a whole network takes.
func (h *Host) HandOver(_ context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("handing over a ready network: %w", err)
	}
	s := &site{slot: slot, resolvers: h.cfg.Resolvers}
	if err := s.stillThere(); err != nil {
		return fmt.Errorf("handing over the ready network of slot %d: %w", slot, err)
	}
	open := func() error {
		if err := s.writeEgress(policy); err != nil {
			return err
		}
		return writeSettings(setting{path: ipForward, value: "1"})
	}
	if err := s.inside(open)(); err != nil {
		return fmt.Errorf("handing over the ready network of slot %d: %w", slot, err)
	}
	return nil
}

// stillThere looks whether somebody took the host's half away while the network waited, perhaps for hours:
// a network manager that removes what it does not know. That the route can be added means that it was gone.
func (s *site) stillThere() error {
	if err := s.addRoute(); !errors.Is(err, fs.ErrExist) {
		return errors.Join(errors.New("its route was gone"), err)
	}
	return nil
}

// stopForwarding runs in the namespace.
func stopForwarding() error { return writeSettings(setting{path: ipForward, value: "0"}) }
