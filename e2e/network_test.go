package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// reaches tries the hello port of each host from a sandbox and returns those that answered, in order.
func reaches(t *testing.T, s *harness.System, box apiclient.Sandbox, hosts ...string) []string {
	t.Helper()
	probe := `import socket, sys
for host in sys.argv[2:]:
    try:
        s = socket.create_connection((host, int(sys.argv[1])), 2)
        if s.recv(16) == b"hello\n": print(host)
        s.close()
    except OSError as e:
        print(host, e, file=sys.stderr)`
	out := s.Exec(box, "python3", append([]string{"-c", probe, strconv.Itoa(helloPort)}, hosts...)...)
	return strings.Fields(out)
}

func everything() []string {
	return []string{goodServer, otherServer, "good.test", "other.test", "evil.test"}
}

// TestN09_NetworkRulesHoldAtRunTimeAndAcrossAKill gives two sandboxes different rules, changes those of
// one, and kills the agent.
func TestN09_NetworkRulesHoldAtRunTimeAndAcrossAKill(t *testing.T) {
	newInternet(t)
	dir := harness.Dir(t)
	s := harness.Start(t, dir, "--resolver", resolver)
	all := []string{"0.0.0.0/0"}
	named := s.CreateWith(apiclient.CreateRequest{
		TemplateID: "base", Timeout: 3600, Network: &apiclient.Network{AllowOut: []string{"good.test", "evil.test"}, DenyOut: all},
	})
	denied := s.CreateWith(apiclient.CreateRequest{
		TemplateID: "base", Timeout: 3600, Network: &apiclient.Network{DenyOut: []string{goodServer}},
	})
	closed := s.CreateWith(apiclient.CreateRequest{TemplateID: "base", Timeout: 3600, AllowInternetAccess: new(bool)})

	assert.Empty(t, reaches(t, s, named, goodServer, otherServer), "before any name was asked for")
	assert.Equal(t, []string{"good.test", goodServer}, reaches(t, s, named, "good.test", goodServer, "other.test", otherServer, "evil.test"))
	assert.Equal(t, []string{otherServer, "other.test"}, reaches(t, s, denied, everything()...))
	assert.Empty(t, reaches(t, s, closed, everything()...))

	update := apiclient.NetworkUpdate{Network: apiclient.Network{AllowOut: []string{"other.test"}, DenyOut: all}}
	require.NoError(t, s.Client.SetNetwork(t.Context(), named.SandboxID, update))
	assert.Equal(t, []string{"other.test", otherServer}, reaches(t, s, named, "good.test", goodServer, "other.test", otherServer))

	s.Kill()
	s = harness.Start(t, dir, "--resolver", resolver)
	described, err := s.Client.Get(t.Context(), named.SandboxID)
	require.NoError(t, err)
	assert.Equal(t, &update.Network, described.Network)
	assert.Equal(t, []string{"other.test", otherServer}, reaches(t, s, named, "good.test", goodServer, "other.test", otherServer), "after the kill")
	assert.Equal(t, []string{otherServer, "other.test"}, reaches(t, s, denied, everything()...))
	assert.Empty(t, reaches(t, s, closed, everything()...))

	require.NoError(t, s.Client.SetNetwork(t.Context(), named.SandboxID, apiclient.NetworkUpdate{}))
	assert.Equal(t, []string{goodServer, otherServer, "good.test", "other.test"}, reaches(t, s, named, everything()...), "all rules cleared")
	err = s.Client.SetNetwork(t.Context(), named.SandboxID, apiclient.NetworkUpdate{Network: apiclient.Network{AllowOut: []string{"good.test"}}})
	var refused *apiclient.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusBadRequest, refused.Code)
	require.NoError(t, s.Client.Kill(t.Context(), named.SandboxID))
	assert.True(t, apiclient.IsNotFound(s.Client.SetNetwork(t.Context(), named.SandboxID, apiclient.NetworkUpdate{})))
}

// transfer moves bytes between a sandbox and the internet and returns how long it took.
func transfer(t *testing.T, s *harness.System, box apiclient.Sandbox, port, size int) time.Duration {
	t.Helper()
	script := `import socket, sys, time
port, size = int(sys.argv[2]), int(sys.argv[3])
s = socket.create_connection((sys.argv[1], port), 10)
s.settimeout(60)
begin = time.monotonic()
if port == int(sys.argv[4]):
    s.sendall(bytes(size)); s.shutdown(socket.SHUT_WR)
    assert int(s.makefile().readline()) == size
else:
    left = size
    while left > 0: left -= len(s.recv(65536))
print(time.monotonic() - begin)`
	out := s.Exec(box, "python3", "-c", script, goodServer, strconv.Itoa(port), strconv.Itoa(size), strconv.Itoa(sinkPort))
	seconds, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	require.NoError(t, err)
	return time.Duration(seconds * float64(time.Second))
}

// TestN07_LimitsOfASandboxBoundRealTransfers compares sandboxes with each other, never with a speed that
// this machine would have to reach.
func TestN07_LimitsOfASandboxBoundRealTransfers(t *testing.T) {
	newInternet(t)
	s := harness.Start(t, harness.Dir(t), "--egress-rate", "50000000", "--egress-burst", "25000000")
	const rate, size = 1 << 18, 1 << 20
	create := func(limits *apiclient.Limits) apiclient.Sandbox {
		return s.CreateWith(apiclient.CreateRequest{TemplateID: "base", Timeout: 3600, Wrenn: limits})
	}
	free := create(nil)
	sends := create(&apiclient.Limits{EgressRate: rate, EgressBurst: rate})
	receives := create(&apiclient.Limits{IngressRate: rate})
	// What the burst does not cover passes at the rate; 30 % is for what a link holds in flight.
	least := func(burst int) time.Duration {
		return time.Duration(0.7 * float64(size-burst) / rate * float64(time.Second))
	}

	freely, limited := transfer(t, s, free, sinkPort, size), transfer(t, s, sends, sinkPort, size)
	t.Logf("sent %d bytes: %v, with a limit %v", size, freely, limited)
	assert.Less(t, freely, limited)
	assert.Greater(t, limited, least(rate))
	freely, limited = transfer(t, s, free, sourcePort, size), transfer(t, s, receives, sourcePort, size)
	t.Logf("received %d bytes: %v, with a limit %v", size, freely, limited)
	assert.Less(t, freely, limited)
	assert.Greater(t, limited, least(rate/2))
	assert.Less(t, transfer(t, s, sends, sourcePort, size), limited, "the other direction is free")

	_, err := s.Client.Create(t.Context(), apiclient.CreateRequest{TemplateID: "base", Wrenn: &apiclient.Limits{EgressRate: 50_000_001}})
	var refused *apiclient.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusBadRequest, refused.Code)
	assert.Contains(t, refused.Message, "wrenn.egressBytesPerSecond")
	assert.Contains(t, refused.Message, fmt.Sprint(50_000_000))
}
