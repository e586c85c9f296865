package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// SetPolicy replaces the egress policy of an existing network at once, for open connections too; no
// packet is judged by a mixture of both. On an error the former policy holds.
func (h *Host) SetPolicy(_ context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("setting the network policy: %w", err)
	}
	if err := h.enforce(h.site(slot), policy); err != nil {
		return fmt.Errorf("setting the network policy of slot %d: %w", slot, err)
	}
	return nil
}

// AdoptPolicy takes over an existing network of an earlier life of the process, whose policy is to be
// this one. Where it is, nothing in the kernel changes, so that open connections go on; where the
// process ended between writing a policy down and putting it in force, it is put in force now.
func (h *Host) AdoptPolicy(_ context.Context, slot Slot, policy Policy) error {
	if err := errors.Join(slot.Check(), policy.Check()); err != nil {
		return fmt.Errorf("taking over the network policy: %w", err)
	}
	s := h.site(slot)
	var holds bool
	err := s.inside(func() (err error) { holds, err = s.sealed(policy); return err })()
	switch {
	case err == nil && !holds:
		err = h.enforce(s, policy)
	case err == nil:
		err = h.startNames(s, policy)
	}
	if err != nil {
		return fmt.Errorf("taking over the network policy of slot %d: %w", slot, err)
	}
	return nil
}

// Close ends what serves the networks in this process. They themselves stay; their sandboxes cannot
// resolve names until AdoptPolicy is called for them again.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for slot, n := range h.named {
		errs = append(errs, n.close())
		delete(h.named, slot)
	}
	return errors.Join(errs...)
}

func (h *Host) site(slot Slot) *site { return &site{slot: slot, resolvers: h.cfg.Resolvers} }

func (h *Host) enforce(s *site, policy Policy) error {
	before := h.namesOf(s.slot)
	if err := h.startNames(s, policy); err != nil {
		return err
	}
	var err error
	if n := h.namesOf(s.slot); n != nil {
		err = n.set(policy)
	} else {
		err = s.inside(func() error { return s.replaceEgress(ruleset{policy: policy}) })()
	}
	if err != nil {
		if before == nil {
			err = errors.Join(err, h.stopNames(s.slot))
		}
		return err
	}
	h.afterChange(s, before != nil, len(policy.Domains) > 0)
	return nil
}

// afterChange clears up once the new policy is in force. What it cannot do costs no more than a question
// that the guest has to repeat, or a forwarder that nothing leads to.
func (h *Host) afterChange(s *site, before, after bool) {
	var err error
	if !after {
		err = h.stopNames(s.slot)
	}
	if after != before {
		err = errors.Join(err, s.inside(forgetQuestions)())
	}
	if err != nil {
		h.cfg.Logger.Warn("leftovers of a former network policy", "slot", int(s.slot), "error", err)
	}
}

// startNames starts the slot's forwarder where the policy needs one and there is none.
func (h *Host) startNames(s *site, policy Policy) error {
	if len(policy.Domains) == 0 || h.namesOf(s.slot) != nil {
		return nil
	}
	n, err := h.openNames(s, policy)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.named[s.slot] = n
	return nil
}

// stopNames ends the slot's forwarder, if it has one.
func (h *Host) stopNames(slot Slot) error {
	h.mu.Lock()
	n := h.named[slot]
	delete(h.named, slot)
	h.mu.Unlock()
	if n == nil {
		return nil
	}
	return n.close()
}

func (h *Host) namesOf(slot Slot) *names {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.named[slot]
}

// upstreams are whom the forwarders ask.
func (h *Host) upstreams() []netip.AddrPort {
	if len(h.cfg.Upstreams) > 0 {
		return h.cfg.Upstreams
	}
	var list []netip.AddrPort
	for _, r := range h.cfg.Resolvers {
		list = append(list, netip.AddrPortFrom(r, dnsPort))
	}
	return list
}
