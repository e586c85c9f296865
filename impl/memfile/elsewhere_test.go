package memfile

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

const (
	// wantReflinks says that the temporary files are on a file system that shares data.
	wantReflinks = "WRENN_TEST_REFLINKS"
	// wantNoHoles says that they are on one that tells no holes.
	wantNoHoles = "WRENN_TEST_NO_HOLES"
)

// elsewhere runs tests of this package with their temporary files on another file system, which is mounted
// in a mount namespace of its own and goes with it. mount is the beginning of the mount's arguments.
func elsewhere(t *testing.T, env, pattern string, mount ...string) string {
	t.Helper()
	need.Root(t)
	need.Program(t, "unshare", "mount")
	dir := t.TempDir()
	args := append([]string{"--mount", "--", "sh", "-c",
		`pattern=$1 dir=$2; shift 2; mount "$@" "$dir" && TMPDIR=$dir exec "$0" -test.v -test.run "$pattern"`, os.Args[0], pattern, dir}, mount...)
	cmd := exec.CommandContext(t.Context(), "unshare", args...)
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// TestS06_OnXFS is for reflinks and large folios.
func TestS06_OnXFS(t *testing.T) {
	if os.Getenv(wantReflinks) != "" {
		return // this is there already
	}
	need.Program(t, "mkfs.xfs")
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 512<<20))
	out, err := exec.Command("mkfs.xfs", "-q", image).CombinedOutput()
	require.NoError(t, err, string(out))
	said := elsewhere(t, wantReflinks, "^Test(S0|A)", "-o", "loop", image)
	assert.Contains(t, said, "--- PASS: TestAFlatFileIsOnlyTakenForWhatItIs")
}

func TestS07_AFileSystemWithoutHolesIsFoundOut(t *testing.T) {
	if os.Getenv(wantNoHoles) != "" {
		require.ErrorContains(t, CheckHoles(t.TempDir()), "does not tell holes")
		return
	}
	dir := t.TempDir()
	require.NoError(t, CheckHoles(dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
	if os.Getenv(wantReflinks) == "" {
		said := elsewhere(t, wantNoHoles, "^"+t.Name()+"$", "-t", "ramfs", "none")
		assert.Contains(t, said, "--- PASS: "+t.Name())
	}
}

// TestWhatAKilledCheckForHolesLeftGoesWithTheNext plants what it would have left.
func TestWhatAKilledCheckForHolesLeftGoesWithTheNext(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".holes"), make([]byte, 10*PageSize), 0o600))
	require.NoError(t, CheckHoles(dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}
