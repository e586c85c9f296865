package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/nftables"

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
	s := &site{slot: slot, resolvers: h.cfg.Resolvers}
	steps := h.CreateSteps(slot, Policy{})
	return append(steps[:len(steps)-1], step.Step{Name: "closed", Do: plain(s.inside(closeEgress))})
}

// HandOver gives a network that CreateReady made its policy, in one transaction: before it the network is
// closed, after it the policy holds. It is for once; SetPolicy changes a policy later. After an error the
// network has to be removed.
//
// Nothing is deleted, unlike in SetPolicy, so the kernel need not wait until no packet uses the old rules:
// 3 ms instead of 13.
func (h *Host) HandOver(_ context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("handing over a ready network: %w", err)
	}
	s := &site{slot: slot, resolvers: h.cfg.Resolvers}
	if err := s.stillThere(); err != nil {
		return fmt.Errorf("handing over the ready network of slot %d: %w", slot, err)
	}
	if err := s.inside(func() error { return s.writeEgress(policy) })(); err != nil {
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

// closeEgress runs in a namespace that has no egress rules yet: with a policy of dropping and no rule, the
// chain lets nothing through. writeEgress fills this same chain.
func closeEgress() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable})
	conn.AddChain(forwardChain(table))
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("closing the network: %w", err)
	}
	return nil
}
