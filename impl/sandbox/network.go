package sandbox

import (
	"context"
	"errors"
	"fmt"

	"wrenn/impl/egress"
	"wrenn/impl/step"
)

// NetworkPolicy is what a sandbox's network lets through.
type NetworkPolicy = egress.Policy

// rulesChange asks a sandbox's owner for other rules.
type rulesChange struct {
	rules  egress.Rules
	policy NetworkPolicy
	reply  chan<- error
}

// SetNetwork replaces what a running sandbox may reach. It returns when the new rules are both written
// down and in force, for open connections too; on an error the former ones are. If the agent dies in
// between, its next life puts in force what is written down.
func (m *Manager) SetNetwork(ctx context.Context, id string, rules egress.Rules) error {
	policy, err := parseRules(rules)
	if err != nil {
		return err
	}
	s, err := m.find(id)
	if err != nil {
		return err
	}
	return s.setNetwork(ctx, rules.Clone(), policy)
}

func parseRules(rules egress.Rules) (NetworkPolicy, error) {
	policy, err := rules.Policy()
	if err != nil {
		return NetworkPolicy{}, fmt.Errorf("%w: network.%w", ErrInvalid, err)
	}
	return policy, nil
}

const rulesAct = "given other network rules"

func (s *owned) setNetwork(ctx context.Context, rules egress.Rules, policy NetworkPolicy) error {
	if i := s.info(); i.State != Running {
		return i.State.conflict(i.ID, rulesAct)
	}
	reply := make(chan error, 1)
	select {
	case s.rules <- rulesChange{rules: rules, policy: policy, reply: reply}:
		return <-reply // a few milliseconds in the kernel, and a write to the disk
	case <-s.gone:
		return errors.Join(ErrNotFound, Gone.conflict(s.now.ID, rulesAct))
	case <-s.left:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// NetworkAct is the act under which the steps of a change run; the fault suite names it.
const NetworkAct = "sandbox.network"

// changeRules runs in the owner.
func (m *Manager) changeRules(s *owned, c rulesChange) error {
	before := s.info()
	if before.State != Running {
		return before.State.conflict(before.ID, rulesAct)
	}
	ctx, cancel := context.WithTimeout(context.Background(), rulesTimeout)
	defer cancel()
	if _, err := step.Run(ctx, NetworkAct, m.networkSteps(s, before, c)); err != nil {
		return err
	}
	s.policy = c.policy
	m.cfg.Logger.Info("sandbox has other network rules", "sandbox", before.ID,
		"internet", c.rules.AllowInternet, "allowOut", len(c.rules.AllowOut), "denyOut", len(c.rules.DenyOut))
	return nil
}

// networkSteps write the change down first: a crash after that leaves a change that was never acknowledged
// and that the next life makes, never one that was acknowledged and is lost.
func (m *Manager) networkSteps(s *owned, before Info, c rulesChange) []step.Step {
	write := func(rules egress.Rules) func(context.Context) error {
		return func(context.Context) error {
			s.update(func(i *Info) { i.Network = rules })
			return m.writeJournal(s)
		}
	}
	return []step.Step{
		{Name: "journal", Do: write(c.rules), Undo: write(before.Network)},
		{Name: "policy", Do: func(ctx context.Context) error {
			return m.cfg.Network.SetPolicy(ctx, before.Slot, c.policy)
		}, Undo: func(ctx context.Context) error {
			return m.cfg.Network.SetPolicy(ctx, before.Slot, s.policy)
		}},
	}
}

// NetworkSteps names the steps of a change of the rules in order; the fault suite kills the agent after
// each.
func NetworkSteps() []string {
	var m Manager
	return step.Names(m.networkSteps(emptyOwned(), Info{}, rulesChange{}))
}
