package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"wrenn/impl/sandbox"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

func (s served) pause(t *testing.T, id string) (*hostagentv1.PauseSandboxResponse, error) {
	r, err := s.PauseSandbox(t.Context(), connect.NewRequest(&hostagentv1.PauseSandboxRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

func (s served) resume(t *testing.T, id string) (*hostagentv1.ResumeSandboxResponse, error) {
	r, err := s.ResumeSandbox(t.Context(), connect.NewRequest(&hostagentv1.ResumeSandboxRequest{Id: id, Timeout: durationpb.New(time.Hour)}))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

func (s served) snapshot(t *testing.T, id, name string) (*hostagentv1.SnapshotSandboxResponse, error) {
	r, err := s.SnapshotSandbox(t.Context(), connect.NewRequest(&hostagentv1.SnapshotSandboxRequest{Id: id, Name: name}))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

func (s served) remove(t *testing.T, name string, force bool) error {
	_, err := s.DeleteSnapshot(t.Context(), connect.NewRequest(&hostagentv1.DeleteSnapshotRequest{Name: name, Force: force}))
	return err
}

func TestA01_PauseResumeAndSnapshotByRPC(t *testing.T) {
	s := serve(t)
	req := createRequest("one")
	req.Msg.Lifecycle = &hostagentv1.Lifecycle{PauseOnTimeout: true, ResumeOnTraffic: true}
	made, err := s.CreateSandbox(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, req.Msg.GetLifecycle().GetPauseOnTimeout(), made.Msg.GetSandbox().GetLifecycle().GetPauseOnTimeout())
	assert.True(t, made.Msg.GetSandbox().GetLifecycle().GetResumeOnTraffic())
	assert.Positive(t, made.Msg.GetSandbox().GetDiskUsedBytes())

	paused, err := s.pause(t, "one")
	require.NoError(t, err)
	assert.Equal(t, hostagentv1.SandboxState_SANDBOX_STATE_PAUSED, paused.GetSandbox().GetState())
	assert.EqualValues(t, 1, paused.GetSandbox().GetGeneration())
	assert.WithinDuration(t, time.Now(), paused.GetSandbox().GetPausedAt().AsTime(), time.Minute)
	assert.NotEmpty(t, paused.GetPhases())
	_, err = s.pause(t, "one")
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	_, err = s.snapshot(t, "one", "of-paused")
	require.NoError(t, err)
	resumed, err := s.resume(t, "one")
	require.NoError(t, err)
	assert.True(t, resumed.GetResumed())
	assert.Nil(t, resumed.GetSandbox().GetPausedAt())
	assert.Equal(t, hostagentv1.BootPath_BOOT_PATH_RESTORED, resumed.GetSandbox().GetBootPath())
	again, err := s.resume(t, "one")
	require.NoError(t, err)
	assert.False(t, again.GetResumed())

	snap, err := s.snapshot(t, "one", "gold")
	require.NoError(t, err)
	assert.Equal(t, "one", snap.GetSnapshot().GetSandboxId())
	assert.Positive(t, snap.GetSnapshot().GetSizeBytes())
	_, err = s.snapshot(t, "one", "gold")
	assert.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(err))
	clone, err := s.CreateSandbox(t.Context(), connect.NewRequest(&hostagentv1.CreateSandboxRequest{
		Id: "two", Snapshot: "gold", Timeout: durationpb.New(time.Hour),
	}))
	require.NoError(t, err)
	assert.Equal(t, "gold", clone.Msg.GetSandbox().GetSnapshot())
	assert.Equal(t, "base", clone.Msg.GetSandbox().GetTemplate())
	list, err := s.ListSnapshots(t.Context(), connect.NewRequest(&hostagentv1.ListSnapshotsRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetSnapshots(), 2)
	assert.EqualValues(t, 1, list.Msg.GetSnapshots()[1].GetUsers())
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(s.remove(t, "gold", false)))
	require.NoError(t, s.remove(t, "gold", true))
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(s.remove(t, "gold", true)))
}

func TestA01_ErrorsOfPausesAreCoded(t *testing.T) {
	s := serve(t)
	_, err := s.CreateSandbox(t.Context(), createRequest("one"))
	require.NoError(t, err)
	for name, err := range map[string]func() error{
		"pause":    func() error { _, err := s.pause(t, "nosuch"); return err },
		"resume":   func() error { _, err := s.resume(t, "nosuch"); return err },
		"snapshot": func() error { _, err := s.snapshot(t, "nosuch", "a"); return err },
		"create": func() error {
			_, err := s.CreateSandbox(t.Context(), connect.NewRequest(&hostagentv1.CreateSandboxRequest{Id: "x", Snapshot: "nosuch", Timeout: durationpb.New(time.Hour)}))
			return err
		},
	} {
		assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err()), name)
	}
	for _, bad := range []string{"../x", "a/b", "", "a\x00b", "..", ".new"} {
		_, err := s.snapshot(t, "one", bad)
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "V01: %q", bad)
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(s.remove(t, bad, true)), "V01: %q", bad)
		_, err = s.pause(t, bad)
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "V01: %q", bad)
	}
	s.host.Fail("disk.keep", errors.New("boom"))
	_, err = s.pause(t, "one")
	assert.Equal(t, connect.CodeInternal, connect.CodeOf(err))
	s.host.Fail("disk.keep", sandbox.ErrNoDisk)
	_, err = s.pause(t, "one")
	assert.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	s.host.Fail("disk.keep", nil)
	_, err = s.pause(t, "one")
	require.NoError(t, err)
	require.NoError(t, os.Truncate(filepath.Join(s.dir, "one", "snapshot", "vmstate"), 1))
	_, err = s.resume(t, "one")
	assert.Equal(t, connect.CodeDataLoss, connect.CodeOf(err))
	assert.ErrorContains(t, err, "vmstate")
}
