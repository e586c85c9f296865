package controlplane

import (
	"context"
	"errors"
	"net/http"
	"regexp"

	"wrenn/impl/agentclient"
	"wrenn/impl/egress"
	"wrenn/impl/store"
)

// networkBody is what a create and a change say of a sandbox's network. A field that is left out is as
// if it were empty.
type networkBody struct {
	AllowOut           []string       `json:"allowOut"`
	DenyOut            []string       `json:"denyOut"`
	AllowPublicTraffic *bool          `json:"allowPublicTraffic"`
	MaskRequestHost    *string        `json:"maskRequestHost"`
	Rules              map[string]any `json:"rules"`
	EgressProxy        map[string]any `json:"egressProxy"`
	HTTPSPorts         []any          `json:"httpsPorts"`
}

// networkUpdate is the body of a change. Access to the internet has two spellings: that of a create, and
// that in which a sandbox is described.
type networkUpdate struct {
	networkBody
	AllowInternet    *bool `json:"allow_internet_access"`
	AllowInternetToo *bool `json:"allowInternetAccess"`
}

// limitsBody is Wrenn's own part of a create.
type limitsBody struct {
	EgressRate   uint64 `json:"egressBytesPerSecond"`
	EgressBurst  uint64 `json:"egressBurstBytes"`
	IngressRate  uint64 `json:"ingressBytesPerSecond"`
	IngressBurst uint64 `json:"ingressBurstBytes"`
}

// missing names the first field that asks for what is not built, or is empty.
func (b networkBody) missing() string {
	for _, m := range []struct {
		asked bool
		what  string
	}{
		{len(b.Rules) > 0, "rules: transformed requests"},
		{len(b.EgressProxy) > 0, "egressProxy: a proxy for outgoing traffic"},
		{len(b.HTTPSPorts) > 0, "httpsPorts: ports that speak TLS"},
	} {
		if m.asked {
			return m.what
		}
	}
	return ""
}

// check returns the rules, or a refusal whose field stands below prefix.
func (b networkBody) check(prefix string, allowInternet bool) (egress.Rules, error) {
	if what := b.missing(); what != "" {
		return egress.Rules{}, refuse(http.StatusNotImplemented, "%s%s: not available in this version of Wrenn", prefix, what)
	}
	if mask := b.mask(); mask != "" && !maskPattern.MatchString(mask) {
		return egress.Rules{}, refuse(http.StatusBadRequest, "%smaskRequestHost: it must be a host name, with a port if wanted, of which ${PORT} may be a part", prefix)
	}
	rules := egress.Rules{AllowInternet: allowInternet, AllowOut: b.AllowOut, DenyOut: b.DenyOut}
	if _, err := rules.Policy(); err != nil {
		return egress.Rules{}, refuse(http.StatusBadRequest, "%s%v", prefix, err)
	}
	return rules, nil
}

// maskPattern is what a Host header may be: a name or an address of IPv4, and a port. ${PORT} stands for the
// port that is asked for.
var maskPattern = regexp.MustCompile(`^(?:[a-zA-Z0-9._-]|\$\{PORT\})+(?::(?:[0-9]{1,5}|\$\{PORT\}))?$`)

// mask is what the sandbox sees as Host, or empty.
func (b networkBody) mask() string {
	if b.MaskRequestHost == nil {
		return ""
	}
	return *b.MaskRequestHost
}

// private says whether the sandbox's ports ask for a token.
func (b networkBody) private() bool { return b.AllowPublicTraffic != nil && !*b.AllowPublicTraffic }

func (l limitsBody) limits() agentclient.NetworkLimits { return agentclient.NetworkLimits(l) }

func toAgent(r egress.Rules) agentclient.NetworkRules { return agentclient.NetworkRules(r) }

// setNetwork replaces what a sandbox may reach, at the agent first, since it is the one that enforces.
// Should this process die before the row is written, reconciling copies what the agent holds.
func (s *server) setNetwork(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("sandboxID")
	var body networkUpdate
	if err := decode(r, &body); err != nil {
		return err
	}
	internet := body.AllowInternet
	if internet == nil {
		internet = body.AllowInternetToo
	} else if body.AllowInternetToo != nil && *internet != *body.AllowInternetToo {
		return refuse(http.StatusBadRequest, "allowInternetAccess: it says otherwise than allow_internet_access")
	}
	rules, err := body.check("", internet == nil || *internet)
	if err != nil {
		return err
	}
	row, agent, err := s.live(r.Context(), id)
	if err != nil {
		return err
	}
	ctx := context.WithoutCancel(r.Context())
	if err := agent.SetNetwork(ctx, row.ID, toAgent(rules)); err != nil {
		return s.forget(ctx, row.ID, err)
	}
	_, err = s.store.Modify(ctx, row.ID, func(sb *store.Sandbox) error {
		setRules(sb, rules)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return notFound(id)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func setRules(sb *store.Sandbox, r egress.Rules) {
	sb.AllowInternet, sb.AllowOut, sb.DenyOut = r.AllowInternet, r.AllowOut, r.DenyOut
}

func rulesOf(sb store.Sandbox) egress.Rules {
	return egress.Rules{AllowInternet: sb.AllowInternet, AllowOut: sb.AllowOut, DenyOut: sb.DenyOut}
}

// networkReply is a sandbox's network as it is described; the lists are never null.
type networkReply struct {
	AllowOut           []string `json:"allowOut"`
	DenyOut            []string `json:"denyOut"`
	AllowPublicTraffic bool     `json:"allowPublicTraffic"`
	MaskRequestHost    string   `json:"maskRequestHost,omitempty"`
}

func describeNetwork(sb store.Sandbox) networkReply {
	list := func(entries []string) []string { return append([]string{}, entries...) }
	return networkReply{
		AllowOut: list(sb.AllowOut), DenyOut: list(sb.DenyOut), AllowPublicTraffic: !sb.PrivateTraffic, MaskRequestHost: sb.MaskRequestHost,
	}
}
