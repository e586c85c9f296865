package controlplane

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

func (p *plane) detail(id string) (d sandboxDetail) {
	p.t.Helper()
	p.do("GET", "/sandboxes/"+id, nil).into(p.t, http.StatusOK, &d)
	return d
}

func assertNetwork(t *testing.T, p *plane, id string, internet bool, allow, deny []string) {
	t.Helper()
	d := p.detail(id)
	assert.Equal(t, internet, d.AllowInternet)
	assert.Equal(t, networkReply{AllowOut: allow, DenyOut: deny, AllowPublicTraffic: true}, d.Network)
}

func TestN09_NetworkRulesGoToTheAgentAndComeBack(t *testing.T) {
	p, a := startWithAgent(t)
	rulesOf := func(id string) (rules *hostagentv1.NetworkRules) {
		a.with(func() { rules = a.sandboxes[id].GetNetwork() })
		return rules
	}
	plain := p.create(nil).SandboxID
	assertNetwork(t, p, plain, true, []string{}, []string{})
	assert.True(t, rulesOf(plain).GetAllowInternet())

	id := p.create(map[string]any{
		"network": map[string]any{"allowOut": []string{"Example.com", "*.example.org", "10.1.0.0/16"}, "denyOut": []string{"0.0.0.0/0", "::/0"}, "rules": map[string]any{}},
		"wrenn":   map[string]any{"egressBytesPerSecond": 1000000, "ingressBytesPerSecond": 2000000, "ingressBurstBytes": 3000000},
	}).SandboxID
	assertNetwork(t, p, id, true, []string{"Example.com", "*.example.org", "10.1.0.0/16"}, []string{"0.0.0.0/0", "::/0"})
	assert.Equal(t, []string{"Example.com", "*.example.org", "10.1.0.0/16"}, rulesOf(id).GetAllowOut())
	a.with(func() {
		l := a.requests[id].GetLimits()
		assert.Equal(t, []uint64{1000000, 0, 2000000, 3000000}, []uint64{l.GetEgressBytesPerSecond(), l.GetEgressBurstBytes(), l.GetIngressBytesPerSecond(), l.GetIngressBurstBytes()})
	})

	for _, step := range []struct {
		body        string
		internet    bool
		allow, deny []string
	}{
		{`{"allow_internet_access":false,"allowOut":["example.com"]}`, false, []string{"example.com"}, []string{}},
		{`{"denyOut":["8.8.8.8"]}`, true, []string{}, []string{"8.8.8.8"}},
		{`{"allowInternetAccess":false,"allow_internet_access":false}`, false, []string{}, []string{}},
		{`{"allow_internet_access":null,"allowOut":null,"denyOut":null,"rules":null}`, true, []string{}, []string{}},
		{`{"allowInternetAccess":false}`, false, []string{}, []string{}},
		{`{}`, true, []string{}, []string{}},
		{`{"denyOut":["1.1.1.1"],"allowOut":[]}`, true, []string{}, []string{"1.1.1.1"}},
	} {
		r := p.do("PUT", "/sandboxes/"+id+"/network", step.body)
		require.Equal(t, http.StatusNoContent, r.code, "%s: %s", step.body, r.body)
		assertNetwork(t, p, id, step.internet, step.allow, step.deny)
		assert.Equal(t, step.internet, rulesOf(id).GetAllowInternet(), step.body)
		assert.ElementsMatch(t, step.allow, rulesOf(id).GetAllowOut())
		assert.ElementsMatch(t, step.deny, rulesOf(id).GetDenyOut())
	}
	require.Equal(t, http.StatusNoContent, p.do("PUT", "/sandboxes/"+id+"/network", nil).code, "no body is nothing kept")
	assertNetwork(t, p, id, true, []string{}, []string{})
}

func TestV03_NetworkRulesThatCannotBeTakenAreNamed(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(map[string]any{"network": map[string]any{"denyOut": []string{"192.0.2.1"}}}).SandboxID
	many := `["` + strings.Repeat(`1.1.1.1","`, 256) + `1.1.1.1"]`
	for _, tc := range []struct{ fields, want string }{
		{`"allowOut":["example.com"]`, "allowOut"},
		{`"allowOut":["1.1.1.1","2001:db8::1"],"denyOut":["0.0.0.0/0"]`, "allowOut[1]"},
		{`"denyOut":["example.com"]`, "denyOut[0]"},
		{`"denyOut":["1.1.1.1/33"]`, "denyOut[0]"},
		{`"allowOut":"1.1.1.1"`, "allowOut"},
		{`"allowOut":[1]`, "allowOut.0"},
		{`"denyOut":` + many, "denyOut"},
		{`"allowOut":["` + strings.Repeat("a", 255) + `"]`, "allowOut.0"},
		{`"allow_out":[]`, "allow_out"},
	} {
		message := p.do("PUT", "/sandboxes/"+id+"/network", "{"+tc.fields+"}").refused(t, http.StatusBadRequest)
		assert.Contains(t, message, tc.want, tc.fields)
		message = p.do("POST", "/v2/sandboxes", `{"templateID":"base","network":{`+tc.fields+`}}`).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, "network", tc.fields)
		assert.Contains(t, message, tc.want, tc.fields)
	}
	for _, body := range []string{`{"allow_internet_access":1}`, `{"allow_internet_access":true,"allowInternetAccess":false}`, `{"allowPublicTraffic":true}`} {
		assert.Contains(t, p.do("PUT", "/sandboxes/"+id+"/network", body).refused(t, http.StatusBadRequest), "allow")
	}
	for _, body := range []string{`{"rules":{"a.test":[]}}`, `{"egressProxy":{"address":"a.test:1"}}`} {
		p.do("PUT", "/sandboxes/"+id+"/network", body).refused(t, http.StatusNotImplemented)
	}
	for _, limits := range []string{`{"egressBytesPerSecond":65535}`, `{"egressBytesPerSecond":1.5}`, `{"ingressBurstBytes":0}`, `{"ingressBytesPerSecond":100000000001}`, `{"speed":1}`} {
		message := p.do("POST", "/v2/sandboxes", `{"templateID":"base","wrenn":`+limits+`}`).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, "wrenn", limits)
	}
	assertNetwork(t, p, id, true, []string{}, []string{"192.0.2.1"})
	assert.Len(t, a.ids(), 1)
}

func TestN09_NetworkRulesOfSandboxesThatCannotHaveThem(t *testing.T) {
	p, a := startWithAgent(t)
	put := func(id string) reply { return p.do("PUT", "/sandboxes/"+id+"/network", `{"denyOut":["1.1.1.1"]}`) }
	assert.Contains(t, put("iunknown").refused(t, http.StatusNotFound), "iunknown")
	put("..%2fx").refused(t, http.StatusBadRequest)

	id := p.create(nil).SandboxID
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "network" {
				return connect.NewError(connect.CodeFailedPrecondition, errors.New("the sandbox is pausing"))
			}
			return nil
		}
	})
	assert.Contains(t, put(id).refused(t, http.StatusConflict), "pausing")
	assertNetwork(t, p, id, true, []string{}, []string{})
	a.with(func() { a.before = nil; delete(a.sandboxes, id) })
	put(id).refused(t, http.StatusNotFound)
	assert.Empty(t, p.rows(), "what its agent does not have is gone")
}

// The agent's answer is lost, or this process dies before the row is written: the agent's word counts.
func TestN09_ReconcilingCopiesTheRulesThatTheAgentHolds(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 20 * time.Millisecond })
	id := p.create(nil).SandboxID
	a.with(func() {
		a.after = func(call, _ string) error {
			if call == "network" {
				return connect.NewError(connect.CodeDeadlineExceeded, errors.New("lost"))
			}
			return nil
		}
	})
	p.do("PUT", "/sandboxes/"+id+"/network", `{"allow_internet_access":false,"allowOut":["example.com"]}`).refused(t, http.StatusServiceUnavailable)
	eventually(t, "the detail shows what holds", func() bool {
		d := p.detail(id)
		return !d.AllowInternet && fmt.Sprint(d.Network.AllowOut) == "[example.com]"
	})
}
