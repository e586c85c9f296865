package cli

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestN09_CreateAsksForRules(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{"POST /v2/sandboxes": `{"sandboxID":"abc"}`})
	_, _, err := run(t, "--api-url", a.URL, "--api-key", "k", "create", "--no-internet", "--allow", "*.example.com", "--allow", "192.0.2.1", "--deny", "0.0.0.0/0",
		"--egress-rate", "1000000")
	require.NoError(t, err)
	assert.Equal(t, []string{`POST /v2/sandboxes k {"templateID":"base","timeout":300,"allow_internet_access":false,` +
		`"network":{"allowOut":["*.example.com","192.0.2.1"],"denyOut":["0.0.0.0/0"]},"wrenn":{"egressBytesPerSecond":1000000}}`}, a.asked)
}

func TestN09_NetworkShowsAndReplaces(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{
		"GET /sandboxes/abc":         `{"sandboxID":"abc","allowInternetAccess":false,"network":{"allowOut":["example.com"],"denyOut":["0.0.0.0/0"]}}`,
		"GET /sandboxes/open":        `{"sandboxID":"open","allowInternetAccess":true,"network":{"allowOut":[],"denyOut":[]}}`,
		"PUT /sandboxes/abc/network": ``,
	})
	network := func(args ...string) (string, error) {
		out, _, err := run(t, append([]string{"--api-url", a.URL, "--api-key", "k", "network"}, args...)...)
		return out, err
	}
	out, err := network("abc")
	require.NoError(t, err)
	assert.Equal(t, "--no-internet\n--deny 0.0.0.0/0\n--allow example.com\n", out)
	out, err = network("open")
	require.NoError(t, err)
	assert.Equal(t, "--open\n", out)
	out, err = network("abc", "--json")
	require.NoError(t, err)
	assert.JSONEq(t, `{"allowInternetAccess":false,"network":{"allowOut":["example.com"],"denyOut":["0.0.0.0/0"]}}`, out)

	a.asked = nil
	for _, args := range [][]string{{"abc", "--no-internet", "--allow", "example.com"}, {"abc", "--deny", "192.0.2.1"}, {"abc", "--open"}} {
		_, err = network(args...)
		require.NoError(t, err)
	}
	assert.Equal(t, []string{
		`PUT /sandboxes/abc/network k {"allowOut":["example.com"],"allow_internet_access":false}`,
		`PUT /sandboxes/abc/network k {"denyOut":["192.0.2.1"]}`,
		`PUT /sandboxes/abc/network k {}`,
	}, a.asked)
	_, err = network("abc", "--open", "--no-internet")
	require.ErrorContains(t, err, "--open")
	_, err = network("none")
	require.ErrorContains(t, err, "not found")
	_, err = network()
	require.Error(t, err)
}
