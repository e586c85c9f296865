//go:build fault

package fault

import (
	"slices"
	"strings"

	"wrenn/e2e/harness"
	"wrenn/impl/agentclient"
	"wrenn/impl/network"
)

// leftovers are the objects of now beyond those of empty that no living sandbox owns, and those that are
// missing from empty.
func leftovers(empty, now harness.Census, living map[string]agentclient.Sandbox) []string {
	var left []string
	anonymous := map[string]int{}
	for _, line := range empty.Diff(now) {
		kind, object, _ := strings.Cut(strings.TrimPrefix(line, "+ "), ": ")
		switch {
		case strings.HasPrefix(line, "+") && slices.ContainsFunc(values(living), func(b agentclient.Sandbox) bool { return owns(b, kind, object) }):
		case strings.HasPrefix(line, "+") && kind == "processes" && !strings.Contains(object, "/sandboxes/"):
			// What runs in a guest does not say in which: each has the same.
			if anonymous[object]++; anonymous[object] > len(living) {
				left = append(left, line)
			}
		default:
			left = append(left, line)
		}
	}
	return left
}

// owns says whether an object is a sandbox's, by the names that derive from its slot and id.
func owns(box agentclient.Sandbox, kind, object string) bool {
	slot := network.Slot(box.Slot)
	switch kind {
	case "netns":
		return object == slot.Netns()
	case "mounts":
		return object == "/run/netns/"+slot.Netns()
	case "links", "addresses":
		return strings.HasPrefix(object, slot.Veth()+"@")
	case "routes":
		return slices.Contains(strings.Fields(object), slot.Veth())
	case "dm":
		return strings.TrimSuffix(object, ":origin") == "wrenn-"+box.ID
	case "vmms", "processes", "loops", "sockets", "files":
		return strings.Contains(object+"/", "/sandboxes/"+box.ID+"/")
	}
	return false
}

func values(m map[string]agentclient.Sandbox) []agentclient.Sandbox {
	all := make([]agentclient.Sandbox, 0, len(m))
	for _, v := range m {
		all = append(all, v)
	}
	return all
}
