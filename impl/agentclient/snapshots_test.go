package agentclient

import (
	"context"
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// pausing is an agent that also pauses; asked holds what it was asked last.
type pausing struct {
	agent
	asked    any
	snapshot *hostagentv1.Snapshot
	phases   []*hostagentv1.Stage
}

func (a *pausing) PauseSandbox(_ context.Context, r *connect.Request[hostagentv1.PauseSandboxRequest]) (*connect.Response[hostagentv1.PauseSandboxResponse], error) {
	a.asked = []any{r.Msg.GetId(), r.Msg.GetFilesOnly()}
	return connect.NewResponse(&hostagentv1.PauseSandboxResponse{Sandbox: a.sandbox, Phases: a.phases}), a.err
}

func (a *pausing) ResumeSandbox(_ context.Context, r *connect.Request[hostagentv1.ResumeSandboxRequest]) (*connect.Response[hostagentv1.ResumeSandboxResponse], error) {
	a.asked = ResumeRequest{r.Msg.GetId(), r.Msg.GetTimeout().AsDuration(), r.Msg.GetExtendOnly(), r.Msg.GetFilesOnly()}
	return connect.NewResponse(&hostagentv1.ResumeSandboxResponse{Sandbox: a.sandbox, Resumed: true, Phases: a.phases}), a.err
}

func (a *pausing) SnapshotSandbox(_ context.Context, r *connect.Request[hostagentv1.SnapshotSandboxRequest]) (*connect.Response[hostagentv1.SnapshotSandboxResponse], error) {
	a.asked = []any{r.Msg.GetId(), r.Msg.GetName()}
	return connect.NewResponse(&hostagentv1.SnapshotSandboxResponse{Snapshot: a.snapshot, Phases: a.phases}), a.err
}

func (a *pausing) ListSnapshots(context.Context, *connect.Request[hostagentv1.ListSnapshotsRequest]) (*connect.Response[hostagentv1.ListSnapshotsResponse], error) {
	return connect.NewResponse(&hostagentv1.ListSnapshotsResponse{Snapshots: []*hostagentv1.Snapshot{a.snapshot, {}}}), a.err
}

func (a *pausing) DeleteSnapshot(_ context.Context, r *connect.Request[hostagentv1.DeleteSnapshotRequest]) (*connect.Response[hostagentv1.DeleteSnapshotResponse], error) {
	a.asked = []any{r.Msg.GetName(), r.Msg.GetForce()}
	return connect.NewResponse(&hostagentv1.DeleteSnapshotResponse{}), a.err
}

func TestA01_PauseResumeAndSnapshotsCarryWhatTheyAreGiven(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	a := &pausing{
		agent:    agent{sandbox: &hostagentv1.Sandbox{Id: "abc", State: hostagentv1.SandboxState_SANDBOX_STATE_PAUSED, PausedAt: timestamppb.New(at)}},
		phases:   []*hostagentv1.Stage{{Name: "freeze", Duration: durationpb.New(time.Second)}},
		snapshot: &hostagentv1.Snapshot{Name: "s", SandboxId: "abc", Template: "base", CreatedAt: timestamppb.New(at), Vcpus: 1, MemoryMib: 2, DiskMib: 3, SizeBytes: 4, Users: 5},
	}
	c := start(t, a)
	phases := []Stage{{"freeze", time.Second}}

	sb, got, err := c.Pause(t.Context(), "abc", true)
	require.NoError(t, err)
	assert.Equal(t, []any{"abc", true}, a.asked)
	assert.Equal(t, phases, got)
	assert.Equal(t, []any{StatePaused, at}, []any{sb.State, sb.PausedAt})

	req := ResumeRequest{ID: "abc", Timeout: time.Minute, ExtendOnly: true}
	sb, resumed, got, err := c.Resume(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, req, a.asked)
	assert.True(t, resumed)
	assert.Equal(t, phases, got)
	assert.Equal(t, "abc", sb.ID)
	req = ResumeRequest{ID: "abc", FilesOnly: true}
	_, _, _, err = c.Resume(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, req, a.asked)

	want := Snapshot{Name: "s", SandboxID: "abc", Template: "base", CreatedAt: at, VCPUs: 1, MemoryMiB: 2, DiskMiB: 3, SizeBytes: 4, Users: 5}
	sn, got, err := c.Snapshot(t.Context(), "abc", "s")
	require.NoError(t, err)
	assert.Equal(t, []any{"abc", "s"}, a.asked)
	assert.Equal(t, phases, got)
	assert.Equal(t, want, sn)
	all, err := c.Snapshots(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Snapshot{want, {}}, all)
	require.NoError(t, c.DeleteSnapshot(t.Context(), "s", true))
	assert.Equal(t, []any{"s", true}, a.asked)

	_, err = c.Create(t.Context(), CreateRequest{ID: "abc", Snapshot: "s", Lifecycle: Lifecycle{PauseOnTimeout: true, ResumeOnTraffic: true}})
	require.NoError(t, err)
	assert.Equal(t, "s", a.create.GetSnapshot())
	assert.Equal(t, []bool{true, false, true}, []bool{
		a.create.GetLifecycle().GetPauseOnTimeout(), a.create.GetLifecycle().GetPauseFilesOnly(), a.create.GetLifecycle().GetResumeOnTraffic(),
	})
}

func TestA01_PauseResumeAndSnapshotsSayWhatWentWrong(t *testing.T) {
	a := &pausing{}
	c := start(t, a)
	old := start(t, &agent{}) // does not know these calls
	for _, tc := range []struct {
		client *Client
		kind   error
	}{{c, ErrConflict}, {old, ErrUnsupported}} {
		a.err = connect.NewError(connect.CodeFailedPrecondition, errors.New("it does not run"))
		_, _, err := tc.client.Pause(t.Context(), "abc", false)
		require.ErrorIs(t, err, tc.kind)
		_, _, _, err = tc.client.Resume(t.Context(), ResumeRequest{ID: "abc"})
		require.ErrorIs(t, err, tc.kind)
		_, _, err = tc.client.Snapshot(t.Context(), "abc", "s")
		require.ErrorIs(t, err, tc.kind)
		_, err = tc.client.Snapshots(t.Context())
		require.ErrorIs(t, err, tc.kind)
		require.ErrorIs(t, tc.client.DeleteSnapshot(t.Context(), "s", false), tc.kind)
	}
}
