package e2e_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// TestA05_ACreateThatFailsSaysWhyAndLeavesNothing has one case per reason.
func TestA05_ACreateThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	noVMM := filepath.Join(harness.Dir(t), "gone")
	tooShort := halfABoot(t).String()
	for _, c := range []struct {
		name     string
		flags    []string
		template string
		code     int
		says     string
	}{
		{"unknown template", nil, "nosuch", http.StatusNotFound, "nosuch"},
		{"no memory", []string{"--memory", "500"}, "base", http.StatusServiceUnavailable, "not enough memory"},
		{"VMM missing", []string{"--firecracker-qemu", noVMM, "--firecracker", noVMM, "--vmm", ""}, "base", http.StatusServiceUnavailable, noVMM},
		{"guest too slow", []string{"--boot-timeout", tooShort}, "base", http.StatusInternalServerError, "did not answer within " + tooShort},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := harness.Start(t, harness.Dir(t), c.flags...)
			idle := harness.Take(t)
			_, err := s.Client.Create(t.Context(), apiclient.CreateRequest{TemplateID: c.template})
			var refusal *apiclient.Error
			require.ErrorAs(t, err, &refusal)
			assert.Equal(t, c.code, refusal.Code, refusal.Message)
			assert.Contains(t, refusal.Message, c.says)
			t.Log(refusal)
			list, err := s.Client.List(t.Context(), nil)
			require.NoError(t, err)
			assert.Empty(t, list)
			idle.Same(t)
			left, err := os.ReadDir(filepath.Join(s.Dir, "agent/sandboxes"))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

// halfABoot is a time at which a create on this machine has started its VMM, but the guest's daemon does not
// answer yet.
func halfABoot(t *testing.T) time.Duration {
	t.Helper()
	s := harness.Start(t, harness.Dir(t))
	defer s.Stop()
	box := s.Create()
	var vmm float64 // ms until the VMM runs
	for _, stage := range box.Wrenn.Stages {
		vmm += stage.Ms
		if stage.Name == "vmm" {
			break
		}
	}
	return time.Duration((vmm + box.Wrenn.TotalMs) / 2 * float64(time.Millisecond)).Round(time.Millisecond)
}

// TestF01_AKilledAgentIsClearedUpAfter kills everything during a create, beside a sandbox that runs.
func TestF01_AKilledAgentIsClearedUpAfter(t *testing.T) {
	before := harness.Take(t)
	dir := harness.Dir(t)
	s := harness.Start(t, dir)
	idle := harness.Take(t)
	lives := s.Create()
	s.Exec(lives, "bash", "-c", "echo still here > /home/user/note; sleep 1000 >/dev/null 2>&1 & disown")
	oneSandbox := harness.Take(t)

	creating := make(chan error, 1)
	go func() {
		_, err := s.Client.Create(context.Background(), apiclient.CreateRequest{TemplateID: "base"})
		creating <- err
	}()
	require.Eventually(t, func() bool {
		sockets, err := filepath.Glob(filepath.Join(dir, "agent/sandboxes/*/vmm.sock"))
		return err == nil && len(sockets) == 2
	}, harness.Patience, time.Millisecond, "the second sandbox did not get as far as its VMM")
	s.Kill()
	require.Error(t, <-creating)
	assert.NotEqual(t, oneSandbox["vmms"], harness.Take(t)["vmms"], "the kill left nothing to clear up")

	s = harness.Start(t, dir)
	oneSandbox.Same(t)
	list, err := s.Client.List(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, list, 1, "what was half made is listed, or what ran is not")
	assert.Equal(t, lives.SandboxID, list[0].SandboxID)
	assert.Equal(t, "still here\n1\n", s.Exec(lives, "bash", "-c", "cat /home/user/note; pgrep -xc sleep"), "the sandbox that ran was not left running")
	assert.Equal(t, "ok\n", s.Exec(s.Create(), "echo", "ok"), "the host is not usable")

	// Once more with nothing under way: everything is taken over, and the end leaves nothing.
	s.Kill()
	s = harness.Start(t, dir)
	list, err = s.Client.List(t.Context(), nil)
	require.NoError(t, err)
	assert.Len(t, list, 2)
	for _, box := range list {
		require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
	}
	idle.Same(t)
	s.Stop()
	before.Same(t)
}

// TestF01_AStartThatIsRefusedChangesNothing has the ways in which a second start meets a first.
func TestF01_AStartThatIsRefusedChangesNothing(t *testing.T) {
	before := harness.Take(t)
	dir := harness.Dir(t)
	s := harness.Start(t, dir)
	box := s.Create()
	running := harness.Take(t)

	assert.Contains(t, harness.StartFails(t, dir), "another agent")
	assert.Contains(t, harness.StartFails(t, harness.Dir(t)), "another agent")
	_, errOut, code := wrenn(t, s, "", "exec", box.SandboxID, "--", "true")
	assert.Zero(t, code, "the second start took the first one's address file away: %s", errOut)
	running.Same(t)

	// Whoever comes next after a crash, in another directory, must not take what the sandbox still uses.
	s.Kill()
	other := harness.Dir(t)
	assert.Contains(t, harness.StartFails(t, other), "wrenn up --dir "+dir)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	assert.Contains(t, harness.StartFails(t, dir, "--agent-listen", busy.Addr().String()), "address already in use")
	require.NoError(t, busy.Close())
	running.Same(t)

	s = harness.Start(t, dir)
	assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"))
	s.Stop()
	before.Same(t)
	s = harness.Start(t, other)
	s.Stop()
}

// TestF03_AVMMThatDiesMakesItsSandboxFail reboots a guest from inside, which ends its VMM.
func TestF03_AVMMThatDiesMakesItsSandboxFail(t *testing.T) {
	s := harness.Start(t, harness.Dir(t))
	idle := harness.Take(t)
	box := s.Create()
	_, err := s.TryExec(box, "sudo", "-n", "bash", "-c", "echo b > /proc/sysrq-trigger")
	require.Error(t, err, "the program that pulled the plug came back")
	idle.Same(t)
	require.Eventually(t, func() bool {
		_, err := s.TryExec(box, "true")
		return err != nil
	}, harness.Patience, 100*time.Millisecond)
	if err := s.Client.Kill(t.Context(), box.SandboxID); err != nil {
		assert.True(t, apiclient.IsNotFound(err), "%v", err)
	}
	assert.Equal(t, "ok\n", s.Exec(s.Create(), "echo", "ok"))
}

// TestV01_HostileNamesAreRefusedAtTheAPI tries names that would matter if one became part of a path.
func TestV01_HostileNamesAreRefusedAtTheAPI(t *testing.T) {
	s := harness.Start(t, harness.Dir(t))
	idle := harness.Take(t)
	for _, name := range []string{"../x", "%2e%2e", "a\x00b", strings.Repeat("a", 65), "/etc/passwd", "..", "a/b", `a\b`} {
		_, err := s.Client.Create(t.Context(), apiclient.CreateRequest{TemplateID: name})
		var refusal *apiclient.Error
		require.ErrorAs(t, err, &refusal, "%q", name)
		assert.Equal(t, http.StatusBadRequest, refusal.Code, "%q: %s", name, refusal.Message)
		assert.Contains(t, refusal.Message, "template", "%q", name)
		_, err = s.Client.Get(t.Context(), name)
		require.ErrorAs(t, err, &refusal, "%q", name)
		assert.Contains(t, []int{http.StatusBadRequest, http.StatusNotFound}, refusal.Code, "%q: %s", name, refusal.Message)
		require.Error(t, s.Client.Kill(t.Context(), name), "%q", name)
	}
	idle.Same(t)
}

func hostFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

// hostAddresses is a Python list of the host's own IPv4 addresses.
func hostAddresses(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	var quoted []string
	for _, a := range addrs {
		ip, _, err := net.ParseCIDR(a.String())
		require.NoError(t, err)
		if ip.To4() != nil && !ip.IsLoopback() {
			quoted = append(quoted, `"`+ip.String()+`"`)
		}
	}
	return "[" + strings.Join(quoted, ",") + "]"
}

// portsOf is a Python list of the ports of URLs, and a few that hosts often serve.
func portsOf(t *testing.T, urls ...string) string {
	t.Helper()
	ports := []string{"22", "80"}
	for _, raw := range urls {
		u, err := url.Parse(raw)
		require.NoError(t, err)
		require.NotEmpty(t, u.Port(), errors.New(raw))
		ports = append(ports, u.Port())
	}
	return "[" + strings.Join(ports, ",") + "]"
}
