package identity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

func TestS05_NamesAndIDsAreChecked(t *testing.T) {
	for _, name := range []string{"", "a", "box-1", strings.Repeat("a", 63)} {
		require.NoError(t, CheckHostname(name), "%q", name)
	}
	for _, name := range []string{"A", "a b", "a/b", "a\n127.0.0.1 evil", "a.b", strings.Repeat("a", 64), "ä"} {
		require.Error(t, CheckHostname(name), "%q", name)
	}
	require.NoError(t, CheckMachineID("0123456789abcdef0123456789abcdef"))
	for _, id := range []string{"", "0123456789abcdef0123456789abcde", "0123456789ABCDEF0123456789abcdef", "0123456789abcdef0123456789abcde\n"} {
		require.Error(t, CheckMachineID(id), "%q", id)
	}
}

func TestS05_EntropyIsBounded(t *testing.T) {
	require.Error(t, AddEntropy(nil))
	require.Error(t, AddEntropy(make([]byte, MaxEntropy+1)))
	if os.Geteuid() == 0 { // the host's generator takes it too, and nobody minds
		require.NoError(t, AddEntropy([]byte("from a test of the daemon in guests")))
	}
}

// TestS05_ALinkIsReplacedAndNotFollowed: many images have /etc/machine-id as one.
func TestS05_ALinkIsReplacedAndNotFollowed(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	outside := filepath.Join(root, "outside")
	require.NoError(t, os.WriteFile(outside, []byte("theirs"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "etc/machine-id")))
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "etc/machine-id.wrenn-new")))
	require.NoError(t, SetMachineID(root, "0123456789abcdef0123456789abcdef"))
	for path, want := range map[string]string{outside: "theirs", filepath.Join(root, "etc/machine-id"): "0123456789abcdef0123456789abcdef\n"} {
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
	}
	info, err := os.Lstat(filepath.Join(root, "etc/machine-id"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o444), info.Mode())
	require.NoError(t, SetMachineID(root, "ffffffffffffffffffffffffffffffff"), "a second time")
}

// TestS05_AFileIsOverwrittenInItsPlace, and nothing of a longer one stays; the other name of one keeps its content.
func TestS05_AFileIsOverwrittenInItsPlace(t *testing.T) {
	root := t.TempDir()
	path, other := filepath.Join(root, "hosts"), filepath.Join(root, "other")
	require.NoError(t, replace(path, "short\n", 0o644))
	held, err := os.Open(path) // or another file could get its number
	require.NoError(t, err)
	defer held.Close()
	before, err := held.Stat()
	require.NoError(t, err)
	for _, content := range []string{"much longer\n", "x\n", "", "again\n"} {
		require.NoError(t, replace(path, content, 0o644))
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, content, string(got))
	}
	after, err := os.Stat(path)
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after))
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, replace(path, "again\n", 0o644))
	after, err = os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o644), after.Mode(), "users may read it")
	require.NoError(t, os.Link(path, other))
	require.NoError(t, replace(path, "mine\n", 0o644))
	got, err := os.ReadFile(other)
	require.NoError(t, err)
	assert.Equal(t, "again\n", string(got))
}

// TestS05_OneThatIsRepeatedBesideItself is a host's that has given the first request up, which goes on here.
func TestS05_OneThatIsRepeatedBesideItself(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	var beside errgroup.Group
	for range 8 {
		beside.Go(func() error {
			var errs []error
			for range 50 {
				errs = append(errs, SetMachineID(root, "0123456789abcdef0123456789abcdef"))
			}
			return errors.Join(errs...)
		})
	}
	require.NoError(t, beside.Wait())
}
