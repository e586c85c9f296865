package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"wrenn/impl/network"
	"wrenn/impl/portproxy"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/transport"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

// served is an agent's RPC server over parts in memory.
type served struct {
	hostagentv1connect.HostAgentServiceClient
	host    *sandboxtest.Host
	manager *sandbox.Manager
	url     string
	dir     string // of the sandboxes
	handler *handler
}

func serve(t *testing.T) served {
	t.Helper()
	parts := sandboxtest.NewHost()
	logger := slog.New(slog.DiscardHandler)
	dir := filepath.Join(t.TempDir(), "sandboxes")
	manager, err := sandbox.NewManager(sandbox.Config{
		Dir: dir, Logger: logger, MemoryMiB: 2000,
		Network: parts.Network(), Disk: parts.Disk(), Memory: parts.Memory(), VMM: parts.VMM(), Guest: parts.Guest(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, manager.Close(context.WithoutCancel(t.Context()), true)) })
	disks, err := rootfs.NewStore(rootfs.Config{ImageDir: t.TempDir(), Dir: t.TempDir(), Logger: logger})
	require.NoError(t, err)
	h := &handler{manager: manager, disks: disks, choice: Choice{Name: VMMQEMUTCG, Reason: "a test"}, version: Version, memoryMiB: 2000}
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(h))
	server := httptest.NewServer(transport.RequireAgentToken("secret", mux))
	t.Cleanup(server.Close)
	token := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			r.Header().Set(transport.AgentTokenHeader, "secret")
			return next(ctx, r)
		}
	}))
	return served{hostagentv1connect.NewHostAgentServiceClient(server.Client(), server.URL, token), parts, manager, server.URL, dir, h}
}

func createRequest(id string) *connect.Request[hostagentv1.CreateSandboxRequest] {
	return connect.NewRequest(&hostagentv1.CreateSandboxRequest{
		Id: id, Template: "base", Timeout: durationpb.New(time.Hour), Metadata: map[string]string{"a": "b"}, Network: &hostagentv1.NetworkRules{AllowInternet: true},
	})
}

func TestA01_CreateGetListDestroy(t *testing.T) {
	s := serve(t)
	made, err := s.CreateSandbox(t.Context(), createRequest("one"))
	require.NoError(t, err)
	box := made.Msg.GetSandbox()
	assert.Equal(t, hostagentv1.SandboxState_SANDBOX_STATE_RUNNING, box.GetState())
	assert.Equal(t, hostagentv1.BootPath_BOOT_PATH_COLD, box.GetBootPath())
	assert.Len(t, box.GetStages(), 8)
	assert.Equal(t, map[string]string{"a": "b"}, box.GetMetadata())

	got, err := s.GetSandbox(t.Context(), connect.NewRequest(&hostagentv1.GetSandboxRequest{Id: "one"}))
	require.NoError(t, err)
	assert.Equal(t, box.GetDeadline().AsTime(), got.Msg.GetSandbox().GetDeadline().AsTime())
	list, err := s.ListSandboxes(t.Context(), connect.NewRequest(&hostagentv1.ListSandboxesRequest{}))
	require.NoError(t, err)
	assert.Len(t, list.Msg.GetSandboxes(), 1)
	logs, err := s.GetSandboxLogs(t.Context(), connect.NewRequest(&hostagentv1.GetSandboxLogsRequest{Id: "one", Limit: 3}))
	require.NoError(t, err)
	assert.Equal(t, "ed\n", string(logs.Msg.GetConsole()))
	later, err := s.SetSandboxDeadline(t.Context(), connect.NewRequest(&hostagentv1.SetSandboxDeadlineRequest{Id: "one", Timeout: durationpb.New(2 * time.Hour)}))
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now().Add(2*time.Hour), later.Msg.GetDeadline().AsTime(), time.Minute)
	ping, err := s.Ping(t.Context(), connect.NewRequest(&hostagentv1.PingRequest{}))
	require.NoError(t, err)
	assert.EqualValues(t, 1, ping.Msg.GetSandboxes())
	assert.Equal(t, VMMQEMUTCG, ping.Msg.GetVmm())
	_, err = s.DestroySandbox(t.Context(), connect.NewRequest(&hostagentv1.DestroySandboxRequest{Id: "one"}))
	require.NoError(t, err)
	assert.Empty(t, s.host.Census())
}

func TestV01_HostileNamesAreRefusedByRPC(t *testing.T) {
	s := serve(t)
	for _, name := range []string{"../x", "%2e%2e", "a\x00b", strings.Repeat("a", 65), "", "..", "a/b", `a\b`} {
		errs := map[string]error{}
		bad := createRequest("ok")
		bad.Msg.Template = name
		_, errs["create template"] = s.CreateSandbox(t.Context(), bad)
		_, errs["create id"] = s.CreateSandbox(t.Context(), createRequest(name))
		_, errs["get"] = s.GetSandbox(t.Context(), connect.NewRequest(&hostagentv1.GetSandboxRequest{Id: name}))
		_, errs["destroy"] = s.DestroySandbox(t.Context(), connect.NewRequest(&hostagentv1.DestroySandboxRequest{Id: name}))
		_, errs["deadline"] = s.SetSandboxDeadline(t.Context(), connect.NewRequest(&hostagentv1.SetSandboxDeadlineRequest{Id: name, Timeout: durationpb.New(time.Hour)}))
		_, errs["logs"] = s.GetSandboxLogs(t.Context(), connect.NewRequest(&hostagentv1.GetSandboxLogsRequest{Id: name}))
		for call, err := range errs {
			assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s with %q: %v", call, name, err)
		}
	}
	assert.Empty(t, s.host.Census())
}

func TestA01_ErrorsAreCodedOnce(t *testing.T) {
	s := serve(t)
	code := func(change func(*hostagentv1.CreateSandboxRequest)) connect.Code {
		r := createRequest("x")
		change(r.Msg)
		_, err := s.CreateSandbox(t.Context(), r)
		require.Error(t, err)
		return connect.CodeOf(err)
	}
	assert.Equal(t, connect.CodeNotFound, code(func(r *hostagentv1.CreateSandboxRequest) { r.Template = "nosuch" }))
	assert.Equal(t, connect.CodeInvalidArgument, code(func(r *hostagentv1.CreateSandboxRequest) { r.Timeout = nil }))
	assert.Equal(t, connect.CodeInvalidArgument, code(func(r *hostagentv1.CreateSandboxRequest) { r.Vcpus = 4_000_000_000 }))
	assert.Equal(t, connect.CodeInvalidArgument, code(func(r *hostagentv1.CreateSandboxRequest) { r.MemoryMib = 1 << 63 }))
	assert.Equal(t, connect.CodeResourceExhausted, code(func(r *hostagentv1.CreateSandboxRequest) { r.MemoryMib = 4096 }))
	s.host.Fail("vmm.boot", errors.New("boom"))
	assert.Equal(t, connect.CodeInternal, code(func(*hostagentv1.CreateSandboxRequest) {}))
	s.host.Fail("vmm.boot", nil)
	_, err := s.CreateSandbox(t.Context(), createRequest("x"))
	require.NoError(t, err)
	assert.Equal(t, connect.CodeAlreadyExists, code(func(*hostagentv1.CreateSandboxRequest) {}))
	require.True(t, s.host.Crash("x"))
	require.Eventually(t, func() bool { i, err := s.manager.Get("x"); return err == nil && i.State == sandbox.Failed }, 10*time.Second, time.Millisecond)
	_, err = s.SetSandboxDeadline(t.Context(), connect.NewRequest(&hostagentv1.SetSandboxDeadlineRequest{Id: "x", Timeout: durationpb.New(time.Hour)}))
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	_, err = lookup(s.manager)(t.Context(), "x")
	require.ErrorIs(t, err, portproxy.ErrNotFound, "the proxy must not reach a failed sandbox's address")

	s.handler.choice = Choice{Err: errors.New("no VMM")}
	assert.Equal(t, connect.CodeUnavailable, code(func(r *hostagentv1.CreateSandboxRequest) { r.Id = "y" }))
}

// keeper has two ready networks and leftovers in slots of its choice.
type keeper struct {
	slots []int
	err   error
}

func (k keeper) Ready() []int { return []int{8, 9} }
func (k keeper) Reclaim(ctx context.Context) ([]int, error) {
	return k.slots, errors.Join(k.err, ctx.Err())
}

func TestN06_NetworksAreListedAndReclaimedByRPC(t *testing.T) {
	s := serve(t)
	s.handler.networks = keeper{slots: []int{3, 5}}
	_, err := s.CreateSandbox(t.Context(), createRequest("one"))
	require.NoError(t, err)
	list, err := s.ListNetworks(t.Context(), connect.NewRequest(&hostagentv1.ListNetworksRequest{}))
	require.NoError(t, err)
	var got []string
	for _, n := range list.Msg.GetNetworks() {
		got = append(got, fmt.Sprint(n.GetSlot(), n.GetSandboxId(), n.GetState()))
	}
	slot := s.manager.List()[0].Slot
	assert.Equal(t, []string{
		"8SANDBOX_STATE_UNSPECIFIED", "9SANDBOX_STATE_UNSPECIFIED", fmt.Sprint(slot, "oneSANDBOX_STATE_RUNNING"),
	}, got)
	done, err := s.ReclaimNetworks(t.Context(), connect.NewRequest(&hostagentv1.ReclaimNetworksRequest{}))
	require.NoError(t, err)
	assert.Equal(t, []uint32{3, 5}, done.Msg.GetSlots())
	s.handler.networks = keeper{err: errors.New("busy")}
	_, err = s.ReclaimNetworks(t.Context(), connect.NewRequest(&hostagentv1.ReclaimNetworksRequest{}))
	assert.Equal(t, connect.CodeInternal, connect.CodeOf(err))
	require.ErrorContains(t, err, "busy")
}

// The port proxy knows the address that guests know themselves by, without the network's package.
func TestP02_TheProxyKnowsTheGuestsOwnAddress(t *testing.T) {
	assert.Equal(t, network.GuestIP, portproxy.GuestAddr.String())
}

func TestA01_NobodyWithoutTheToken(t *testing.T) {
	s := serve(t)
	resp, err := http.Post(s.url+hostagentv1connect.HostAgentServicePingProcedure, "application/json", strings.NewReader("{}"))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	http.DefaultClient.CloseIdleConnections()
}
