package network

import (
	"fmt"
	"slices"
	"strings"
)

// chain is one of our chains in the host's own namespace, with the built-in one that jumps to it.
type chain struct {
	table string
	name  string
	// hook is empty for a chain that only our other chains use.
	hook string
	// rules are spelled as `iptables -S` prints them, so that what is installed can be compared.
	rules []string
}

// chains returns what Setup installs: a number of rules that depends on the resolvers (at most
// MaxResolvers) and never on the sandboxes. A chain comes before those that jump to it.
//
// Conntrack state DNAT is a destination that the host itself translated, for instance a published
// container port: by that way a public address would lead back into the host's private networks.
func (h *Host) chains() []chain {
	var dns []string
	for _, r := range h.cfg.Resolvers {
		for _, proto := range []string{"udp", "tcp"} {
			dns = append(dns, fmt.Sprintf("-d %s/32 -p %s -m %s --dport 53 -j ACCEPT", r, proto, proto))
		}
	}
	const from, to = "-i " + vethPrefix + "+", "-o " + vethPrefix + "+"
	return []chain{
		{table: "filter", name: "WRENN-DNS", rules: dns},
		{table: "filter", name: "WRENN-FORWARD", hook: "FORWARD", rules: []string{
			from + " " + to + " -j DROP",
			"! -s " + LinkRange.String() + " " + from + " -j DROP",
			"-d " + HostRange.String() + " " + from + " -j DROP",
			"-d " + LinkRange.String() + " " + from + " -j DROP",
			from + " -m conntrack --ctstate DNAT -j DROP",
			from + " -j WRENN-DNS",
			"-d 169.254.0.0/16 " + from + " -j DROP",
			from + " -j ACCEPT",
			to + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			to + " -j DROP",
		}},
		{table: "filter", name: "WRENN-INPUT", hook: "INPUT", rules: []string{
			from + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			from + " -j WRENN-DNS",
			from + " -j DROP",
		}},
		{table: "nat", name: "WRENN-POSTROUTING", hook: "POSTROUTING", rules: []string{
			"-s " + LinkRange.String() + " ! " + to + " -j MASQUERADE",
		}},
	}
}

// install makes the chain what it should be and the first that its hook jumps to. While it works the
// chain is never laxer than before: new rules go in above the old ones, in order, and the old ones
// are deleted after.
func (h *Host) install(c chain) error {
	exists, err := h.ipt.ChainExists(c.table, c.name)
	if err != nil {
		return fmt.Errorf("looking for chain %s: %w", c.name, err)
	}
	if !exists {
		if err := h.ipt.NewChain(c.table, c.name); err != nil {
			return fmt.Errorf("creating chain %s: %w", c.name, err)
		}
	}
	if err := h.fill(c); err != nil {
		return fmt.Errorf("filling chain %s: %w", c.name, err)
	}
	if c.hook == "" {
		return nil
	}
	if err := h.hookUp(c); err != nil {
		return fmt.Errorf("jumping from %s to %s: %w", c.hook, c.name, err)
	}
	return nil
}

func (h *Host) fill(c chain) error {
	present, err := h.rules(c.table, c.name)
	if err != nil || slices.Equal(present, c.rules) {
		return err
	}
	for i, rule := range c.rules {
		if err := h.ipt.Insert(c.table, c.name, i+1, strings.Fields(rule)...); err != nil {
			return err
		}
	}
	for range present {
		if err := h.ipt.DeleteById(c.table, c.name, len(c.rules)+1); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) hookUp(c chain) error {
	jump := "-j " + c.name
	present, err := h.rules(c.table, c.hook)
	if err != nil {
		return err
	}
	if len(present) == 0 || present[0] != jump {
		if err := h.ipt.Insert(c.table, c.hook, 1, "-j", c.name); err != nil {
			return err
		}
		present = slices.Insert(present, 0, jump)
	}
	for i := len(present) - 1; i > 0; i-- {
		if present[i] != jump {
			continue
		}
		if err := h.ipt.DeleteById(c.table, c.hook, i+1); err != nil {
			return err
		}
	}
	return nil
}

// uninstall deletes the chain and every jump from its hook, or does nothing when it is not there.
func (h *Host) uninstall(c chain) error {
	exists, err := h.ipt.ChainExists(c.table, c.name)
	if err != nil {
		return fmt.Errorf("looking for chain %s: %w", c.name, err)
	}
	if !exists {
		return nil
	}
	if c.hook != "" {
		present, err := h.rules(c.table, c.hook)
		if err != nil {
			return fmt.Errorf("listing chain %s: %w", c.hook, err)
		}
		for range slices.DeleteFunc(present, func(r string) bool { return r != "-j "+c.name }) {
			if err := h.ipt.Delete(c.table, c.hook, "-j", c.name); err != nil {
				return fmt.Errorf("deleting the jump from %s to %s: %w", c.hook, c.name, err)
			}
		}
	}
	if err := h.ipt.ClearAndDeleteChain(c.table, c.name); err != nil {
		return fmt.Errorf("deleting chain %s: %w", c.name, err)
	}
	return nil
}

// rules lists a chain without the "-A NAME " in front of each rule.
func (h *Host) rules(table, name string) ([]string, error) {
	lines, err := h.ipt.List(table, name)
	if err != nil {
		return nil, err
	}
	var rules []string
	for _, line := range lines {
		if rule, ok := strings.CutPrefix(line, "-A "+name+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}
