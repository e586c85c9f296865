package agentclient

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn/impl/transport"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "secret"

// agent answers each call with what it is set to.
type agent struct {
	hostagentv1connect.UnimplementedHostAgentServiceHandler
	err     error
	sandbox *hostagentv1.Sandbox
	create  *hostagentv1.CreateSandboxRequest
	end     *hostagentv1.SetSandboxDeadlineRequest
	logs    *hostagentv1.GetSandboxLogsRequest
}

func (a *agent) Ping(context.Context, *connect.Request[hostagentv1.PingRequest]) (*connect.Response[hostagentv1.PingResponse], error) {
	return connect.NewResponse(&hostagentv1.PingResponse{Version: "1", Vmm: "qemu-tcg", VmmReason: "no KVM", Sandboxes: 3, Templates: []string{"base"}, Cpus: 2, MemoryMib: 1024}), a.err
}

func (a *agent) CreateSandbox(_ context.Context, r *connect.Request[hostagentv1.CreateSandboxRequest]) (*connect.Response[hostagentv1.CreateSandboxResponse], error) {
	a.create = r.Msg
	return connect.NewResponse(&hostagentv1.CreateSandboxResponse{Sandbox: a.sandbox}), a.err
}

func (a *agent) GetSandbox(context.Context, *connect.Request[hostagentv1.GetSandboxRequest]) (*connect.Response[hostagentv1.GetSandboxResponse], error) {
	return connect.NewResponse(&hostagentv1.GetSandboxResponse{Sandbox: a.sandbox}), a.err
}

func (a *agent) ListSandboxes(context.Context, *connect.Request[hostagentv1.ListSandboxesRequest]) (*connect.Response[hostagentv1.ListSandboxesResponse], error) {
	return connect.NewResponse(&hostagentv1.ListSandboxesResponse{Sandboxes: []*hostagentv1.Sandbox{a.sandbox, {}}}), a.err
}

func (a *agent) DestroySandbox(context.Context, *connect.Request[hostagentv1.DestroySandboxRequest]) (*connect.Response[hostagentv1.DestroySandboxResponse], error) {
	return connect.NewResponse(&hostagentv1.DestroySandboxResponse{}), a.err
}

func (a *agent) SetSandboxDeadline(_ context.Context, r *connect.Request[hostagentv1.SetSandboxDeadlineRequest]) (*connect.Response[hostagentv1.SetSandboxDeadlineResponse], error) {
	a.end = r.Msg
	return connect.NewResponse(&hostagentv1.SetSandboxDeadlineResponse{Deadline: a.sandbox.GetDeadline()}), a.err
}

func (a *agent) GetSandboxLogs(_ context.Context, r *connect.Request[hostagentv1.GetSandboxLogsRequest]) (*connect.Response[hostagentv1.GetSandboxLogsResponse], error) {
	a.logs = r.Msg
	return connect.NewResponse(&hostagentv1.GetSandboxLogsResponse{Console: []byte("boot\n")}), a.err
}

func (a *agent) ListNetworks(context.Context, *connect.Request[hostagentv1.ListNetworksRequest]) (*connect.Response[hostagentv1.ListNetworksResponse], error) {
	return connect.NewResponse(&hostagentv1.ListNetworksResponse{Networks: []*hostagentv1.Network{
		{Slot: 7, SandboxId: "abc", State: hostagentv1.SandboxState_SANDBOX_STATE_RUNNING}, {Slot: 32767},
	}}), a.err
}

func (a *agent) ReclaimNetworks(context.Context, *connect.Request[hostagentv1.ReclaimNetworksRequest]) (*connect.Response[hostagentv1.ReclaimNetworksResponse], error) {
	return connect.NewResponse(&hostagentv1.ReclaimNetworksResponse{Slots: []uint32{3, 5}}), a.err
}

func TestN06_NetworksAreListedAndReclaimed(t *testing.T) {
	a := &agent{}
	c := start(t, a)
	networks, err := c.Networks(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Network{{Slot: 7, SandboxID: "abc", State: StateRunning}, {Slot: 32767, State: StateUnknown}}, networks)
	slots, err := c.ReclaimNetworks(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []int{3, 5}, slots)
	a.err = connect.NewError(connect.CodeInternal, errors.New("busy"))
	_, err = c.Networks(t.Context())
	require.ErrorIs(t, err, ErrInternal)
	_, err = c.ReclaimNetworks(t.Context())
	require.ErrorContains(t, err, "busy")
}

func start(t *testing.T, a hostagentv1connect.HostAgentServiceHandler) *Client {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(a))
	srv := httptest.NewServer(transport.RequireAgentToken(token, mux))
	t.Cleanup(srv.Close)
	return dial(t, Config{Name: "one", URL: srv.URL, Token: token})
}

func dial(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestEveryCallCarriesWhatItIsGiven(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	a := &agent{sandbox: &hostagentv1.Sandbox{
		Id: "abc", Template: "base", State: hostagentv1.SandboxState_SANDBOX_STATE_FAILED, Failure: "why", StartedAt: timestamppb.New(at), Deadline: timestamppb.New(at.Add(time.Hour)),
		Vcpus: 2, MemoryMib: 512, DiskMib: 1024, Slot: 7, BootPath: hostagentv1.BootPath_BOOT_PATH_RESTORED, Metadata: map[string]string{"k": "v"}, EnvdVersion: "0.6.13",
		Stages: []*hostagentv1.Stage{{Name: "vmm", Duration: durationpb.New(time.Second)}},
	}}
	c := start(t, a)
	want := Sandbox{
		ID: "abc", Template: "base", State: StateFailed, Failure: "why", StartedAt: at, Deadline: at.Add(time.Hour), VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024,
		Slot: 7, BootPath: "restored", Stages: []Stage{{"vmm", time.Second}}, Metadata: map[string]string{"k": "v"}, EnvdVersion: "0.6.13",
	}
	host, err := c.Ping(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Host{Version: "1", VMM: "qemu-tcg", VMMReason: "no KVM", Sandboxes: 3, Templates: []string{"base"}, CPUs: 2, MemoryMiB: 1024}, host)

	made, err := c.Create(t.Context(), CreateRequest{
		ID: "abc", Template: "base", VCPUs: 2, MemoryMiB: 512, Timeout: time.Minute, EnvVars: map[string]string{"A": "b"}, Metadata: map[string]string{"k": "v"}, EnvdAccessToken: "t",
		Network: NetworkRules{AllowInternet: true, AllowOut: []string{"192.0.2.1"}, DenyOut: []string{"192.0.2.2"}}, Limits: NetworkLimits{1, 2, 3, 4},
	})
	require.NoError(t, err)
	assert.Equal(t, want, made)
	assert.Equal(t, time.Minute, a.create.GetTimeout().AsDuration())
	assert.Equal(t, []any{"abc", "base", uint32(2), uint64(512), "t", true, "b", "v"}, []any{
		a.create.GetId(), a.create.GetTemplate(), a.create.GetVcpus(), a.create.GetMemoryMib(), a.create.GetEnvdAccessToken(), a.create.GetNetwork().GetAllowInternet(), a.create.GetEnvVars()["A"], a.create.GetMetadata()["k"],
	})
	got, err := c.Get(t.Context(), "abc")
	require.NoError(t, err)
	assert.Equal(t, want, got)
	all, err := c.List(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Sandbox{want, {State: StateUnknown, BootPath: "unknown"}}, all)
	end, err := c.SetDeadline(t.Context(), "abc", 90*time.Second, true)
	require.NoError(t, err)
	assert.Equal(t, at.Add(time.Hour), end)
	assert.Equal(t, 90*time.Second, a.end.GetTimeout().AsDuration())
	assert.True(t, a.end.GetExtendOnly())
	console, err := c.Logs(t.Context(), "abc", 77)
	require.NoError(t, err)
	assert.Equal(t, "boot\n", string(console))
	assert.EqualValues(t, 77, a.logs.GetLimit())
	require.NoError(t, c.Destroy(t.Context(), "abc"))
	assert.Equal(t, token, c.Token())
	assert.Equal(t, "one", c.Name())
	c.URL().Host = "changed"
	assert.NotEqual(t, "changed", c.URL().Host)
}

func TestEveryStateAndBootPathHasAName(t *testing.T) {
	for n, name := range hostagentv1.SandboxState_name {
		got := sandboxFromWire(&hostagentv1.Sandbox{State: hostagentv1.SandboxState(n)}).State
		assert.Equal(t, n == 0, got == StateUnknown, name)
	}
	for n, name := range hostagentv1.BootPath_name {
		got := sandboxFromWire(&hostagentv1.Sandbox{BootPath: hostagentv1.BootPath(n)}).BootPath
		assert.Equal(t, n == 0, got == "unknown", name)
	}
}

func TestErrorsSayWhatKindTheyAreAndWhatTheAgentSaid(t *testing.T) {
	a := &agent{}
	c := start(t, a)
	for code, kind := range map[connect.Code]error{
		connect.CodeInvalidArgument: ErrInvalid, connect.CodeNotFound: ErrNotFound, connect.CodeAlreadyExists: ErrExists, connect.CodeFailedPrecondition: ErrConflict,
		connect.CodeResourceExhausted: ErrExhausted, connect.CodeUnavailable: ErrUnavailable, connect.CodeInternal: ErrInternal, connect.CodeUnknown: ErrInternal,
		connect.CodeDeadlineExceeded: ErrUnreachable, connect.CodeCanceled: ErrUnreachable,
	} {
		a.err = connect.NewError(code, errors.New("template: must be there"))
		_, err := c.Create(t.Context(), CreateRequest{ID: "abc"})
		require.ErrorIs(t, err, kind, code.String())
		var e *Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, "template: must be there", e.Message)
		assert.ErrorContains(t, err, "agent one: create sandbox abc")
		for _, other := range []error{ErrInvalid, ErrNotFound, ErrExists, ErrConflict, ErrExhausted, ErrUnavailable, ErrUnreachable, ErrInternal} {
			assert.Equal(t, errors.Is(kind, other), errors.Is(err, other), "%v %v", code, other)
		}
		_, err = c.List(t.Context())
		require.ErrorIs(t, err, kind)
		require.ErrorIs(t, c.Destroy(t.Context(), "abc"), kind)
	}
}

func TestSilenceIsNotTheAgentsWord(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	refusing := "http://" + l.Addr().String()
	require.NoError(t, l.Close())
	_, err = dial(t, Config{Name: "a", URL: refusing, Token: token}).Ping(t.Context())
	require.ErrorIs(t, err, ErrUnreachable)

	hang := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	defer silent.Close()
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = dial(t, Config{Name: "a", URL: silent.URL, Token: token}).Create(ctx, CreateRequest{})
	require.ErrorIs(t, err, ErrUnreachable)

	cutting := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer cutting.Close()
	_, err = dial(t, Config{Name: "a", URL: cutting.URL, Token: token}).Create(t.Context(), CreateRequest{})
	require.ErrorIs(t, err, ErrUnreachable)
}

func TestAWrongTokenIsRefused(t *testing.T) {
	good := start(t, &agent{sandbox: &hostagentv1.Sandbox{}})
	bad := dial(t, Config{Name: "one", URL: good.URL().String(), Token: "wrong"})
	_, err := bad.Ping(t.Context())
	require.ErrorIs(t, err, ErrInternal)
	assert.ErrorContains(t, err, "does not accept this control plane's token")
}

func TestNewRefusesABadConfig(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Name: "a", URL: "127.0.0.1:3001", Token: "t"}, {Name: "a", URL: "ftp://x", Token: "t"}, {Name: "a", URL: "http://", Token: "t"}, {Name: "", URL: "http://x", Token: "t"}, {Name: "a", URL: "http://x", Token: ""}, {Name: "a", URL: ":", Token: "t"},
	} {
		_, err := New(cfg)
		assert.Error(t, err, "%+v", cfg)
	}
}
