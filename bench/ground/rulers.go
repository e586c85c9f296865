package ground

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"wrenn/bench/load"
	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
	"wrenn/impl/need"
	"wrenn/impl/transport"
)

// killWait is how long a terminal may take to end its program.
const killWait = time.Second

// sshdConfig lets this user in by one key and nobody else, and changes nothing that concerns speed.
const sshdConfig = `Port %d
ListenAddress 0.0.0.0
HostKey %s/host
AuthorizedKeysFile %[2]s/user.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
PidFile none
`

// sshdConfig makes the keys and the configuration of OpenSSH's server.
func (g *Ground) sshdConfig() string {
	config := filepath.Join(g.dir, "sshd_config")
	g.do("ssh keys", func() {
		need.Program(g.tb, "ssh", "ssh-keygen", "/usr/sbin/sshd")
		for _, name := range []string{"host", "user"} {
			g.Head.Run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(g.dir, name))
		}
		require.NoError(g.tb, os.WriteFile(config, fmt.Appendf(nil, sshdConfig, sshPort, g.dir), 0o600))
	})
	return config
}

// startSSHD starts OpenSSH's server on the control plane's host.
func (g *Ground) startSSHD() {
	config := g.sshdConfig()
	g.do("sshd", func() {
		g.Head.Must(func() error { return os.MkdirAll("/run/sshd", 0o755) })
		g.Head.Launch("sshd", g.command("/usr/sbin/sshd", "-D", "-e", "-f", config))
		g.await(g.Head, netip.AddrPortFrom(g.HeadAddr, sshPort))
	})
}

// guestSSHD is where OpenSSH's server and its libraries are brought to in the guest, which has none.
const guestSSHD = "/opt/ssh/"

// startGuestSSHD starts the server in the guest.
func (g *Ground) startGuestSSHD() {
	g.sshdConfig()
	g.do("guest sshd", func() {
		ctx, cancel := context.WithTimeout(g.tb.Context(), harness.Patience)
		defer cancel()
		bring := func(name string, content []byte) {
			require.NoError(g.tb, g.API.Guest(g.Box).WriteFile(ctx, "root", guestSSHD+name, bytes.NewReader(content), int64(len(content))))
		}
		libraries, err := exec.CommandContext(ctx, "ldd", "/usr/sbin/sshd").Output()
		require.NoError(g.tb, err)
		paths := []string{"/usr/sbin/sshd", filepath.Join(g.dir, "host"), filepath.Join(g.dir, "user.pub")}
		for line := range strings.Lines(string(libraries)) { // "name => path (address)"
			if f := strings.Fields(line); len(f) == 4 {
				paths = append(paths, f[2])
			}
		}
		for _, path := range paths {
			content, err := os.ReadFile(path)
			require.NoError(g.tb, err)
			bring(filepath.Base(path), content)
		}
		bring("sshd_config", fmt.Appendf(nil, sshdConfig, sshPort, guestSSHD))
		var said bytes.Buffer
		exit, err := g.API.Guest(g.Box).Exec(ctx, envdclient.ExecRequest{User: "root", Stderr: &said, Cmd: "sh", Args: []string{"-c", `
			cd ` + guestSSHD + ` && chmod 600 host && chmod 755 sshd && mkdir -p /run/sshd || exit
			id sshd >/dev/null 2>&1 || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
			LD_LIBRARY_PATH=$PWD setsid $PWD/sshd -D -f sshd_config </dev/null >/dev/null 2>&1 &`,
		}})
		require.NoError(g.tb, err)
		require.Zero(g.tb, exit.Code, "%s", &said)
		g.await(g.Node(), netip.AddrPortFrom(g.Guest, sshPort))
	})
	g.relay(guestSSHPort, sshPort)
}

// ssh is a command line of OpenSSH's client for a link.
func (g *Ground) ssh(l Link, args ...string) *exec.Cmd { return g.sshTo(l, sshPort, args...) }

func (g *Ground) sshTo(l Link, port int, args ...string) *exec.Cmd {
	return g.command("ssh", append([]string{
		"-F", "none", "-i", filepath.Join(g.dir, "user"), "-p", strconv.Itoa(port), "-e", "none",
		"-o", "UserKnownHostsFile=" + filepath.Join(g.dir, "known"), "-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR",
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "root@" + l.Head.String(),
	}, args...)...)
}

// forwards numbers the ports that are forwarded, one per client, since an earlier one may still be held.
var forwards = 9000

// openSSH opens a terminal by ssh and forwards a port for the load, by the same connection or by another one.
func openSSH(ctx context.Context, g *Ground, l Link, same bool) (*Client, error) {
	g.startSSHD()
	g.headServers()
	forwards++
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(forwards))
	forward := []string{"-L", fmt.Sprintf("%s:127.0.0.1:%d", local, httpPort)}
	rt := transport.NewProxyTransport()
	rt.DialContext = l.DialContext
	c := &Client{Door: load.HTTP1{Transport: rt, URL: httpURL(local)}, ground: g, link: l, close: []func(){rt.CloseIdleConnections}}
	args := []string{"-tt", script}
	if same {
		args = append(forward, args...)
	} else {
		second := l.From.Launch("ssh, second connection", g.ssh(l, append(forward, "-N")...))
		c.close = append(c.close, func() { second.Signal(os.Interrupt); second.Await() })
		g.await(l.From, local)
	}
	c.Terminal = func(context.Context) (io.ReadWriteCloser, error) { return startTerminal(l, g.ssh(l, args...)) }
	return c, ctx.Err()
}

// openSSHOwn opens a terminal by ssh beside the load that Wrenn carries, so that both stand in the same queues.
func openSSHOwn(ctx context.Context, g *Ground, l Link) (*Client, error) {
	g.startSSHD()
	c, err := openIsolated(ctx, g, l)
	if err != nil {
		return nil, err
	}
	c.Terminal = func(context.Context) (io.ReadWriteCloser, error) { return startTerminal(l, g.ssh(l, "-tt", script)) }
	return c, nil
}

// openSSHHops opens a terminal by ssh where Wrenn's ends, in the guest, over as many hops: relays of plain TCP.
func openSSHHops(ctx context.Context, g *Ground, l Link) (*Client, error) {
	g.startGuestSSHD()
	c, err := openIsolated(ctx, g, l)
	if err != nil {
		return nil, err
	}
	c.Terminal = func(context.Context) (io.ReadWriteCloser, error) {
		return startTerminal(l, g.sshTo(l, guestSSHPort, "-tt", script))
	}
	return c, nil
}

// program is one of the client's programs: what it reads and prints.
type program struct {
	io.Reader
	io.WriteCloser
	cmd *exec.Cmd
}

func startTerminal(l Link, cmd *exec.Cmd) (io.ReadWriteCloser, error) {
	p, err := startProgram(l, cmd)
	return p, err
}

func startProgram(l Link, cmd *exec.Cmd) (program, error) {
	cmd.WaitDelay = time.Second
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return program{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return program{}, err
	}
	return program{out, in, cmd}, l.From.Do(cmd.Start)
}

// Close ends the program.
func (p program) Close() error {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // killed
	return p.WriteCloser.Close()
}

// webttyProgram serves terminals by WebSocket with terminado, which Jupyter uses for its own. ttyd is in no
// registry that this project can pin, and Debian 12 has terminado.
const webttyProgram = `
import sys, terminado, tornado.ioloop, tornado.web
manager = terminado.UniqueTermManager(shell_command=["sh", "-c", sys.argv[2]])
tornado.web.Application([(r"/tty", terminado.TermSocket, {"term_manager": manager})]).listen(int(sys.argv[1]), "0.0.0.0")
tornado.ioloop.IOLoop.current().start()
`

func openWebTTY(_ context.Context, g *Ground, l Link) (*Client, error) {
	g.do("webtty", func() {
		need.File(g.tb, "terminado", "/usr/lib/python3/dist-packages/terminado", "install python3-terminado (make deps-bench)")
		g.Head.Launch("terminado", g.command("/usr/bin/python3", "-c", webttyProgram, strconv.Itoa(webttyPort), script))
		g.await(g.Head, netip.AddrPortFrom(g.HeadAddr, webttyPort))
	})
	g.headServers()
	rt := transport.NewProxyTransport()
	rt.DialContext = l.DialContext
	client := &http.Client{Transport: rt}
	return &Client{
		Door: load.HTTP1{Transport: rt, URL: httpURL(netip.AddrPortFrom(l.Head, httpPort))}, ground: g, link: l,
		close: []func(){rt.CloseIdleConnections},
		Terminal: func(ctx context.Context) (io.ReadWriteCloser, error) {
			conn, _, err := websocket.Dial(ctx, //nolint:bodyclose // the library has closed it
				fmt.Sprintf("ws://%s/tty", netip.AddrPortFrom(l.Head, webttyPort)), &websocket.DialOptions{
					HTTPClient: client, CompressionMode: websocket.CompressionDisabled,
				})
			if err != nil {
				return nil, err
			}
			return &socket{ctx: ctx, conn: conn, output: terminadoOutput, input: terminadoInput}, nil
		},
	}, nil
}

// Terminado's messages are JSON lists of a kind and a text.

func terminadoOutput(_ websocket.MessageType, data []byte) ([]byte, error) {
	var message []any
	if err := json.Unmarshal(data, &message); err != nil {
		return nil, err
	}
	if len(message) != 2 || message[0] != "stdout" {
		return nil, nil
	}
	text, _ := message[1].(string)
	return []byte(text), nil
}

func terminadoInput(p []byte) (websocket.MessageType, []byte, error) {
	data, err := json.Marshal([]string{"stdin", string(p)})
	return websocket.MessageText, data, err
}
