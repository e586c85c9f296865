package process

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/freezer"
)

// deadline is far beyond what anything here takes on an idle machine.
const deadline = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTable(t *testing.T, patience time.Duration) *Table {
	t.Helper()
	tab := NewTable(slog.New(slog.DiscardHandler), patience, false, &freezer.Freezer{})
	t.Cleanup(func() { tab.Close(deadline) })
	return tab
}

// shell is a spec that runs a script with pipes, as the user who runs the tests.
func shell(t *testing.T, script string) Spec {
	t.Helper()
	u, err := account.Self()
	require.NoError(t, err)
	return Spec{
		Cmd: "sh", Args: []string{"-c", script}, User: u, Dir: "/", Stdin: true,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=/"},
	}
}

// result is all that a subscription had to say.
type result struct {
	stdout, stderr, terminal string
	events                   int
	ends                     []Exit
	afterEnd                 int
	err                      error
}

func drain(t *testing.T, sub *Subscription) result {
	t.Helper()
	defer sub.Close()
	var out, errs, term strings.Builder
	term.Write(sub.Replay)
	var r result
	late := time.After(deadline)
	for {
		select {
		case <-late:
			require.Fail(t, "no end of the process", "after %d events, output so far %.200q", r.events, out.String()+term.String())
		case ev, ok := <-sub.Events():
			if !ok {
				r.stdout, r.stderr, r.terminal, r.err = out.String(), errs.String(), term.String(), sub.Err()
				return r
			}
			r.events++
			if len(r.ends) > 0 {
				r.afterEnd++
			}
			switch ev.Kind {
			case Stdout:
				out.Write(ev.Data)
			case Stderr:
				errs.Write(ev.Data)
			case Terminal:
				term.Write(ev.Data)
			case End:
				r.ends = append(r.ends, ev.Exit)
			}
		}
	}
}

// run starts spec and returns all that it said; it must have ended exactly once, after its output.
func run(t *testing.T, tab *Table, spec Spec) result {
	t.Helper()
	_, sub, err := tab.Start(spec)
	require.NoError(t, err)
	r := drain(t, sub)
	require.NoError(t, r.err)
	require.Len(t, r.ends, 1)
	require.Zero(t, r.afterEnd)
	return r
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// alive reports whether pid is a running process, a zombie not counted.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(d)
}
