package e2e_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/envdclient"
)

// TestA01_OneSandboxDoesEverything walks through what the other tests repeat or break.
func TestA01_OneSandboxDoesEverything(t *testing.T) {
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	box := s.CreateWith(apiclient.CreateRequest{
		TemplateID: "base", Timeout: 600, Metadata: map[string]string{"job": "a b&c=d"}, EnvVars: map[string]string{"GREETING": "hello"},
	})
	require.NotNil(t, box.Wrenn)
	assert.Equal(t, "cold", box.Wrenn.BootPath)
	var names []string
	for _, stage := range box.Wrenn.Stages {
		names = append(names, stage.Name)
	}
	assert.Equal(t, []string{"slot", "journal", "disk", "network", "vmm", "kernel", "init", "envd"}, names)

	assert.Contains(t, s.Exec(box, "uname", "-a"), box.SandboxID, "the guest's host name is the sandbox's id")
	assert.NotEqual(t, s.Exec(box, "cat", "/proc/sys/kernel/random/boot_id"), hostFile(t, "/proc/sys/kernel/random/boot_id"), "the host's kernel answered")
	assert.Equal(t, "42\n", s.Exec(box, "python3", "-c", "print(6*7)"))
	assert.Equal(t, "user\n/home/user\nhello\n", s.Exec(box, "bash", "-c", "whoami; pwd; echo $GREETING"))
	assert.Equal(t, "root\n", s.Exec(box, "sudo", "-n", "whoami"))
	assert.Contains(t, s.Exec(box, "git", "--version"), "git version")

	guest := s.Guest(box)
	text := strings.Repeat("line\n", 100_000)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	require.NoError(t, guest.WriteFile(ctx, "", "/home/user/new/file.txt", strings.NewReader(text), int64(len(text))))
	r, err := guest.ReadFile(ctx, "", "/home/user/new/file.txt")
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.Equal(t, text, string(got))

	session, err := guest.PTY(ctx, envdclient.PTYRequest{Cmd: "/bin/bash", Args: []string{"-i", "-l"}, Env: map[string]string{"TERM": "dumb"}})
	require.NoError(t, err)
	_, err = session.Write([]byte("echo I am $((40+2)) on $(tty); exit 7\n"))
	require.NoError(t, err)
	out, err := io.ReadAll(session)
	require.NoError(t, err)
	assert.Contains(t, string(out), "I am 42 on /dev/pts/")
	exit, err := session.Wait()
	require.NoError(t, err)
	assert.Equal(t, 7, exit.Code)

	found, err := s.Client.List(ctx, map[string]string{"job": "a b&c=d"})
	require.NoError(t, err)
	require.Len(t, found, 1)
	assert.Equal(t, box.SandboxID, found[0].SandboxID)
	none, err := s.Client.List(ctx, map[string]string{"job": "other"})
	require.NoError(t, err)
	assert.Empty(t, none)

	require.NoError(t, s.Client.Kill(ctx, box.SandboxID))
	_, err = s.Client.Get(ctx, box.SandboxID)
	assert.True(t, apiclient.IsNotFound(err), "%v", err)
	s.Stop()
	before.Same(t)
}

// TestA07_TwentyInARow makes and ends twenty sandboxes, three where each takes a minute (-short); the host is
// as before after each.
func TestA07_TwentyInARow(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	idle := harness.Take(t)
	for i := range rounds {
		start := time.Now()
		box := s.Create()
		assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"))
		require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
		t.Logf("sandbox %2d: %v, of that outside VMM and guest %.1f ms", i+1, time.Since(start).Round(time.Millisecond), outside(box))
		idle.Same(t)
	}
	s.Stop()
	before.Same(t)
}

// outside is the time of a create that neither the VMM nor the guest took, in ms.
func outside(box apiclient.Sandbox) float64 {
	ms := box.Wrenn.TotalMs
	for _, stage := range box.Wrenn.Stages {
		switch stage.Name {
		case "vmm", "kernel", "init", "envd":
			ms -= stage.Ms
		}
	}
	return ms
}

// TestA06_FourAtOnce makes four sandboxes, or two where each takes a minute (-short), at the same time and uses
// them at the same time.
func TestA06_FourAtOnce(t *testing.T) {
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	boxes := make([]apiclient.Sandbox, 4)
	if testing.Short() {
		boxes = boxes[:2]
	}
	var wg sync.WaitGroup
	for i := range boxes {
		wg.Go(func() {
			var err error
			boxes[i], err = s.TryCreate(apiclient.CreateRequest{TemplateID: "base", Timeout: 3600})
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	for _, box := range boxes {
		wg.Go(func() {
			out, err := s.TryExec(box, "hostname")
			assert.NoError(t, err)
			assert.Equal(t, box.SandboxID+"\n", out)
		})
	}
	wg.Wait()
	list, err := s.Client.List(t.Context(), nil)
	require.NoError(t, err)
	assert.Len(t, list, len(boxes))
	s.Stop() // ends the sandboxes too
	before.Same(t)
}

func TestA02_ASandboxPastItsTimeoutIsGone(t *testing.T) {
	s := harness.Start(t, harness.Dir(t))
	idle := harness.Take(t)
	box := s.Create()
	require.NoError(t, s.Client.SetTimeout(t.Context(), box.SandboxID, 1))
	require.Eventually(t, func() bool {
		_, err := s.Client.Get(t.Context(), box.SandboxID)
		return apiclient.IsNotFound(err)
	}, harness.Patience, 100*time.Millisecond, "it outlived its timeout")
	list, err := s.Client.List(t.Context(), nil)
	require.NoError(t, err)
	assert.Empty(t, list)
	idle.Same(t)
	_, err = s.TryExec(box, "true")
	require.Error(t, err, "the proxy still reaches it")
}

// TestN09_AGuestReachesNeitherHostNorNeighbour tries what a hostile guest would try first.
func TestN09_AGuestReachesNeitherHostNorNeighbour(t *testing.T) {
	s := harness.Start(t, harness.Dir(t))
	a := s.Create()
	s.Create()
	// The host's own services must not answer either, so here is one on every address.
	open, err := net.Listen("tcp4", "0.0.0.0:0")
	require.NoError(t, err)
	defer func() { assert.NoError(t, open.Close()) }()
	probe := `import socket
for host, port in [("10.11.0.1", 49983), ("10.11.0.2", 49983), ("10.12.0.2", 22), ("10.12.0.5", 49983), ("169.254.169.254", 80), ("169.254.0.22", 22)] + [(h, p) for h in HOSTS for p in PORTS]:
    s = socket.socket(); s.settimeout(1)
    try:
        s.connect((host, port)); s.getpeername(); print("REACHED", host, port)
    except OSError:
        pass
    s.close()
print("done")`
	ports := portsOf(t, s.APIURL, s.SandboxURL, "http://"+open.Addr().String())
	probe = strings.NewReplacer("HOSTS", hostAddresses(t), "PORTS", ports).Replace(probe)
	assert.Equal(t, "done\n", s.Exec(a, "python3", "-c", probe))
}

// TestG02_OutputOfManyPrograms starts programs side by side; none may lose output or its exit code.
func TestG02_OutputOfManyPrograms(t *testing.T) {
	s := harness.Start(t, harness.Dir(t))
	box := s.Create()
	guest := s.Guest(box)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
			defer cancel()
			var out bytes.Buffer
			exit, err := guest.Exec(ctx, envdclient.ExecRequest{Cmd: "bash", Args: []string{"-c", "seq 20000; exit " + string(rune('0'+i))}, Stdout: &out})
			assert.NoError(t, err)
			assert.Equal(t, i, exit.Code)
			assert.Equal(t, 108894, out.Len())
		})
	}
	wg.Wait()
}
