package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSnapshotBodies(t *testing.T) {
	m := newLiveMachine(t)
	const cannot = "An error occurred when deserializing the json body of a request: "
	for _, test := range []struct{ path, body, want string }{
		{"/snapshot", `{}`, "Missing snapshot operation type."},
		{"/snapshot/dance", `{}`, "Invalid request method and/or path: PUT /snapshot/dance."},
		{"/snapshot/create", `{"snapshot_path":"s"}`, cannot + "missing field `mem_file_path`"},
		{"/snapshot/create", `{"mem_file_path":"s"}`, cannot + "missing field `snapshot_path`"},
		{"/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m","version":"1.0"}`, "unknown field `version`"},
		{"/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m","snapshot_type":"Half"}`, cannot + "unknown variant `Half`"},
		{"/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`, "before starting the microVM"},
		{"/snapshot/load", `{"snapshot_path":"s"}`, cannot + "missing field: either `mem_backend` or `mem_file_path` is required"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"m"}}`,
			cannot + "too many fields: either `mem_backend` or `mem_file_path` exclusively is required"},
		{"/snapshot/load", `{"mem_file_path":"m"}`, "missing field `snapshot_path`"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_backend":{"backend_path":"m"}}`, "missing field `backend_type`"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_backend":{"backend_type":"Tape","backend_path":"m"}}`, "unknown variant `Tape`, expected `File` or `Uffd`"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m","x":1}}`, "unknown field `x`"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_file_path":"m","huge_pages":"None"}`, "unknown field `huge_pages`"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_file_path":"m","network_overrides":[{"host_dev_name":"t"}]}`, "missing field `iface_id`"},
		{"/snapshot/load", `{"snapshot_path":"s","mem_file_path":"m","network_overrides":[{"iface_id":"e","more":1}]}`, "missing field `host_dev_name`"},
	} {
		m.refused("PUT", test.path, test.body, test.want)
	}
	select {
	case <-m.ended:
		require.FailNow(t, "a call that is wrong in itself ends nothing")
	default:
	}
}

// Each call that gives a part of a machine, well or badly, rules a load out; the others do not.
func TestLoadOnlyIntoAnEmptyMachine(t *testing.T) {
	const load = `{"snapshot_path":"/nonexistent/s","mem_file_path":"m"}`
	for call, body := range map[string]string{
		"PUT /machine-config":         `{"vcpu_count":1,"mem_size_mib":128}`,
		"PATCH /machine-config":       `{"vcpu_count":1}`,
		"PUT /boot-source":            `{"kernel_image_path":"/nonexistent"}`,
		"PUT /drives/a":               `{"drive_id":"a","path_on_host":"/nonexistent","is_root_device":false}`,
		"PUT /network-interfaces/a":   `{"iface_id":"a","host_dev_name":"nonexistent"}`,
		"PUT /entropy":                `{}`,
		"PUT /logger":                 `{}`,
		"PUT /actions":                `{"action_type":"InstanceStart"}`,
		"PUT /drives/b":               `{"not":"decoded"}`,
		"PATCH /vm":                   `{"state":"Paused"}`,
		"PATCH /network-interfaces/a": `{"iface_id":"a"}`,
	} {
		m := newLiveMachine(t)
		method, path, _ := strings.Cut(call, " ")
		m.call(method, path, body)
		want := "Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)"
		harmless := map[string]bool{"PUT /logger": true, "PUT /actions": true, "PUT /drives/b": true, "PATCH /vm": true, "PATCH /network-interfaces/a": true}[call]
		if !harmless {
			want = "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
		}
		m.refused("PUT", "/snapshot/load", load, want)
		select {
		case <-m.ended:
			assert.True(t, harmless, "%s: the process lives on", call)
			assert.Equal(t, exitError, m.code)
			require.ErrorContains(t, m.failure(), want)
			m.refused("PUT", "/snapshot/load", load, want) // it is about to end, and says so
		default:
			assert.False(t, harmless, "%s: a failed load ends the process", call)
		}
	}
}

// scripted is a paused machine whose QEMU is a script.
func scripted(t *testing.T, answer func(command string) string) *liveMachine {
	t.Helper()
	m := newLiveMachine(t)
	memory, err := newMemory(1 << 20)
	require.NoError(t, err)
	cmd := exec.Command("sleep", "3600")
	require.NoError(t, cmd.Start())
	g := &guest{cmd: cmd, stderr: &lastLines{to: os.Stderr}, exited: make(chan struct{}), version: "7.2"}
	g.qmp = dialPeer(t, answer, g.onEvent)
	go func() {
		g.err = cmd.Wait()
		close(g.exited)
	}()
	m.memory, m.guest, m.state = memory, g, paused
	return m
}

func TestCreateTellsWhatFails(t *testing.T) {
	dir := t.TempDir()
	create := func(state, memory string) string {
		return fmt.Sprintf(`{"snapshot_path":%q,"mem_file_path":%q}`, state, memory)
	}
	m := scripted(t, func(string) string { return `{"error":{"class":"GenericError","desc":"no disk"},"id":%d}` })
	m.refused("PUT", "/snapshot/create", create(filepath.Join(dir, "s"), filepath.Join(dir, "m")), "Create snapshot error: Cannot save the microVM state: qmp xen-save-devices-state: GenericError: no disk")
	assert.NoFileExists(t, filepath.Join(dir, "s"))

	silent := scripted(t, func(string) string { return `{"return":{},"id":%d}` })
	silent.refused("PUT", "/snapshot/create", create(filepath.Join(dir, "s"), filepath.Join(dir, "m")), "Cannot serialize the microVM state: the device state has 0 bytes")
	_, info := silent.call("GET", "/", "")
	assert.Contains(t, info, "Paused", "it stays as it was")

	gone := scripted(t, func(string) string { return "hang up" })
	gone.refused("PUT", "/snapshot/create", create(filepath.Join(dir, "s"), filepath.Join(dir, "m")), "qemu has closed its control connection")
}

func TestLoadWaitsForQEMU(t *testing.T) {
	for name, test := range map[string]struct {
		answers []string
		want    string
	}{
		"loads":       {[]string{"inmigrate", "inmigrate", "paused"}, ""},
		"runs":        {[]string{"inmigrate", "running"}, `load the device state: qemu is "running"`},
		"breaks":      {[]string{"inmigrate", "internal-error"}, `load the device state: qemu is "internal-error"`},
		"ends itself": {[]string{"inmigrate", "hang up"}, "closed its control connection"},
	} {
		t.Run(name, func(t *testing.T) {
			at := 0
			g := &guest{}
			g.qmp = dialPeer(t, func(command string) string {
				assert.Equal(t, "query-status", command)
				status := test.answers[at]
				at++
				if status == "hang up" {
					return status
				}
				return `{"return":{"status":"` + status + `"},"id":%d}`
			}, func(string, json.RawMessage) {})
			err := g.awaitLoaded()
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.want)
		})
	}
}

// TestS08_LoadIntoAnotherQEMU uses a real QEMU and a state file that says it is of another version, and one whose
// device state is rubbish with a good checksum.
func TestS08_LoadIntoAnotherQEMU(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*description)
		want   string
	}{
		"other version":   {func(d *description) { d.QEMU = "0.9" }, "Failed to build microVM from snapshot: the snapshot is of qemu 0.9, and this is "},
		"rubbish devices": {func(*description) {}, "Failed to build microVM from snapshot: "},
		"other machine":   {func(d *description) { d.Machine = "pc" }, `Invalid snapshot state: `},
	} {
		t.Run(name, func(t *testing.T) {
			m := newLiveMachine(t)
			dir := t.TempDir()
			d := description{QEMU: qemuVersionHere(t), Machine: machineType, Accel: "tcg", CPU: "max", Config: m.machine.machine}
			test.change(&d)
			content, err := encodeState(d, []byte("this is no device state"))
			require.NoError(t, err)
			state, memory := filepath.Join(dir, "state"), filepath.Join(dir, "memory")
			require.NoError(t, writeState(state, content))
			require.NoError(t, os.WriteFile(memory, nil, 0o600))
			require.NoError(t, os.Truncate(memory, 128<<20))
			begin := time.Now()
			m.refused("PUT", "/snapshot/load", fmt.Sprintf(`{"snapshot_path":%q,"mem_file_path":%q}`, state, memory), test.want)
			assert.Less(t, time.Since(begin), loadTimeout, "the end of QEMU is noticed, not waited out")
			select {
			case <-m.ended:
				assert.Equal(t, exitError, m.code)
			case <-time.After(patience):
				require.FailNow(t, "the process goes on")
			}
		})
	}
}

func qemuVersionHere(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("qemu-system-x86_64", "--version").Output()
	require.NoError(t, err)
	major, minor := 0, 0
	_, err = fmt.Sscanf(string(out), "QEMU emulator version %d.%d", &major, &minor)
	require.NoError(t, err)
	return fmt.Sprintf("%d.%d", major, minor)
}
