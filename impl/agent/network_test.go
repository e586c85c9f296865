package agent

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"wrenn/impl/firecracker"
	"wrenn/impl/sandbox"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

func TestN09_NetworkRulesByRPC(t *testing.T) {
	s := serve(t)
	first := &hostagentv1.NetworkRules{AllowInternet: true, DenyOut: []string{"192.0.2.1"}}
	req := createRequest("one")
	req.Msg.Network = first
	made, err := s.CreateSandbox(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, first.GetDenyOut(), made.Msg.GetSandbox().GetNetwork().GetDenyOut())
	assert.True(t, made.Msg.GetSandbox().GetNetwork().GetAllowInternet())

	set := func(id string, rules *hostagentv1.NetworkRules) error {
		_, err := s.SetSandboxNetwork(t.Context(), connect.NewRequest(&hostagentv1.SetSandboxNetworkRequest{Id: id, Network: rules}))
		return err
	}
	require.NoError(t, set("one", &hostagentv1.NetworkRules{AllowOut: []string{"example.com"}}))
	list, err := s.ListSandboxes(t.Context(), connect.NewRequest(&hostagentv1.ListSandboxesRequest{}))
	require.NoError(t, err)
	assert.Equal(t, []string{"example.com"}, list.Msg.GetSandboxes()[0].GetNetwork().GetAllowOut())
	assert.Equal(t, []string{"example.com"}, s.host.Policy(1).Domains)

	err = set("one", &hostagentv1.NetworkRules{AllowOut: []string{"http://example.com"}})
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	require.ErrorContains(t, err, "network.allowOut[0]")
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(set("none", nil)))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(set("../x", nil)))
	require.NoError(t, set("one", nil), "no rules open nothing")
	assert.Equal(t, sandbox.NetworkPolicy{}, s.host.Policy(1))
}

func TestN07_LimitsByRPC(t *testing.T) {
	s := serve(t)
	_, err := s.CreateSandbox(t.Context(), connect.NewRequest(&hostagentv1.CreateSandboxRequest{
		Id: "one", Template: "base", Timeout: durationpb.New(time.Hour),
		Limits: &hostagentv1.NetworkLimits{EgressBytesPerSecond: 1 << 63, IngressBytesPerSecond: 1},
	}))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	require.ErrorContains(t, err, "wrenn.egressBytesPerSecond")
	assert.Equal(t, sandbox.Limits{
		Egress: sandbox.Limit{Rate: 1, Burst: 2}, Ingress: sandbox.Limit{Rate: 3, Burst: 4},
	}, limitsFromWire(&hostagentv1.NetworkLimits{EgressBytesPerSecond: 1, EgressBurstBytes: 2, IngressBytesPerSecond: 3, IngressBurstBytes: 4}))
}

func TestN07_TheHostsLimitsAreFlags(t *testing.T) {
	parse := func(args ...string) (Config, error) {
		c := Config{Dir: "/d", Token: "t", Logger: slog.New(slog.DiscardHandler)}
		f := pflag.NewFlagSet("agent", pflag.ContinueOnError)
		c.Flags(f)
		require.NoError(t, f.Parse(args))
		return c, c.check()
	}
	c, err := parse()
	require.NoError(t, err)
	assert.Equal(t, sandbox.Limits{Egress: sandbox.Limit{Rate: 200_000_000, Burst: 100_000_000}}, c.limits())
	tx, err := limiter(c.limits().Egress)
	require.NoError(t, err)
	assert.Equal(t, &firecracker.TokenBucket{Size: 100_000_000, RefillTime: 500}, tx.Bandwidth)
	rx, err := limiter(c.limits().Ingress)
	require.NoError(t, err)
	assert.Nil(t, rx, "what a guest receives is not limited unless asked for")

	c, err = parse("--egress-rate", "0", "--ingress-rate", "10000000", "--ingress-burst", "1000000", "--resolver", "192.0.2.1", "--resolver", "192.0.2.2")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Limits{Ingress: sandbox.Limit{Rate: 10_000_000, Burst: 1_000_000}}, c.limits())
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, c.Resolvers)
	upstreams, err := c.upstreams()
	require.NoError(t, err)
	assert.Equal(t, netip.MustParseAddrPort("192.0.2.2:53"), upstreams[1])

	_, err = parse("--ingress-rate", "10000000", "--ingress-burst", "900000")
	require.ErrorIs(t, err, firecracker.ErrRateLimit)
	require.ErrorContains(t, err, "ingress-burst")
	_, err = parse("--egress-rate", "-1")
	require.ErrorContains(t, err, "egress-rate")
	var wrong Config
	f := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	wrong.Flags(f)
	require.Error(t, f.Parse([]string{"--resolver", "resolver.example"}))
}
