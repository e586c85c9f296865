package portproxy_test

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/impl/portproxy/portproxytest"
)

// chainEnv makes the test's binary be the proxy alone, so that its memory and its time are its own.
const chainEnv = "PORTPROXY_TEST_CHAIN"

const wait = 20 * time.Second

// chainMain is the program that startChain starts twice: an agent, or an edge before the agent that chainEnv
// names, until its standard input ends. It writes its address and that of a page with its memory on one line.
func chainMain() {
	agent := os.Getenv(chainEnv)
	cfg := portproxytest.Config{MaxInFlight: 1 << 20, AtAgent: agent}
	if agent == "agent" {
		cfg.AtAgent, cfg.WithoutEdge = "", true
	}
	c, err := portproxytest.Start(cfg)
	if err != nil {
		panic(err)
	}
	status := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gc" {
			runtime.GC()
			runtime.GC()
			debug.FreeOSMemory()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		_, _ = fmt.Fprintln(w, m.HeapInuse+m.StackInuse, residentBytes())
	}))
	if path := os.Getenv("PORTPROXY_TEST_PROFILE" + map[bool]string{true: "_EDGE"}[c.Edge != ""]); path != "" { // of the processor, for whoever makes it faster
		f, err := os.Create(path)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			panic(err)
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Println(cmp.Or(c.Edge, c.Agent), status.Listener.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func residentBytes() int {
	raw, _ := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(raw))
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize()
}

// chainProcess is an agent or an edge in a process of its own.
type chainProcess struct {
	addr, status string
	pid          int
}

// startChain starts both, each in a process of its own, as on two machines.
func startChain(tb testing.TB) (edge, agent chainProcess) {
	tb.Helper()
	agent = startHop(tb, "agent")
	return startHop(tb, agent.addr), agent
}

func startHop(tb testing.TB, role string) chainProcess {
	tb.Helper()
	exe, err := os.Executable()
	require.NoError(tb, err)
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), chainEnv+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(tb, err)
	out, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(tb, err)
	addrs := strings.Fields(line)
	require.Len(tb, addrs, 2)
	return chainProcess{addr: addrs[0], status: addrs[1], pid: cmd.Process.Pid}
}

// memory returns the process's bytes in heap and stacks, and those that are resident, after a collection where
// gc says so.
func (c chainProcess) memory(tb testing.TB, gc bool) (inUse, resident int) {
	tb.Helper()
	path := "/"
	if gc {
		path = "/gc"
	}
	_, body := ask(tb, c.status, "GET "+path+" HTTP/1.1", "Host: x", "Connection: close")
	_, err := fmt.Sscan(body, &inUse, &resident)
	require.NoError(tb, err)
	return inUse, resident
}

// processor returns the time that a process and its children have had, to a hundredth of a second.
func processor(pid int) time.Duration {
	var ticks time.Duration
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, rest, ok := strings.Cut(string(raw), ") "); ok {
		fields := strings.Fields(rest)
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		ticks = time.Duration(user + system)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	total := ticks * 10 * time.Millisecond
	for _, child := range strings.Fields(string(children)) {
		n, _ := strconv.Atoi(child)
		total += processor(n)
	}
	return total
}

// ask sends a request and returns the answer's header as it came, and its body.
func ask(tb testing.TB, addr string, lines ...string) (*http.Response, string) {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(tb, err)
	defer conn.Close()
	require.NoError(tb, conn.SetDeadline(time.Now().Add(wait)))
	_, err = io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n")
	require.NoError(tb, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(tb, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(tb, err)
	return res, string(body)
}

// startNginx runs nginx with these lines of its http block until the test ends. DIR stands for its own
// directory, which is returned.
func startNginx(tb testing.TB, addr, http string) (dir string, pid int) {
	tb.Helper()
	need.Program(tb, "nginx")
	dir = tb.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	require.NoError(tb, os.WriteFile(conf, []byte(strings.ReplaceAll(`
daemon off; user root; worker_processes auto; pid DIR/pid; error_log DIR/error.log;
events { worker_connections 8192; }
http {
	access_log off; client_max_body_size 0; keepalive_requests 1000000;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	types { text/html html; text/plain txt; application/json json; }
`+http+`
}`, "DIR", dir)), 0o600))
	cmd := exec.Command("nginx", "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.Stderr = os.Stderr
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	waitFor(tb, addr)
	return dir, cmd.Process.Pid
}

// waitFor waits until something listens at addr.
func waitFor(tb testing.TB, addr string) {
	tb.Helper()
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return
		}
		require.False(tb, time.Now().After(deadline), "nothing listens at %s: %v", addr, err)
	}
}

// freePort returns a port that was free a moment ago.
func freePort(tb testing.TB) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
