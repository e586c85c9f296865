package harness_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
)

func TestAHostIsOneOfItsOwn(t *testing.T) {
	need.Root(t)
	machine := harness.Take(t)
	a, b := harness.NewHost(t, "a"), harness.NewHost(t, "b")
	emptyA, emptyB := a.Take(), b.Take()
	assert.Empty(t, emptyA["processes"])
	assert.Empty(t, emptyA["run"])

	a.Run("ip", "netns", "add", "wrenn-ns-1")
	a.Run("ip", "link", "add", "wrenn-veth1", "type", "veth", "peer", "name", "other")
	a.Run("ip", "addr", "add", "10.12.0.2/31", "dev", "wrenn-veth1")
	a.Run("ip", "link", "set", "wrenn-veth1", "up")
	a.Run("iptables", "-N", "WRENN-FORWARD")
	a.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo x > /run/wrenn-agent.json")
	// What an agent leaves when it is killed: a process that has lost its parent.
	a.Run("sh", "-c", "(sleep 1000; true) >/dev/null 2>&1 & true")
	l, err := a.Listen("tcp", "127.0.0.1:3003")
	require.NoError(t, err)
	defer l.Close()

	diff := strings.Join(emptyA.Diff(a.Take()), "\n")
	for _, want := range []string{
		"+ netns: wrenn-ns-1", "+ links: wrenn-veth1@other", "+ addresses: wrenn-veth1@other", "+ routes: 10.12.0.2/31",
		"+ iptables: :WRENN-FORWARD", "+ forward: 1", "- forward: 0", "+ run: wrenn-agent.json", "+ processes: sleep 1000",
		"+ sockets: tcp 0100007F:0BBB", "+ mounts: /run/netns/wrenn-ns-1",
	} {
		assert.Contains(t, diff, want)
	}
	b.Same(emptyB)
	machine.Same(t)
}

func TestConnectionsAreMadeOnTheHost(t *testing.T) {
	need.Root(t)
	a, b := harness.NewHost(t, "a"), harness.NewHost(t, "b")
	l, err := a.Listen("tcp", "127.0.0.1:3003")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			_ = conn.Close()
		}
	}()
	conn, err := a.DialContext(t.Context(), "tcp", "127.0.0.1:3003")
	require.NoError(t, err)
	said, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(said))
	require.NoError(t, conn.Close())
	_, err = b.DialContext(t.Context(), "tcp", "127.0.0.1:3003")
	require.Error(t, err)
	var d net.Dialer
	if conn, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:3003"); err == nil {
		require.NoError(t, conn.Close())
		require.NotEqual(t, l.Addr().String(), conn.RemoteAddr().String(), "the machine itself listens")
	}
}

// TestMain lets the process that is to be killed run beside its parent, which holds the suites' lock.
func TestMain(m *testing.M) {
	if os.Getenv(killedEnv) != "" {
		os.Exit(m.Run())
	}
	harness.Main(m)
}

// killedEnv makes TestAKilledTestLeavesNothing the one that is killed.
const killedEnv = "WRENN_HARNESS_KILLED"

// TestAKilledTestLeavesNothing runs itself as another process and kills that.
func TestAKilledTestLeavesNothing(t *testing.T) {
	need.Root(t)
	if mark := os.Getenv(killedEnv); mark != "" {
		h := harness.NewHost(t, "killed")
		h.Run("sh", "-c", "(cp /bin/sleep "+mark+"; exec "+mark+" 1000) >/dev/null 2>&1 & true")
		require.NoError(t, os.WriteFile(mark+".ready", nil, 0o600))
		select {}
	}
	mark := filepath.Join(harness.Dir(t), "sleeper")
	cmd := exec.Command(os.Args[0], "-test.run", "^TestAKilledTestLeavesNothing$")
	cmd.Env = append(os.Environ(), killedEnv+"="+mark)
	require.NoError(t, cmd.Start())
	running := func() bool {
		for _, p := range harness.Take(t)["processes"] {
			if strings.HasPrefix(p, mark) {
				return true
			}
		}
		return false
	}
	require.Eventually(t, func() bool {
		_, err := os.Stat(mark + ".ready")
		return err == nil && running()
	}, 10*time.Second, 10*time.Millisecond, "the sleeper does not start")
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // it says that it was killed
	require.Eventually(t, func() bool { return !running() }, 10*time.Second, 10*time.Millisecond, "the sleeper outlives its host")
}

func TestArtifactsAreFiledUnderTheTestsName(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(harness.ArtifactsEnv, dir)
	t.Run("a part", func(t *testing.T) {
		harness.Artifact(t, "agent.log", []byte("first"))
		harness.Artifact(t, "agent.log", []byte("second"))
	})
	for name, content := range map[string]string{"agent.log": "first", "2-agent.log": "second"} {
		got, err := os.ReadFile(filepath.Join(dir, "TestArtifactsAreFiledUnderTheTestsName_a_part", name))
		require.NoError(t, err)
		assert.Equal(t, content, string(got))
	}
}
