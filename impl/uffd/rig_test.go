package uffd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/memfile"
	"wrenn/impl/need"
)

// playAgent makes the test binary start a page server, as an agent does, and end.
const playAgent = "WRENN_TEST_AGENT"

// patience is how long anything may take that is over in milliseconds on an idle machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if config := os.Getenv(playVMM); config != "" {
		os.Exit(playMain(config))
	}
	if config := os.Getenv(playAgent); config != "" {
		os.Exit(agentMain(config))
	}
	if len(os.Args) > 1 && os.Args[1] == CommandName {
		root := &cobra.Command{Use: "test", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(Command())
		if err := root.Execute(); err != nil {
			fmt.Fprintln(os.Stderr, "test:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// SeedEnv makes a random run that of an earlier one.
const SeedEnv = "WRENN_TEST_SEED"

func seed(tb testing.TB) uint64 {
	tb.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv(SeedEnv); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		require.NoError(tb, err)
	}
	tb.Logf("%s=%d makes this run again", SeedEnv, n)
	return n
}

// rig is a memory in layers, what it should hold, and a place for sockets.
type rig struct {
	dir    string
	layers []string
	truth  string
	size   int64
	holes  int64 // pages that no layer has data for
	seed   uint64
}

// newRig makes a memory of so many pages: a base with holes, and two diffs that change and zero pages.
func newRig(tb testing.TB, pages int) *rig {
	tb.Helper()
	need.Root(tb)
	need.File(tb, "userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd", "a kernel with CONFIG_USERFAULTFD")
	dir, err := os.MkdirTemp("", "pg") //nolint:usetesting // a short name, since sockets' paths are
	require.NoError(tb, err)
	tb.Cleanup(func() { assert.NoError(tb, os.RemoveAll(dir)) })
	r := &rig{dir: dir, size: int64(pages) * memfile.PageSize, seed: seed(tb)}
	random := rand.New(rand.NewPCG(r.seed, 1))
	truth := make([]byte, r.size)
	has := make([]bool, pages)
	var parent *memfile.Header
	for layer := range 3 {
		path := filepath.Join(dir, fmt.Sprint("memory.", layer))
		f, err := os.Create(path)
		require.NoError(tb, err)
		require.NoError(tb, f.Truncate(r.size))
		for page := 0; page < pages; {
			n := min(1+random.IntN(40), pages-page)
			if skip := random.IntN(8); layer == 0 && skip > 2 || layer > 0 && skip == 0 {
				for i := page; i < page+n; i++ {
					at := truth[i*memfile.PageSize : (i+1)*memfile.PageSize]
					clear(at)
					if random.IntN(6) > 0 {
						copy(at, fmt.Sprintf("page %d of layer %d", i, layer))
						at[memfile.PageSize-1] = byte(i)
					}
					has[i] = true
				}
				_, err := f.WriteAt(truth[page*memfile.PageSize:(page+n)*memfile.PageSize], int64(page)*memfile.PageSize)
				require.NoError(tb, err)
			}
			page += n
		}
		parent, err = memfile.Describe(tb.Context(), f, parent)
		require.NoError(tb, err)
		require.NoError(tb, memfile.WriteHeader(path, parent))
		require.NoError(tb, f.Close())
		r.layers = append(r.layers, path)
	}
	for _, h := range has {
		if !h {
			r.holes++
		}
	}
	r.truth = filepath.Join(dir, "truth")
	require.NoError(tb, os.WriteFile(r.truth, truth, 0o600))
	return r
}

func (r *rig) config() Config {
	return Config{Socket: filepath.Join(r.dir, "s"), Layers: r.layers}
}

// serving is a server in this process.
type serving struct {
	cfg  Config
	log  *lockedBuffer
	stop context.CancelFunc
	done chan struct{}
	err  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serveHere(tb testing.TB, cfg Config) *serving {
	tb.Helper()
	s := &serving{log: &lockedBuffer{}, done: make(chan struct{})}
	cfg.Logger = slog.New(slog.NewJSONHandler(s.log, nil))
	s.cfg = cfg
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.WithoutCancel(tb.Context()))
	go func() {
		defer close(s.done)
		s.err = Serve(ctx, cfg)
	}()
	tb.Cleanup(func() { s.stop(); <-s.done })
	eventually(tb, "the server does not listen", func() bool {
		_, err := os.Lstat(cfg.Socket)
		return err == nil
	})
	return s
}

func eventually(tb testing.TB, complaint string, is func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		require.True(tb, time.Now().Before(end), complaint)
	}
}

// wait returns what Serve returned.
func (s *serving) wait(tb testing.TB) error {
	tb.Helper()
	select {
	case <-s.done:
		return s.err
	case <-time.After(patience):
		require.FailNow(tb, "the server does not end", s.log.String())
		return nil
	}
}

// counts are the server's own, from its log.
func (s *serving) counts(tb testing.TB) (c struct{ Faults, Copied, Zeroed, Prefetched, Removals, Deferred int64 }) {
	tb.Helper()
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "pages served") {
			require.NoError(tb, json.Unmarshal([]byte(line), &c))
			return c
		}
	}
	require.Fail(tb, "no counts in the log", s.log.String())
	return c
}

// player is a process that plays a VMM.
type player struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  chan string
	done chan struct{} // closed when it has ended
}

func (r *rig) startVMM(tb testing.TB, p play) *player {
	tb.Helper()
	p.Size, p.Truth, p.Seed = r.size, r.truth, r.seed
	if p.Socket == "" {
		p.Socket = filepath.Join(r.dir, "s")
	}
	config, err := json.Marshal(p)
	require.NoError(tb, err)
	cmd := exec.Command(os.Args[0])
	// A signal that preempts a thread would make it fault again.
	cmd.Env = append(os.Environ(), playVMM+"="+string(config), "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	v := &player{cmd: cmd, out: make(chan string, 16), done: make(chan struct{})}
	v.in, err = cmd.StdinPipe()
	require.NoError(tb, err)
	out, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	go func() {
		defer close(v.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			v.out <- lines.Text()
		}
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
	tb.Cleanup(v.kill)
	return v
}

func (v *player) kill() {
	_ = v.in.Close()
	_ = v.cmd.Process.Kill() // it may be gone
	<-v.done
}

// says expects the next line of the VMM.
func (v *player) says(tb testing.TB, want string) string {
	tb.Helper()
	select {
	case line := <-v.out:
		require.True(tb, strings.HasPrefix(line, want), "the vmm says %q, want %q", line, want)
		return line
	case <-v.done:
		require.FailNow(tb, "the vmm ended", "%s instead of %q", v.cmd.ProcessState, want)
	case <-time.After(patience):
		require.FailNow(tb, "the vmm hangs", "instead of %q", want)
	}
	return ""
}

func (v *player) tell(tb testing.TB, command string, n int) {
	tb.Helper()
	_, err := fmt.Fprintln(v.in, command, n)
	require.NoError(tb, err)
}

// ends expects the VMM's end by SIGKILL.
func (v *player) killed(tb testing.TB) {
	tb.Helper()
	select {
	case <-v.done:
		assert.Equal(tb, "signal: killed", v.cmd.ProcessState.String())
	case <-time.After(patience):
		require.FailNow(tb, "the vmm lives")
	}
}

// quit lets the VMM end by itself.
func (v *player) quit(tb testing.TB) {
	tb.Helper()
	require.NoError(tb, v.in.Close())
	select {
	case <-v.done:
		assert.Equal(tb, "exit status 0", v.cmd.ProcessState.String())
	case <-time.After(patience):
		require.FailNow(tb, "the vmm does not end")
	}
}
