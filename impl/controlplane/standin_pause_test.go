package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

const (
	isRunning  = hostagentv1.SandboxState_SANDBOX_STATE_RUNNING
	isPausing  = hostagentv1.SandboxState_SANDBOX_STATE_PAUSING
	isPaused   = hostagentv1.SandboxState_SANDBOX_STATE_PAUSED
	isResuming = hostagentv1.SandboxState_SANDBOX_STATE_RESUMING
)

func conflict(sb *hostagentv1.Sandbox) error {
	return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("sandbox %s is %v", sb.GetId(), sb.GetState()))
}

func mustRun(sb *hostagentv1.Sandbox) error {
	if sb.GetState() != isRunning {
		return conflict(sb)
	}
	return nil
}

// state returns what state the stand-in has a sandbox in.
func (a *standIn) state(id string) hostagentv1.SandboxState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sandboxes[id].GetState()
}

// pausesByItself does what an agent does at a sandbox's end.
func (a *standIn) pausesByItself(id string) {
	a.with(func() { a.sandboxes[id].State, a.sandboxes[id].PausedAt = isPaused, timestamppb.Now() })
	a.proxy.EvictProxy(id)
}

// change takes a sandbox from one state through a second, in which the hook before(call) runs, to a third.
func (a *standIn) change(call, id string, from, through, to hostagentv1.SandboxState) (*hostagentv1.Sandbox, error) {
	a.mu.Lock()
	sb := a.sandboxes[id]
	if sb == nil {
		a.mu.Unlock()
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	}
	if sb.GetState() != from {
		defer a.mu.Unlock()
		return nil, conflict(sb)
	}
	sb.State = through
	a.mu.Unlock()
	err := connect.NewError(connect.CodeInternal, errors.New("the hook has not returned"))
	defer func() { // also when the hook breaks the connection
		a.mu.Lock()
		defer a.mu.Unlock()
		if err != nil {
			sb.State = from
		}
	}()
	refusal := a.hook(before, call, id)
	a.mu.Lock()
	defer a.mu.Unlock()
	if refusal == nil {
		err = nil
	}
	if a.sandboxes[id] == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("it was destroyed meanwhile"))
	}
	if refusal != nil {
		return nil, refusal
	}
	sb.State = to
	return sb, nil
}

func phases(names ...string) (list []*hostagentv1.Stage) {
	for i, n := range names {
		list = append(list, &hostagentv1.Stage{Name: n, Duration: durationpb.New(time.Duration(i+1) * 1500 * time.Microsecond)})
	}
	return list
}

func (a *standIn) PauseSandbox(_ context.Context, req *connect.Request[hostagentv1.PauseSandboxRequest]) (*connect.Response[hostagentv1.PauseSandboxResponse], error) {
	id := req.Msg.GetId()
	sb, err := a.change("pause", id, isRunning, isPausing, isPaused)
	if err != nil {
		return nil, err
	}
	a.with(func() {
		sb.PausedAt, sb.Slot = timestamppb.Now(), 0
		sb.Generation++
		if req.Msg.GetFilesOnly() {
			sb.BootPath = hostagentv1.BootPath_BOOT_PATH_COLD
		} else {
			sb.BootPath = hostagentv1.BootPath_BOOT_PATH_RESTORED
		}
		sb = proto.CloneOf(sb)
	})
	a.proxy.EvictProxy(id)
	if err := a.hook(after, "pause", id); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostagentv1.PauseSandboxResponse{Sandbox: sb, Phases: phases("freeze", "memory", "not a token")}), nil
}

func (a *standIn) ResumeSandbox(_ context.Context, req *connect.Request[hostagentv1.ResumeSandboxRequest]) (*connect.Response[hostagentv1.ResumeSandboxResponse], error) {
	m := req.Msg
	end := time.Now().Add(m.GetTimeout().AsDuration())
	var ran *hostagentv1.Sandbox
	a.with(func() {
		if sb := a.sandboxes[m.GetId()]; sb.GetState() == isRunning {
			if !m.GetExtendOnly() || end.After(sb.GetDeadline().AsTime()) {
				sb.Deadline = timestamppb.New(end)
			}
			ran = proto.CloneOf(sb)
		}
	})
	if ran != nil {
		return connect.NewResponse(&hostagentv1.ResumeSandboxResponse{Sandbox: ran}), nil
	}
	sb, err := a.change("resume", m.GetId(), isPaused, isResuming, isRunning)
	if err != nil {
		return nil, err
	}
	a.with(func() {
		sb.Deadline, sb.PausedAt, sb.StartedAt = timestamppb.New(end), nil, timestamppb.Now()
		if m.GetFilesOnly() {
			sb.BootPath = hostagentv1.BootPath_BOOT_PATH_COLD
		}
		sb = proto.CloneOf(sb)
	})
	if err := a.hook(after, "resume", m.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostagentv1.ResumeSandboxResponse{Sandbox: sb, Resumed: true, Phases: phases("disk", "load")}), nil
}

func (a *standIn) SnapshotSandbox(_ context.Context, req *connect.Request[hostagentv1.SnapshotSandboxRequest]) (*connect.Response[hostagentv1.SnapshotSandboxResponse], error) {
	id, name := req.Msg.GetId(), req.Msg.GetName()
	if err := a.hook(before, "snapshot", id); err != nil {
		return nil, err
	}
	a.mu.Lock()
	sb := a.sandboxes[id]
	switch {
	case sb == nil:
		a.mu.Unlock()
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such sandbox"))
	case sb.GetState() != isRunning && sb.GetState() != isPaused:
		defer a.mu.Unlock()
		return nil, conflict(sb)
	case a.snapshots[name] != nil:
		a.mu.Unlock()
		return nil, connect.NewError(connect.CodeAlreadyExists, errors.New("that name is taken"))
	}
	sn := &hostagentv1.Snapshot{
		Name: name, SandboxId: id, Template: sb.GetTemplate(), CreatedAt: timestamppb.Now(),
		Vcpus: sb.GetVcpus(), MemoryMib: sb.GetMemoryMib(), DiskMib: sb.GetDiskMib(), SizeBytes: 4096,
	}
	a.snapshots[name] = sn
	a.mu.Unlock()
	if err := a.hook(after, "snapshot", id); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostagentv1.SnapshotSandboxResponse{Snapshot: proto.CloneOf(sn), Phases: phases("freeze", "memory")}), nil
}

func (a *standIn) ListSnapshots(context.Context, *connect.Request[hostagentv1.ListSnapshotsRequest]) (*connect.Response[hostagentv1.ListSnapshotsResponse], error) {
	if err := a.hook(before, "list snapshots", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	res := &hostagentv1.ListSnapshotsResponse{}
	for _, sn := range a.snapshots {
		sn = proto.CloneOf(sn)
		sn.Users = uint32(a.users(sn.GetName()))
		res.Snapshots = append(res.Snapshots, sn)
	}
	return connect.NewResponse(res), nil
}

// users counts the sandboxes that were created from a snapshot; a.mu is held.
func (a *standIn) users(snapshot string) (n int) {
	for _, sb := range a.sandboxes {
		if sb.GetSnapshot() == snapshot {
			n++
		}
	}
	return n
}

func (a *standIn) DeleteSnapshot(_ context.Context, req *connect.Request[hostagentv1.DeleteSnapshotRequest]) (*connect.Response[hostagentv1.DeleteSnapshotResponse], error) {
	name := req.Msg.GetName()
	if err := a.hook(before, "delete snapshot", name); err != nil {
		return nil, err
	}
	a.mu.Lock()
	_, there := a.snapshots[name]
	used := a.users(name) > 0 && !req.Msg.GetForce()
	if there && !used {
		delete(a.snapshots, name)
	}
	a.mu.Unlock()
	switch {
	case !there:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such snapshot"))
	case used:
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("sandboxes use it"))
	}
	if err := a.hook(after, "delete snapshot", name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostagentv1.DeleteSnapshotResponse{}), nil
}

// snapshotIDs returns what snapshots the stand-in has.
func (a *standIn) snapshotIDs() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := []string{}
	for id := range a.snapshots {
		ids = append(ids, id)
	}
	return ids
}
