package firecracker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// serve answers on a Unix socket with handler, and counts the connections.
func serve(t *testing.T, handler http.HandlerFunc) (*Client, *atomic.Int32) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fcc") //nolint:usetesting // a socket's path must stay short
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	var connections atomic.Int32
	server := &http.Server{Handler: handler, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	c := NewClient(filepath.Join(dir, "s"))
	t.Cleanup(func() {
		c.Close()
		assert.NoError(t, server.Close())
		<-served
	})
	return c, &connections
}

func TestA05_CallsOnTheWire(t *testing.T) {
	var got []string
	c, connections := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		assert.Empty(t, r.TransferEncoding, "Firecracker does not decode chunks")
		assert.EqualValues(t, len(body), r.ContentLength)
		got = append(got, fmt.Sprintf("%s %s %s", r.Method, r.URL.Path, body))
		w.WriteHeader(http.StatusNoContent)
	})
	ctx := t.Context()
	for _, call := range []struct {
		do   func() error
		want string
	}{
		{func() error { return c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 2, MemSizeMiB: 512}) },
			`PUT /machine-config {"vcpu_count":2,"mem_size_mib":512}`},
		{func() error { return c.PutBootSource(ctx, BootSource{KernelImagePath: "/k", BootArgs: "quiet"}) },
			`PUT /boot-source {"kernel_image_path":"/k","boot_args":"quiet"}`},
		{func() error {
			return c.PutDrive(ctx, Drive{DriveID: "root", PathOnHost: "/d", IsRootDevice: true, IsReadOnly: true})
		},
			`PUT /drives/root {"drive_id":"root","path_on_host":"/d","is_root_device":true,"is_read_only":true}`},
		{func() error {
			return c.PutNetworkInterface(ctx, NetworkInterface{IfaceID: "eth0", HostDevName: "tap0"})
		},
			`PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap0"}`},
		{func() error { return c.PutEntropy(ctx, Entropy{}) }, `PUT /entropy {}`},
		{func() error {
			return c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 1, MemSizeMiB: 128, TrackDirtyPages: true})
		},
			`PUT /machine-config {"vcpu_count":1,"mem_size_mib":128,"track_dirty_pages":true}`},
		{func() error {
			return c.PatchNetworkInterface(ctx, NetworkInterfacePatch{IfaceID: "eth0",
				RxRateLimiter: &RateLimiter{Bandwidth: &TokenBucket{}}})
		},
			`PATCH /network-interfaces/eth0 {"iface_id":"eth0","rx_rate_limiter":{"bandwidth":{"size":0,"refill_time":0}}}`},
		{func() error {
			return c.CreateSnapshot(ctx, SnapshotCreate{Type: SnapshotDiff, StatePath: "s", MemoryPath: "m", MemSizeMiB: 128})
		},
			`PUT /snapshot/create {"snapshot_type":"Diff","snapshot_path":"s","mem_file_path":"m"}`},
		{func() error { return c.Start(ctx) }, `PUT /actions {"action_type":"InstanceStart"}`},
		{func() error { return c.CtrlAltDel(ctx) }, `PUT /actions {"action_type":"SendCtrlAltDel"}`},
		{func() error { return c.Pause(ctx) }, `PATCH /vm {"state":"Paused"}`},
		{func() error { return c.Resume(ctx) }, `PATCH /vm {"state":"Resumed"}`},
	} {
		require.NoError(t, call.do())
		assert.Equal(t, call.want, got[len(got)-1])
	}
	assert.EqualValues(t, 1, connections.Load(), "one kept-alive connection")
	c.Close()
	require.NoError(t, c.Resume(ctx), "usable after Close")
	assert.EqualValues(t, 2, connections.Load())
}

func TestA05_Answers(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Zero(t, r.ContentLength, "Firecracker refuses a GET with a body")
		answers := map[string]string{
			"/":          `{"id":"i","state":"Paused","vmm_version":"1.16.1","app_name":"Firecracker"}`,
			"/version":   `{"firecracker_version":"1.16.1"}`,
			"/vm/config": `{"machine-config":{"vcpu_count":2,"mem_size_mib":512,"smt":false},"drives":[{"drive_id":"root"}],"vsock":null}`,
		}
		_, err := io.WriteString(w, answers[r.URL.Path])
		assert.NoError(t, err)
	})
	info, err := c.Info(t.Context())
	require.NoError(t, err)
	assert.Equal(t, InstanceInfo{ID: "i", State: StatePaused, VMMVersion: "1.16.1", AppName: "Firecracker"}, info)
	version, err := c.Version(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "1.16.1", version)
	config, err := c.VMConfig(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 512, config.Machine.MemSizeMiB)
	require.Len(t, config.Drives, 1)
}

func TestA05_Refusals(t *testing.T) {
	var status int
	var body string
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, err := io.WriteString(w, body)
		assert.NoError(t, err)
	})
	for _, test := range []struct {
		status     int
		body, want string
	}{
		{400, `{"fault_message":"no kernel"}`, "no kernel"},
		{413, `{"fault_message":"too large"}`, "too large"},
		{503, `{ "error": "Too many open connections" }`, "Too many open connections"},
		{400, "{ \"error\": \"bad\nAll dropped.\" }", "{ \"error\": \"bad\nAll dropped.\" }"},
		{500, "", ""},
		{502, strings.Repeat("x", 5000), strings.Repeat("x", maxFault)},
	} {
		status, body = test.status, test.body
		err := c.Start(t.Context())
		var refusal *APIError
		require.ErrorAs(t, err, &refusal)
		assert.Equal(t, APIError{Method: "PUT", Path: "/actions", Status: test.status, FaultMessage: test.want}, *refusal)
	}
	assert.Equal(t, "firecracker PUT /x: status 400: why", (&APIError{"PUT", "/x", 400, "why"}).Error())
}

func TestA05_BrokenAnswers(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.WriteString(w, "not json")
		assert.NoError(t, err)
	})
	_, err := c.Info(t.Context())
	var syntax *json.SyntaxError
	require.ErrorAs(t, err, &syntax)
	require.ErrorContains(t, NewClient("/nonexistent/s").Start(t.Context()), "no such file")
}

func TestCallsEndWithTheirContext(t *testing.T) {
	release := make(chan struct{})
	c, _ := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	require.ErrorIs(t, c.Pause(ctx), context.DeadlineExceeded)
}
