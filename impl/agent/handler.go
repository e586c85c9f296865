package agent

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn/impl/portproxy"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

// Bounds of GetSandboxLogs in bytes; the contract states them.
const (
	defaultLogBytes = 64 << 10
	maxLogBytes     = 1 << 20
)

// handler answers the control plane. It converts and codes; the Manager decides.
type handler struct {
	hostagentv1connect.UnimplementedHostAgentServiceHandler
	manager   *sandbox.Manager
	disks     *rootfs.Store
	choice    Choice
	version   string
	memoryMiB int
	networks  networkKeeper
}

// networkKeeper is what the handler asks of a networkPart.
type networkKeeper interface {
	Ready() []int
	Reclaim(ctx context.Context) ([]int, error)
}

func (h *handler) Ping(context.Context, *connect.Request[hostagentv1.PingRequest]) (*connect.Response[hostagentv1.PingResponse], error) {
	templates, err := h.disks.Templates()
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.PingResponse{
		Version: h.version, Vmm: h.choice.Name, VmmReason: h.choice.Reason, Templates: templates,
		Sandboxes: uint32(len(h.manager.List())), Cpus: uint32(runtime.NumCPU()), MemoryMib: uint64(h.memoryMiB),
	}), nil
}

func (h *handler) CreateSandbox(ctx context.Context, r *connect.Request[hostagentv1.CreateSandboxRequest]) (*connect.Response[hostagentv1.CreateSandboxResponse], error) {
	if h.choice.Err != nil {
		return nil, toWireError(fmt.Errorf("%w: %w", sandbox.ErrNoVMM, h.choice.Err))
	}
	info, err := h.manager.Create(ctx, fromWire(r.Msg))
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.CreateSandboxResponse{Sandbox: h.toWire(info)}), nil
}

func (h *handler) GetSandbox(_ context.Context, r *connect.Request[hostagentv1.GetSandboxRequest]) (*connect.Response[hostagentv1.GetSandboxResponse], error) {
	info, err := h.manager.Get(r.Msg.GetId())
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.GetSandboxResponse{Sandbox: h.toWire(info)}), nil
}

func (h *handler) ListSandboxes(context.Context, *connect.Request[hostagentv1.ListSandboxesRequest]) (*connect.Response[hostagentv1.ListSandboxesResponse], error) {
	var out hostagentv1.ListSandboxesResponse
	for _, info := range h.manager.List() {
		out.Sandboxes = append(out.Sandboxes, h.toWire(info))
	}
	return connect.NewResponse(&out), nil
}

func (h *handler) DestroySandbox(ctx context.Context, r *connect.Request[hostagentv1.DestroySandboxRequest]) (*connect.Response[hostagentv1.DestroySandboxResponse], error) {
	if err := h.manager.Destroy(ctx, r.Msg.GetId()); err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.DestroySandboxResponse{}), nil
}

func (h *handler) SetSandboxDeadline(ctx context.Context, r *connect.Request[hostagentv1.SetSandboxDeadlineRequest]) (*connect.Response[hostagentv1.SetSandboxDeadlineResponse], error) {
	deadline, err := h.manager.SetDeadline(ctx, r.Msg.GetId(), timeoutFromWire(r.Msg.GetTimeout()), r.Msg.GetExtendOnly())
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.SetSandboxDeadlineResponse{Deadline: timestamppb.New(deadline)}), nil
}

func (h *handler) SetSandboxNetwork(ctx context.Context, r *connect.Request[hostagentv1.SetSandboxNetworkRequest]) (*connect.Response[hostagentv1.SetSandboxNetworkResponse], error) {
	if err := h.manager.SetNetwork(ctx, r.Msg.GetId(), rulesFromWire(r.Msg.GetNetwork())); err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.SetSandboxNetworkResponse{}), nil
}

func (h *handler) GetSandboxLogs(_ context.Context, r *connect.Request[hostagentv1.GetSandboxLogsRequest]) (*connect.Response[hostagentv1.GetSandboxLogsResponse], error) {
	limit := int(r.Msg.GetLimit())
	if limit == 0 {
		limit = defaultLogBytes
	}
	if limit > maxLogBytes {
		return nil, toWireError(fmt.Errorf("%w: limit %d must be 1 to %d", sandbox.ErrInvalid, limit, maxLogBytes))
	}
	console, err := h.manager.Console(r.Msg.GetId(), limit)
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.GetSandboxLogsResponse{Console: console}), nil
}

func (h *handler) ListNetworks(context.Context, *connect.Request[hostagentv1.ListNetworksRequest]) (*connect.Response[hostagentv1.ListNetworksResponse], error) {
	var out hostagentv1.ListNetworksResponse
	for _, slot := range h.networks.Ready() {
		out.Networks = append(out.Networks, &hostagentv1.Network{Slot: uint32(slot)})
	}
	for _, info := range h.manager.List() {
		if info.Slot != 0 {
			out.Networks = append(out.Networks, &hostagentv1.Network{Slot: uint32(info.Slot), SandboxId: info.ID, State: states[info.State]})
		}
	}
	return connect.NewResponse(&out), nil
}

func (h *handler) ReclaimNetworks(ctx context.Context, _ *connect.Request[hostagentv1.ReclaimNetworksRequest]) (*connect.Response[hostagentv1.ReclaimNetworksResponse], error) {
	slots, err := h.networks.Reclaim(ctx)
	if err != nil {
		return nil, toWireError(err)
	}
	var out hostagentv1.ReclaimNetworksResponse
	for _, slot := range slots {
		out.Slots = append(out.Slots, uint32(slot))
	}
	return connect.NewResponse(&out), nil
}

// lookup tells the port proxy where a sandbox is.
func lookup(manager *sandbox.Manager) func(context.Context, string) (netip.Addr, error) {
	return func(_ context.Context, id string) (netip.Addr, error) {
		info, err := manager.Get(id)
		switch {
		case err != nil:
			return netip.Addr{}, portproxy.ErrNotFound
		case info.State == sandbox.Running:
			return info.Address, nil
		case info.State == sandbox.Pausing || info.State == sandbox.Resuming || info.State == sandbox.Creating:
			return netip.Addr{}, portproxy.ErrTransition
		default:
			return netip.Addr{}, portproxy.ErrNotFound
		}
	}
}
