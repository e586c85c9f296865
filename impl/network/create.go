package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"wrenn/impl/netns"
	"wrenn/impl/step"
)

// The acts under which the steps run; the fault suite names them.
const (
	CreateAct = "network.create"
	RemoveAct = "network.remove"
)

// CreateNetwork makes the network of a slot. On an error nothing of it is left, and the error names the
// step. It fails without touching anything when the slot's namespace or veth exists already.
func (h *Host) CreateNetwork(ctx context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("%s: %w", CreateAct, err)
	}
	return h.make(ctx, CreateAct, slot, h.CreateSteps(slot, policy))
}

func (h *Host) make(ctx context.Context, act string, slot Slot, steps []step.Step) error {
	start := time.Now()
	timings, err := step.Run(ctx, act, steps)
	if err != nil {
		return fmt.Errorf("slot %d: %w", slot, err)
	}
	attrs := []slog.Attr{slog.Int("slot", int(slot)), slog.Duration("took", time.Since(start))}
	for _, t := range timings {
		attrs = append(attrs, slog.Duration(t.Name, t.Duration))
	}
	h.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, act, attrs...)
	return nil
}

// CreateSteps lists what CreateNetwork does, for one run.
func (h *Host) CreateSteps(slot Slot, policy Policy) []step.Step {
	s := &site{slot: slot, resolvers: h.cfg.Resolvers}
	return append(s.bareSteps(), h.policySteps(s, policy)...)
}

// bareSteps make a network without a policy. The namespace comes first and, in the undos, last: its name is
// the sign that the slot has, or had, a network.
func (s *site) bareSteps() []step.Step {
	return []step.Step{
		ours("netns", s.makeNetns, s.removeNetns),
		{Name: "sysctl", Do: plain(s.inside(setKernel))},
		ours("veth", s.makeVeth, s.removeVeth),
		{Name: "address", Do: plain(s.addressVeth)},
		{Name: "vpeer", Do: plain(s.inside(s.addressVpeer))},
		{Name: "tap", Do: plain(s.inside(makeTap))},
		ours("route", s.addRoute, s.removeRoute),
		{Name: "nat", Do: plain(s.inside(s.writeNAT))},
	}
}

// policySteps give a bare network its policy.
func (h *Host) policySteps(s *site, policy Policy) []step.Step {
	return []step.Step{
		{Name: "egress", Do: plain(s.inside(func() error { return s.writeEgress(policy) }))},
	}
}

// RemoveNetwork takes away whatever exists of the slot's network, tries every step and joins the errors. It
// is nil when nothing exists. The VMM must have ended before: a process that is left in the namespace
// keeps the TAP alive, though cut off.
func (h *Host) RemoveNetwork(ctx context.Context, slot Slot) error {
	if err := slot.Check(); err != nil {
		return fmt.Errorf("%s: %w", RemoveAct, err)
	}
	if err := step.RunAll(ctx, RemoveAct, h.RemoveSteps(slot)); err != nil {
		return fmt.Errorf("slot %d: %w", slot, err)
	}
	return nil
}

// RemoveSteps lists what RemoveNetwork does: the undos of CreateSteps in reverse, without their conditions.
// TAP, rules and the namespace's end of the veth pair go with the namespace.
func (h *Host) RemoveSteps(slot Slot) []step.Step {
	s := &site{slot: slot}
	return []step.Step{
		{Name: "route", Do: plain(s.removeRoute)},
		{Name: "veth", Do: plain(s.removeVeth)},
		{Name: "netns", Do: plain(s.removeNetns)},
	}
}

// SetPolicy replaces the egress policy of an existing network at once, for open connections too; no
// packet is judged by a mixture of both.
func (h *Host) SetPolicy(_ context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("setting the network policy: %w", err)
	}
	s := &site{slot: slot, resolvers: h.cfg.Resolvers}
	if err := s.inside(func() error { return s.replaceEgress(policy) })(); err != nil {
		return fmt.Errorf("setting the network policy of slot %d: %w", slot, err)
	}
	return nil
}

// ours is a step whose undo removes only what this run made: not what stood there before, nor anything
// when the step was never tried.
func ours(name string, do, undo func() error) step.Step {
	var made bool
	return step.Step{
		Name: name,
		Do: func(context.Context) error {
			err := do()
			made = !errors.Is(err, fs.ErrExist)
			return err
		},
		Undo: func(context.Context) error {
			if !made {
				return nil
			}
			return undo()
		},
	}
}

// plain fits an act of a few milliseconds, which needs no context, to a step.
func plain(do func() error) func(context.Context) error {
	return func(context.Context) error { return do() }
}

// makeNetns creates the slot's namespace under its name.
func (s *site) makeNetns() error {
	ns, err := netns.Create(s.slot.Netns())
	if err != nil {
		return err
	}
	return ns.Close()
}

func (s *site) removeNetns() error { return netns.Delete(s.slot.Netns()) }

// inside returns do so that it runs in the slot's namespace.
func (s *site) inside(do func() error) func() error {
	return func() error {
		ns, err := netns.Open(s.slot.Netns())
		if err != nil {
			return err
		}
		defer ns.Close()
		return ns.Do(do)
	}
}
