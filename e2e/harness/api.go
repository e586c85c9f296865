package harness

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/apiclient"
	"wrenn/impl/envdclient"
	"wrenn/impl/transport"
)

// envdPort is where the daemon in a guest answers.
const envdPort = 49983

// API is a control plane's two addresses and a key, and what a user does with them. Where it is on a Host,
// the calls are made from there.
type API struct {
	APIURL     string `json:"apiUrl"`
	SandboxURL string `json:"sandboxUrl"`
	APIKey     string `json:"apiKey"`
	// Client calls the REST API.
	Client *apiclient.Client `json:"-"`

	tb   testing.TB
	host *Host
}

// connect makes Client.
func (a *API) connect() {
	rpc := a.transport(transport.NewRPCTransport())
	a.Client = apiclient.New(a.APIURL, a.APIKey, rpc)
}

// transport makes t connect from the host, and forget its connections when the test ends.
func (a *API) transport(t *http.Transport) *http.Transport {
	if a.host != nil {
		t.DialContext = a.host.DialContext
	}
	a.tb.Cleanup(t.CloseIdleConnections)
	return t
}

// healthy asks once whether the control plane answers.
func (a *API) healthy() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	rt := transport.NewRPCTransport()
	if a.host != nil {
		rt.DialContext = a.host.DialContext
	}
	defer rt.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(a.APIURL, "/")+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := rt.RoundTrip(req)
	return err == nil && resp.Body.Close() == nil
}

// Create makes a sandbox from the template base with an hour to live.
func (a *API) Create() apiclient.Sandbox {
	a.tb.Helper()
	return a.CreateWith(apiclient.CreateRequest{TemplateID: "base", Timeout: 3600})
}

// CreateWith makes a sandbox.
func (a *API) CreateWith(req apiclient.CreateRequest) apiclient.Sandbox {
	a.tb.Helper()
	sandbox, err := a.TryCreate(req)
	require.NoError(a.tb, err)
	return sandbox
}

// TryCreate makes a sandbox, or says why not. It may be called from any goroutine.
func (a *API) TryCreate(req apiclient.CreateRequest) (apiclient.Sandbox, error) {
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		sandbox, err := a.Client.Create(ctx, req)
		cancel()
		if err == nil || try == emulatedTries || !lost(err) {
			return sandbox, err
		}
		a.tb.Logf("try %d: the emulated processor has lost a guest: %v", try, err)
	}
}

// Guest returns a client of a sandbox's daemon, through the sandbox proxy.
func (a *API) Guest(sandbox apiclient.Sandbox) *envdclient.Client {
	a.tb.Helper()
	header := http.Header{}
	header.Set("E2b-Sandbox-Id", sandbox.SandboxID)
	header.Set("E2b-Sandbox-Port", strconv.Itoa(envdPort))
	c, err := envdclient.New(envdclient.Config{
		BaseURL: a.SandboxURL, HTTPClient: &http.Client{Transport: a.transport(transport.NewStreamTransport())},
		Headers: header, AccessToken: sandbox.EnvdAccessToken,
	})
	require.NoError(a.tb, err)
	return c
}

// Exec runs a program in a sandbox and returns what it printed; it must succeed.
func (a *API) Exec(sandbox apiclient.Sandbox, cmd string, args ...string) string {
	a.tb.Helper()
	out, err := a.TryExec(sandbox, cmd, args...)
	require.NoError(a.tb, err)
	return out
}

// TryExec runs a program in a sandbox and returns what it printed.
func (a *API) TryExec(sandbox apiclient.Sandbox, cmd string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var out, stderr bytes.Buffer
	exit, err := a.Guest(sandbox).Exec(ctx, envdclient.ExecRequest{Cmd: cmd, Args: args, Stdout: &out, Stderr: &stderr})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%s: %s: %s", cmd, exit.Status, stderr.Bytes())
	}
	return out.String(), err
}
