package network

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"wrenn/impl/netns"
)

// Object is something in the kernel that has a name of ours.
type Object struct {
	// Kind is "netns", "veth", "route", "tap", "nft table", "mount" or, with Slot 0, "chain".
	Kind string
	// Name is what the kernel calls it.
	Name string
	// Slot is whose it is by its name; 0 for what all share.
	Slot Slot
	// Detail is what is worth knowing of it, or wrong with it.
	Detail string
}

// Inventory lists all that Wrenn has in the kernel for networks, by slot, whoever made it and whether or not
// it is in use: it knows names alone, the same that CleanupStaleNamespaces goes by. It changes nothing.
func Inventory(ctx context.Context) ([]Object, error) {
	var all []Object
	for _, list := range []func() ([]Object, error){namespaces, veths, routes, mounts, chainObjects} {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("taking stock of networks: %w", err)
		}
		found, err := list()
		if err != nil {
			return nil, fmt.Errorf("taking stock of networks: %w", err)
		}
		all = append(all, found...)
	}
	slices.SortStableFunc(all, func(a, b Object) int { return cmp.Compare(a.Slot, b.Slot) })
	return all, nil
}

func namespaces() ([]Object, error) {
	names, err := netns.List()
	if err != nil {
		return nil, err
	}
	var all []Object
	for _, name := range names {
		slot, ok := ParseNetns(name)
		if !ok {
			continue
		}
		ns, err := netns.Open(name)
		if err != nil {
			all = append(all, Object{Kind: "netns", Name: name, Slot: slot, Detail: "a file without a namespace: its making was cut short"})
			continue
		}
		var inside []Object
		err = errors.Join(ns.Do(func() (err error) { inside, err = insideOf(slot); return err }), ns.Close())
		o := Object{Kind: "netns", Name: name, Slot: slot}
		if err != nil {
			o.Detail = err.Error()
		}
		all = append(append(all, o), inside...)
	}
	return all, nil
}

// insideOf lists what is ours in the namespace of the calling thread.
func insideOf(slot Slot) ([]Object, error) {
	var all []Object
	tap, err := netlink.LinkByName(TapName)
	if err != nil && !isGone(err) {
		return nil, fmt.Errorf("looking for %s: %w", TapName, err)
	}
	if err == nil {
		all = append(all, Object{Kind: "tap", Name: TapName, Slot: slot, Detail: tap.Attrs().OperState.String()})
	}
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("listing nft tables: %w", err)
	}
	for _, t := range tables {
		if strings.HasPrefix(t.Name, "wrenn-") {
			all = append(all, Object{Kind: "nft table", Name: t.Name, Slot: slot})
		}
	}
	return all, nil
}

func veths() ([]Object, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var all []Object
	for _, l := range links {
		if slot, ok := ParseVeth(l.Attrs().Name); ok && l.Type() == "veth" {
			all = append(all, Object{Kind: "veth", Name: l.Attrs().Name, Slot: slot, Detail: l.Attrs().OperState.String()})
		}
	}
	return all, nil
}

func routes() ([]Object, error) {
	found, err := ourRoutes()
	if err != nil {
		return nil, err
	}
	var all []Object
	for _, r := range found {
		if slot, ok := slotOf(r); ok {
			all = append(all, Object{Kind: "route", Name: slot.HostIP().String(), Slot: slot, Detail: fmt.Sprintf("via %s", r.Gw)})
		}
	}
	return all, nil
}

// mounts lists the namespaces' names on which something is mounted more than once, as we never do.
func mounts() ([]Object, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	defer f.Close()
	count := map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// Field 5 of proc_pid_mountinfo(5) is where it is mounted.
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && filepath.Dir(fields[4]) == netns.Dir {
			count[filepath.Base(fields[4])]++
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	var all []Object
	for name, n := range count {
		if slot, ok := ParseNetns(name); ok && n > 1 {
			all = append(all, Object{Kind: "mount", Name: filepath.Join(netns.Dir, name), Slot: slot, Detail: fmt.Sprintf("mounted %d times", n)})
		}
	}
	return all, nil
}

func chainObjects() ([]Object, error) {
	ipt, err := iptables.New(iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("looking for iptables: %w", err)
	}
	h := &Host{ipt: ipt}
	var all []Object
	for _, c := range h.chains() {
		exists, err := ipt.ChainExists(c.table, c.name)
		if err != nil {
			return nil, fmt.Errorf("looking for chain %s: %w", c.name, err)
		}
		if !exists {
			continue
		}
		present, err := h.rules(c.table, c.name)
		if err != nil {
			return nil, fmt.Errorf("listing chain %s: %w", c.name, err)
		}
		all = append(all, Object{Kind: "chain", Name: c.table + " " + c.name, Detail: fmt.Sprintf("rules: %d", len(present))})
	}
	return all, nil
}
