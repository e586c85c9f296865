package firecracker

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is sent depends on the version: an older Firecracker refuses a newer field.
func TestA05_LoadFitsTheVersion(t *testing.T) {
	version, body, calls := "", "", 0
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/version" {
			_, err := io.WriteString(w, `{"firecracker_version":"`+version+`"}`)
			assert.NoError(t, err)
			return
		}
		raw, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		assert.Equal(t, "PUT /snapshot/load", r.Method+" "+r.URL.Path)
		body = string(raw)
		calls++
		w.WriteHeader(http.StatusNoContent)
	})
	load := SnapshotLoad{StatePath: "snapshot/vmstate", Memory: MemoryBackend{BackendFile, "memory.flat"}, TrackDirtyPages: true,
		ResumeVM: true, NetworkOverrides: []NetworkOverride{{"eth0", "tap7"}}, MemSizeMiB: 128}
	const head = `{"snapshot_path":"snapshot/vmstate","mem_backend":{"backend_type":"File","backend_path":"memory.flat"},`
	const overrides = `"network_overrides":[{"iface_id":"eth0","host_dev_name":"tap7"}]}`
	for v, want := range map[string]string{
		"1.16.1":     head + `"track_dirty_pages":true,"resume_vm":true,` + overrides,
		"1.17.0-dev": head + `"track_dirty_pages":true,"resume_vm":true,` + overrides,
		"1.13.0":     head + `"track_dirty_pages":true,"resume_vm":true,` + overrides,
		"2.0.0":      head + `"track_dirty_pages":true,"resume_vm":true,` + overrides,
		"1.12.1":     head + `"enable_diff_snapshots":true,"resume_vm":true,` + overrides,
	} {
		version = v
		require.NoError(t, c.LoadSnapshot(t.Context(), load), v)
		assert.Equal(t, want, body, v)
	}
	version, calls = "1.11.0", 0
	require.ErrorIs(t, c.LoadSnapshot(t.Context(), load), ErrTooOld)
	assert.Zero(t, calls, "nothing is loaded")
	load.NetworkOverrides, load.ResumeVM, load.TrackDirtyPages = nil, false, false
	load.Memory = MemoryBackend{BackendUffd, "/run/pager.sock"}
	require.NoError(t, c.LoadSnapshot(t.Context(), load))
	assert.Equal(t, `{"snapshot_path":"snapshot/vmstate","mem_backend":{"backend_type":"Uffd","backend_path":"/run/pager.sock"}}`, body)
	for _, version = range []string{"", "1", "one.two", "v1.16.1"} {
		require.ErrorContains(t, c.LoadSnapshot(t.Context(), load), "of the vmm", version)
	}
}

func TestSnapshotDeadlinesGrowWithMemory(t *testing.T) {
	assert.Equal(t, StartTimeout+32*time.Second, snapshotTimeout(512))
	assert.Equal(t, StartTimeout+512*time.Second, snapshotTimeout(8192))
	c := NewClient("/nonexistent/s")
	require.ErrorIs(t, c.CreateSnapshot(t.Context(), SnapshotCreate{}), errNoMemorySize)
	require.ErrorIs(t, c.LoadSnapshot(t.Context(), SnapshotLoad{}), errNoMemorySize)
}
