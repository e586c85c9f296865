package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// command is the program `wrenn` as a user runs it beside `wrenn up`.
func command(ctx context.Context, t *testing.T, s *harness.System, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.Root(t), "build/bin/wrenn"), args...)
	cmd.Env = append(os.Environ(), "WRENN_DIR="+s.Dir, "WRENN_API_URL=", "E2B_API_URL=", "WRENN_API_KEY=", "E2B_API_KEY=")
	return cmd
}

// wrenn runs it to its end and returns what it printed and its exit code.
func wrenn(t *testing.T, s *harness.System, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := command(ctx, t, s, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestA01_TheCommandLine(t *testing.T) {
	s := harness.Start(t, harness.Dir(t))
	out, errOut, code := wrenn(t, s, "", "create", "--json", "--timeout", "10m", "-m", "made-by=cli", "-e", "COLOUR=blue")
	require.Zero(t, code, errOut)
	var box apiclient.Sandbox
	require.NoError(t, json.Unmarshal([]byte(out), &box))
	assert.Equal(t, "cold", box.Wrenn.BootPath)
	assert.Len(t, box.Wrenn.Stages, 8)
	id := box.SandboxID

	out, _, code = wrenn(t, s, "", "exec", id, "--", "bash", "-c", "echo $COLOUR; echo oops >&2; exit 9")
	assert.Equal(t, "blue\n", out)
	assert.Equal(t, 9, code)
	out, _, code = wrenn(t, s, "three\nlines\nhere\n", "exec", "-i", id, "--", "wc", "-l")
	assert.Equal(t, "3\n", out)
	assert.Zero(t, code)
	_, errOut, code = wrenn(t, s, "", "exec", "nosuch", "--", "true")
	assert.Contains(t, errOut, "nosuch")
	assert.Equal(t, 1, code)

	out, _, code = wrenn(t, s, "", "list", "-m", "made-by=cli")
	assert.Contains(t, out, id)
	assert.Zero(t, code)
	out, _, code = wrenn(t, s, "", "logs", id)
	assert.Contains(t, out, "listening")
	assert.Zero(t, code)
	_, errOut, code = wrenn(t, s, "", "pty", id)
	assert.Contains(t, errOut, "no terminal")
	assert.Equal(t, 1, code)
	usePTY(t, s, id)

	_, errOut, code = wrenn(t, s, "", "kill", id)
	require.Zero(t, code, errOut)
	out, _, _ = wrenn(t, s, "", "list", "--json")
	assert.Equal(t, "[]\n", out)
}

// usePTY joins a real terminal to one in the guest.
func usePTY(t *testing.T, s *harness.System, id string) {
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	cmd := command(ctx, t, s, "pty", id)
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	require.NoError(t, err)
	var screen harness.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&screen, terminal) // ends with EIO when the program has gone
	}()
	shows := func(text string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(screen.String(), text) }, harness.Patience, 10*time.Millisecond, "%q is not on the screen", text)
	}
	_, err = io.WriteString(terminal, "stty size\n")
	require.NoError(t, err)
	shows("33 101")
	require.NoError(t, pty.Setsize(terminal, &pty.Winsize{Rows: 44, Cols: 120}))
	require.Eventually(t, func() bool {
		_, err := io.WriteString(terminal, "stty size\n")
		return err == nil && strings.Contains(screen.String(), "44 120")
	}, harness.Patience, 200*time.Millisecond, "the new size did not arrive")
	_, err = io.WriteString(terminal, "exit 6\n")
	require.NoError(t, err)
	_ = cmd.Wait() // the code is what counts
	assert.Equal(t, 6, cmd.ProcessState.ExitCode(), screen.String())
	<-read
	require.NoError(t, terminal.Close())
}
