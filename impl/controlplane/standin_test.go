package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn/impl/agentclient"
	"wrenn/impl/portproxy"
	"wrenn/impl/transport"
	"wrenn/impl/transport/hopserver"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

const agentToken = "token-of-the-agent"

// standIn is an agent that keeps its sandboxes in memory; a sandbox's guest is one HTTP server, shared by
// all, whatever the port.
type standIn struct {
	hostagentv1connect.UnimplementedHostAgentServiceHandler
	proxy *portproxy.Host
	guest *url.URL
	url   string
	close func() // as the agent's host goes down

	mu        sync.Mutex
	sandboxes map[string]*hostagentv1.Sandbox
	requests  map[string]*hostagentv1.CreateSandboxRequest
	snapshots map[string]*hostagentv1.Snapshot
	console   []byte
	templates []string
	load      uint32
	// before, if set, runs at the start of each call and may refuse it; after runs at the end and may lose
	// the reply.
	before, after func(call, id string) error
}

// newStandIn starts an agent whose guests are served by guest.
func newStandIn(t testing.TB, guest http.Handler, tune ...func(*hopserver.Server)) *standIn {
	t.Helper()
	a := &standIn{sandboxes: map[string]*hostagentv1.Sandbox{}, requests: map[string]*hostagentv1.CreateSandboxRequest{}, snapshots: map[string]*hostagentv1.Snapshot{}, templates: []string{"base"}}
	g := httptest.NewServer(guest)
	t.Cleanup(g.Close)
	var err error
	a.guest, err = url.Parse(g.URL)
	require.NoError(t, err)
	a.proxy = portproxy.NewHost(portproxy.HostConfig{
		Logger: slog.New(slog.DiscardHandler),
		Lookup: func(_ context.Context, id string) (netip.Addr, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if sb := a.sandboxes[id]; sb == nil || sb.GetState() != hostagentv1.SandboxState_SANDBOX_STATE_RUNNING {
				return netip.Addr{}, portproxy.ErrNotFound
			}
			return netip.MustParseAddr("127.0.0.1"), nil
		},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, port, _ := net.SplitHostPort(addr); port == "9" { // a port that nothing listens on
				return transport.DialGuest(ctx, network, addr)
			}
			return transport.DialGuest(ctx, network, a.guest.Host)
		},
	})
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(a))
	srv := transport.NewProxyServer(transport.RequireAgentToken(agentToken, a.proxy.Mount(mux)))
	srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	for _, change := range tune {
		change(srv)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	a.close = sync.OnceFunc(func() {
		assert.NoError(t, srv.Close())
		assert.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
	t.Cleanup(a.close)
	a.url = "http://" + l.Addr().String()
	return a
}

func (a *standIn) config(name string) agentclient.Config {
	return agentclient.Config{Name: name, URL: a.url, Token: agentToken}
}

// with runs f while nothing else touches the stand-in.
func (a *standIn) with(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// ids returns the sandboxes that the agent holds.
func (a *standIn) ids() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := []string{}
	for id := range a.sandboxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (a *standIn) hook(hook func(*standIn) func(string, string) error, call, id string) error {
	a.mu.Lock()
	h := hook(a)
	a.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(call, id)
}

func before(a *standIn) func(string, string) error { return a.before }
func after(a *standIn) func(string, string) error  { return a.after }

func (a *standIn) Ping(context.Context, *connect.Request[hostagentv1.PingRequest]) (*connect.Response[hostagentv1.PingResponse], error) {
	if err := a.hook(before, "ping", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return connect.NewResponse(&hostagentv1.PingResponse{
		Version: "1", Vmm: "qemu-tcg", Templates: a.templates, Cpus: 2, Sandboxes: uint32(len(a.sandboxes)) + a.load,
	}), nil
}

func (a *standIn) CreateSandbox(_ context.Context, req *connect.Request[hostagentv1.CreateSandboxRequest]) (*connect.Response[hostagentv1.CreateSandboxResponse], error) {
	m := req.Msg
	if err := a.hook(before, "create", m.GetId()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	if a.sandboxes[m.GetId()] != nil {
		a.mu.Unlock()
		return nil, connect.NewError(connect.CodeAlreadyExists, errors.New("that id is taken"))
	}
	from := a.snapshots[m.GetSnapshot()]
	if m.GetSnapshot() != "" && from == nil {
		a.mu.Unlock()
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such snapshot"))
	}
	now := time.Now()
	sb := &hostagentv1.Sandbox{
		Id: m.GetId(), Template: m.GetTemplate(), State: hostagentv1.SandboxState_SANDBOX_STATE_RUNNING,
		StartedAt: timestamppb.New(now), Deadline: timestamppb.New(now.Add(m.GetTimeout().AsDuration())),
		Vcpus: max(m.GetVcpus(), 1), MemoryMib: max(m.GetMemoryMib(), 512), DiskMib: 1024, Metadata: m.GetMetadata(), EnvdVersion: "0.6.13",
		BootPath: hostagentv1.BootPath_BOOT_PATH_COLD, Network: m.GetNetwork(), Snapshot: m.GetSnapshot(), Lifecycle: m.GetLifecycle(),
		Stages: []*hostagentv1.Stage{{Name: "slot", Duration: durationpb.New(1500 * time.Microsecond)}, {Name: "kernel", Duration: durationpb.New(time.Second)}},
	}
	if from != nil {
		sb.Template, sb.Vcpus, sb.MemoryMib, sb.BootPath = from.GetTemplate(), from.GetVcpus(), from.GetMemoryMib(), hostagentv1.BootPath_BOOT_PATH_RESTORED
	}
	a.sandboxes[m.GetId()], a.requests[m.GetId()] = proto.CloneOf(sb), m
	a.mu.Unlock()
	if err := a.hook(after, "create", m.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostagentv1.CreateSandboxResponse{Sandbox: sb}), nil
}

func (a *standIn) GetSandbox(_ context.Context, req *connect.Request[hostagentv1.GetSandboxRequest]) (*connect.Response[hostagentv1.GetSandboxResponse], error) {
	if err := a.hook(before, "get", req.Msg.GetId()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sb := a.sandboxes[req.Msg.GetId()]
	if sb == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	}
	return connect.NewResponse(&hostagentv1.GetSandboxResponse{Sandbox: proto.CloneOf(sb)}), nil
}

func (a *standIn) ListSandboxes(context.Context, *connect.Request[hostagentv1.ListSandboxesRequest]) (*connect.Response[hostagentv1.ListSandboxesResponse], error) {
	if err := a.hook(before, "list", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	res := &hostagentv1.ListSandboxesResponse{}
	for _, sb := range a.sandboxes {
		res.Sandboxes = append(res.Sandboxes, proto.CloneOf(sb))
	}
	return connect.NewResponse(res), nil
}

func (a *standIn) DestroySandbox(_ context.Context, req *connect.Request[hostagentv1.DestroySandboxRequest]) (*connect.Response[hostagentv1.DestroySandboxResponse], error) {
	if err := a.hook(before, "destroy", req.Msg.GetId()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	_, ok := a.sandboxes[req.Msg.GetId()]
	delete(a.sandboxes, req.Msg.GetId())
	a.mu.Unlock()
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	}
	a.proxy.EvictProxy(req.Msg.GetId())
	return connect.NewResponse(&hostagentv1.DestroySandboxResponse{}), nil
}

func (a *standIn) SetSandboxDeadline(_ context.Context, req *connect.Request[hostagentv1.SetSandboxDeadlineRequest]) (*connect.Response[hostagentv1.SetSandboxDeadlineResponse], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	sb := a.sandboxes[req.Msg.GetId()]
	if sb == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	}
	if err := mustRun(sb); err != nil {
		return nil, err
	}
	end := time.Now().Add(req.Msg.GetTimeout().AsDuration())
	if !req.Msg.GetExtendOnly() || end.After(sb.GetDeadline().AsTime()) {
		sb.Deadline = timestamppb.New(end)
	}
	return connect.NewResponse(&hostagentv1.SetSandboxDeadlineResponse{Deadline: sb.GetDeadline()}), nil
}

func (a *standIn) SetSandboxNetwork(_ context.Context, req *connect.Request[hostagentv1.SetSandboxNetworkRequest]) (*connect.Response[hostagentv1.SetSandboxNetworkResponse], error) {
	if err := a.hook(before, "network", req.Msg.GetId()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	sb := a.sandboxes[req.Msg.GetId()]
	if sb == nil {
		a.mu.Unlock()
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	}
	if err := mustRun(sb); err != nil {
		a.mu.Unlock()
		return nil, err
	}
	sb.Network = req.Msg.GetNetwork()
	a.mu.Unlock()
	if err := a.hook(after, "network", req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostagentv1.SetSandboxNetworkResponse{}), nil
}

func (a *standIn) GetSandboxLogs(_ context.Context, req *connect.Request[hostagentv1.GetSandboxLogsRequest]) (*connect.Response[hostagentv1.GetSandboxLogsResponse], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandboxes[req.Msg.GetId()] == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	}
	return connect.NewResponse(&hostagentv1.GetSandboxLogsResponse{Console: a.console}), nil
}
