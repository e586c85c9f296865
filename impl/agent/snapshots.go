package agent

import (
	"context"

	"connectrpc.com/connect"

	"wrenn/impl/sandbox"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// toWire adds to a sandbox what it takes on the host. One that has gone meanwhile takes nothing.
func (h *handler) toWire(i sandbox.Info) *hostagentv1.Sandbox {
	used, err := h.manager.DiskUsed(i.ID)
	if err != nil {
		used = 0
	}
	return toWire(i, used)
}

func (h *handler) PauseSandbox(ctx context.Context, r *connect.Request[hostagentv1.PauseSandboxRequest]) (*connect.Response[hostagentv1.PauseSandboxResponse], error) {
	out, err := h.manager.Pause(ctx, r.Msg.GetId(), r.Msg.GetFilesOnly())
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.PauseSandboxResponse{Sandbox: h.toWire(out.Info), Phases: stagesToWire(out.Phases)}), nil
}

func (h *handler) ResumeSandbox(ctx context.Context, r *connect.Request[hostagentv1.ResumeSandboxRequest]) (*connect.Response[hostagentv1.ResumeSandboxResponse], error) {
	out, err := h.manager.Resume(ctx, r.Msg.GetId(), timeoutFromWire(r.Msg.GetTimeout()), r.Msg.GetExtendOnly(), r.Msg.GetFilesOnly())
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.ResumeSandboxResponse{
		Sandbox: h.toWire(out.Info), Resumed: out.Resumed, Phases: stagesToWire(out.Phases),
	}), nil
}

func (h *handler) SnapshotSandbox(ctx context.Context, r *connect.Request[hostagentv1.SnapshotSandboxRequest]) (*connect.Response[hostagentv1.SnapshotSandboxResponse], error) {
	info, phases, err := h.manager.Snapshot(ctx, r.Msg.GetId(), r.Msg.GetName())
	if err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.SnapshotSandboxResponse{Snapshot: snapshotToWire(info), Phases: stagesToWire(phases)}), nil
}

func (h *handler) ListSnapshots(context.Context, *connect.Request[hostagentv1.ListSnapshotsRequest]) (*connect.Response[hostagentv1.ListSnapshotsResponse], error) {
	list, err := h.manager.ListSnapshots()
	if err != nil {
		return nil, toWireError(err)
	}
	var out hostagentv1.ListSnapshotsResponse
	for _, s := range list {
		out.Snapshots = append(out.Snapshots, snapshotToWire(s))
	}
	return connect.NewResponse(&out), nil
}

func (h *handler) DeleteSnapshot(_ context.Context, r *connect.Request[hostagentv1.DeleteSnapshotRequest]) (*connect.Response[hostagentv1.DeleteSnapshotResponse], error) {
	if err := h.manager.DeleteSnapshot(r.Msg.GetName(), r.Msg.GetForce()); err != nil {
		return nil, toWireError(err)
	}
	return connect.NewResponse(&hostagentv1.DeleteSnapshotResponse{}), nil
}
