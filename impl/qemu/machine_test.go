package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func TestUnsupportedCallsSaySo(t *testing.T) {
	m := newLiveMachine(t)
	for _, call := range [][2]string{
		{"PUT", "/vsock"}, {"PUT", "/mmds"}, {"PATCH", "/mmds"},
		{"PUT", "/balloon"}, {"PATCH", "/balloon"}, {"PUT", "/cpu-config"}, {"PUT", "/serial"}, {"PUT", "/pmem/a"}, {"PUT", "/hotplug/memory"},
	} {
		m.refused(call[0], call[1], "{}", "firecracker-qemu has no "+call[0]+" ")
	}
	m.refused("PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64,"huge_pages":"2M"}`, "huge_pages")
	m.refused("PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"T2"}`, "cpu_template")
	m.refused("PUT", "/drives/a", `{"drive_id":"a","path_on_host":"/x","is_root_device":false,"socket":"/s"}`, "vhost-user")
}

func TestMachineConfigPatch(t *testing.T) {
	m := newLiveMachine(t)
	m.must("PATCH", "/machine-config", `{"vcpu_count":2}`)
	m.must("PATCH", "/machine-config", `{"mem_size_mib":64,"track_dirty_pages":true}`)
	// A refused patch changes nothing, not even its good half.
	m.refused("PATCH", "/machine-config", `{"vcpu_count":4,"mem_size_mib":0}`, "memory size")
	m.refused("PATCH", "/machine-config", `{"vcpu_count":3,"smt":true}`, "The number of vCPUs must be")
	status, body := m.call("GET", "/machine-config", "")
	assert.Equal(t, 200, status)
	assert.JSONEq(t, `{"vcpu_count":2,"mem_size_mib":64,"smt":false,"track_dirty_pages":true,"huge_pages":"None"}`, body)
}

func TestDrivesKeepTheirOrder(t *testing.T) {
	m := newLiveMachine(t)
	path := disk(t, 4096)
	put := func(id string, root bool) {
		m.must("PUT", "/drives/"+id, fmt.Sprintf(`{"drive_id":%q,"path_on_host":%q,"is_root_device":%v}`, id, path, root))
	}
	order := func() (ids string) {
		for _, d := range m.drives {
			ids += d.DriveID
		}
		return ids
	}
	put("a", false)
	put("b", false)
	put("c", true)
	assert.Equal(t, "cab", order(), "the root drive is first")
	put("a", false)
	assert.Equal(t, "cab", order(), "one that is configured again keeps its place")
	put("c", false)
	put("b", true)
	assert.Equal(t, "bca", order())
	m.refused("PUT", "/drives/d", `{"drive_id":"d","path_on_host":"/x","is_root_device":false,"cache_type":"Fast"}`, "unknown variant `Fast`")
	m.refused("PUT", "/drives/d", `{"drive_id":"d","path_on_host":"/x","is_root_device":false,"io_engine":"Fast"}`, "unknown variant `Fast`")
	m.refused("PUT", "/drives/d", `{"drive_id":"d","path_on_host":"/","is_root_device":false}`, "Is a directory (os error 21) /")
}

func TestLoggerAndMetrics(t *testing.T) {
	m := newLiveMachine(t)
	dir := t.TempDir()
	logFile, metrics := filepath.Join(dir, "log"), filepath.Join(dir, "metrics")
	m.must("PUT", "/logger", fmt.Sprintf(`{"log_path":%q,"level":"Debug","show_level":true}`, logFile))
	assert.FileExists(t, logFile)
	t.Cleanup(func() { assert.NoError(t, m.cfg.sink.out.Close()) })
	m.refused("PUT", "/logger", `{"level":"loud"}`, "Logger error")
	m.refused("PUT", "/logger", `{"log_path":"/nonexistent/x"}`, "No such file or directory (os error 2)")
	m.refused("PUT", "/actions", `{"action_type":"FlushMetrics"}`, "before starting the microVM")
	m.must("PUT", "/metrics", fmt.Sprintf(`{"metrics_path":%q}`, metrics))
	m.refused("PUT", "/metrics", fmt.Sprintf(`{"metrics_path":%q}`, metrics), "Reinitialization of metrics not allowed")
	m.powerOn()
	m.must("PUT", "/actions", `{"action_type":"FlushMetrics"}`)
	raw, err := os.ReadFile(metrics)
	require.NoError(t, err)
	assert.Contains(t, string(raw), "utc_timestamp_ms")
}

// blockNode is the part of QEMU's view of a drive that the tests look at.
type blockNode struct {
	Device string `json:"device"`
	Node   string `json:"node-name"`
	File   string `json:"file"`
	Image  struct {
		Size int64 `json:"virtual-size"`
	} `json:"image"`
}

func (m *liveMachine) node(name string) blockNode {
	m.t.Helper()
	var nodes []blockNode
	require.NoError(m.t, m.guest.qmp.do("query-named-block-nodes", nil, &nodes))
	for _, n := range nodes {
		if n.Node == name {
			return n
		}
	}
	require.FailNow(m.t, "no such node", "%s in %+v", name, nodes)
	return blockNode{}
}

func (m *liveMachine) limits(drive string) (limits map[string]any) {
	m.t.Helper()
	get := object{"path": "/objects/limits_" + drive, "property": "limits"}
	require.NoError(m.t, m.guest.qmp.do("qom-get", get, &limits))
	return limits
}

func TestDrivesWhileTheGuestRuns(t *testing.T) {
	m := newLiveMachine(t)
	first, second := disk(t, 1<<20), disk(t, 2<<20)
	m.refused("PATCH", "/drives/root", `{"drive_id":"root"}`, "before starting")
	m.must("PUT", "/drives/root", fmt.Sprintf(`{"drive_id":"root","path_on_host":%q,"is_root_device":true,
		"rate_limiter":{"bandwidth":{"size":20000000,"refill_time":1000}}}`, first))
	m.powerOn()
	assert.EqualValues(t, 20000000, m.limits("root")["bps-total"])
	assert.EqualValues(t, 20000000, m.limits("root")["bps-total-max"])

	m.must("PATCH", "/drives/root", fmt.Sprintf(`{"drive_id":"root","path_on_host":%q}`, second))
	assert.Equal(t, second, m.node("r_root").File)
	assert.EqualValues(t, 2<<20, m.node("t_root").Image.Size)
	m.must("PATCH", "/drives/root", fmt.Sprintf(`{"drive_id":"root","path_on_host":%q}`, first))
	assert.Equal(t, first, m.node("r_root").File)
	assert.EqualValues(t, 1<<20, m.node("t_root").Image.Size)

	m.must("PATCH", "/drives/root", `{"drive_id":"root","rate_limiter":{"ops":{"size":100,"refill_time":1000},"bandwidth":{"size":0,"refill_time":0}}}`)
	assert.EqualValues(t, 100, m.limits("root")["iops-total"])
	assert.EqualValues(t, 0, m.limits("root")["bps-total"], "lifted")

	loop := blockDevice(t, 3<<20)
	m.must("PATCH", "/drives/root", fmt.Sprintf(`{"drive_id":"root","path_on_host":%q}`, loop))
	assert.EqualValues(t, 3<<20, m.node("t_root").Image.Size, "a block device has its size too")
	m.must("PATCH", "/drives/root", fmt.Sprintf(`{"drive_id":"root","path_on_host":%q}`, first))

	m.refused("PATCH", "/drives/root", `{"drive_id":"root","path_on_host":"/nonexistent"}`, "No such file or directory (os error 2)")
	m.refused("PATCH", "/drives/other", `{"drive_id":"other"}`, "Invalid block device ID")
	assert.Equal(t, first, m.node("r_root").File, "a refused patch changes nothing")
	_, config := m.call("GET", "/vm/config", "")
	assert.Contains(t, config, `"is_root_device":true`)
	assert.Contains(t, config, `"ops":{"size":100,"refill_time":1000}`)
}

// blockDevice is a loop device of the given size.
func blockDevice(t *testing.T, size int64) string {
	t.Helper()
	need.Root(t)
	need.Program(t, "losetup")
	out, err := exec.Command("losetup", "--find", "--show", disk(t, size)).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { assert.NoError(t, exec.Command("losetup", "--detach", device).Run()) })
	return device
}

func TestStartTellsWhatQEMUSays(t *testing.T) {
	m := newLiveMachine(t)
	noKernel := disk(t, 4096)
	m.must("PUT", "/boot-source", fmt.Sprintf(`{"kernel_image_path":%q,"initrd_path":%[1]q}`, noKernel))
	begin := time.Now()
	m.refused("PUT", "/actions", `{"action_type":"InstanceStart"}`, "Start microvm error: ")
	assert.Less(t, time.Since(begin), startTimeout/2, "the death of QEMU is noticed, not waited out")
	_, body := m.call("GET", "/", "")
	assert.Contains(t, body, "Not started", "the process lives on")

	m.cfg.QEMU = "/nonexistent/qemu"
	m.refused("PUT", "/actions", `{"action_type":"InstanceStart"}`, "/nonexistent/qemu")
	m.cfg.QEMU = "qemu-system-x86_64"
	m.powerOn() // and a good configuration still starts
}

func TestBrokenQEMUEndsWithOne(t *testing.T) {
	for signal, want := range map[syscall.Signal]string{
		syscall.SIGKILL: "signal: killed",
		syscall.SIGTERM: "exit status 0", // QEMU takes it as a wish; the guest still did not end by itself
	} {
		t.Run(signal.String(), func(t *testing.T) {
			m := newLiveMachine(t)
			m.powerOn()
			require.NoError(t, m.guest.cmd.Process.Signal(signal))
			select {
			case <-m.ended:
			case <-time.After(patience):
				require.FailNow(t, "the end of QEMU was not noticed")
			}
			assert.Equal(t, 1, m.code)
			require.ErrorContains(t, m.failure(), want)
			m.refused("PATCH", "/vm", `{"state":"Paused"}`, "Internal VMM error")
		})
	}
}

func TestStdErrIsBounded(t *testing.T) {
	l := &lastLines{}
	assert.Equal(t, "(nothing)", l.String())
	devnull, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer devnull.Close()
	l.to = devnull
	for range 100 {
		_, err := l.Write([]byte(strings.Repeat("x", 100) + "\n"))
		require.NoError(t, err)
	}
	_, err = l.Write([]byte("the end\n"))
	require.NoError(t, err)
	assert.LessOrEqual(t, len(l.String()), keptStderr)
	assert.True(t, strings.HasSuffix(l.String(), "the end"))
}
