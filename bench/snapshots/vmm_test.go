package snapshots_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/transport"
)

// vmm is the API of one VMM's socket, as Firecracker documents it.
type vmm struct {
	b    *testing.B
	http *http.Client
}

func vmmAt(b *testing.B, socket string) vmm {
	b.Helper()
	t := transport.NewUnix(socket)
	b.Cleanup(t.CloseIdleConnections)
	return vmm{b, &http.Client{Transport: t}}
}

func (v vmm) call(method, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(patience(v.b), method, "http://localhost"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := v.http.Do(req)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return err
}

func (v vmm) state(state string) error {
	return v.call(http.MethodPatch, "/vm", map[string]string{"state": state})
}

// snapshot writes state and memory into dir, which it makes afresh.
func (v vmm) snapshot(dir, kind string) error {
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	return v.call(http.MethodPut, "/snapshot/create", map[string]string{
		"snapshot_type": kind, "snapshot_path": filepath.Join(dir, "vmstate"), "mem_file_path": filepath.Join(dir, "memory"),
	})
}

func boxDir(s *harness.System, id string) string { return filepath.Join(s.Dir, "agent/sandboxes", id) }

// processOf finds the program and the environment of the VMM that listens at socket.
func processOf(b *testing.B, socket string) (program string, env []string) {
	b.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(b, err)
	for _, path := range found {
		line, err := os.ReadFile(path)
		args := bytes.Split(line, []byte{0})
		at := slices.IndexFunc(args, func(a []byte) bool { return string(a) == "--api-sock" })
		if err != nil || at < 0 || at+1 >= len(args) || string(args[at+1]) != socket {
			continue
		}
		program, err := os.Readlink(filepath.Join(filepath.Dir(path), "exe"))
		require.NoError(b, err)
		variables, err := os.ReadFile(filepath.Join(filepath.Dir(path), "environ"))
		require.NoError(b, err)
		for v := range bytes.SplitSeq(bytes.Trim(variables, "\x00"), []byte{0}) {
			env = append(env, string(v))
		}
		return program, env
	}
	require.Fail(b, "no VMM listens at "+socket)
	return "", nil
}

// bare is a place where a VMM alone can load a snapshot: a directory with the disk, and a namespace with a TAP.
type bare struct {
	dir, program string
	env          []string
}

const bareNetns = "bench-bare"

func newBare(b *testing.B, s *harness.System, id string) *bare {
	b.Helper()
	v := &bare{dir: harness.Dir(b)}
	v.program, v.env = processOf(b, filepath.Join(boxDir(s, id), "vmm.sock"))
	ip := func(args ...string) {
		out, err := exec.Command("ip", args...).CombinedOutput()
		require.NoError(b, err, "ip %v: %s", args, out)
	}
	ip("netns", "add", bareNetns)
	b.Cleanup(func() { ip("netns", "delete", bareNetns) })
	ip("netns", "exec", bareNetns, "ip", "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
	ip("-n", bareNetns, "link", "set", "tap0", "address", "02:FC:00:00:00:06", "up")
	ip("-n", bareNetns, "address", "add", "169.254.0.22/30", "dev", "tap0")
	return v
}

// answers waits for the daemon of the guest, with programs of some 10 ms each.
const answers = "until curl -s -o /dev/null --max-time 1 http://169.254.0.21:49983/health; do :; done"

// copyDisk puts a snapshot's disk where load's VMM looks for it; forget removes it.
func (v *bare) copyDisk(b *testing.B, snapshot string) (forget func() error) {
	b.Helper()
	disk := filepath.Join(v.dir, "root.disk")
	out, err := exec.Command("cp", "--sparse=always", filepath.Join(snapshot, "root.disk"), disk).CombinedOutput()
	require.NoError(b, err, "%s", out)
	return func() error { return os.Remove(disk) }
}

// load starts a VMM and lets it load and run the snapshot, whose memory is flat in one file. It returns how long
// the start and the load took, and from there to the first answer of the guest; the VMM is gone afterwards.
func (v *bare) load(b *testing.B, snapshot, memory string) (launched, loaded, answered float64) {
	b.Helper()
	socket := filepath.Join(v.dir, "vmm.sock")
	defer func() { assert.NoError(b, os.RemoveAll(socket)) }()
	cmd := exec.Command("unshare", "--mount", "--", "ip", "netns", "exec", bareNetns, v.program, "--api-sock", socket, "--id", "bare")
	cmd.Dir, cmd.Env = v.dir, v.env
	launched = timed(b, func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		for deadline := time.Now().Add(harness.Patience); ; time.Sleep(time.Millisecond) {
			if conn, err := net.Dial("unix", socket); err == nil {
				return conn.Close()
			}
			if time.Now().After(deadline) {
				return errors.New("the VMM does not listen")
			}
		}
	})
	defer func() {
		assert.NoError(b, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	}()
	api := vmmAt(b, socket)
	loaded = timed(b, func() error {
		if err := api.call(http.MethodPut, "/snapshot/load", map[string]any{
			"snapshot_path": filepath.Join(snapshot, "vmstate"), "track_dirty_pages": true,
			"mem_backend": map[string]string{"backend_type": "File", "backend_path": memory},
		}); err != nil {
			return err
		}
		return api.state("Resumed")
	})
	answered = timed(b, func() error {
		return exec.CommandContext(patience(b), "ip", "netns", "exec", bareNetns, "sh", "-c", answers).Run()
	})
	return launched, loaded, answered
}
