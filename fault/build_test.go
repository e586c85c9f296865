//go:build fault

package fault

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
)

// build makes the agent with the hook, in build/fault. Where Go is missing (a machine that was brought a
// compiled suite) it must be there already.
var build = sync.OnceValue(func() error {
	if _, err := exec.LookPath("go"); err != nil {
		return nil // need.File says what is missing
	}
	cmd := exec.Command("make", "-s", "-C", "..", "build-fault")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
})

// program returns the path of something in build/fault.
func program(tb testing.TB, name string) string {
	tb.Helper()
	require.NoError(tb, build())
	return need.File(tb, "build", harness.Build(tb, "fault/"+name), "run `make build-fault`")
}

// smallImage is an image with one template for guests of procvmm: envd, and the account that it runs programs as. A
// whole Debian would cost a second per restart, for its copies that are kept ready.
func smallImage(tb testing.TB) string {
	tb.Helper()
	need.Program(tb, "mkfs.ext4")
	image := tb.TempDir()
	root := filepath.Join(image, "root")
	for _, dir := range []string{"usr/bin", "etc", "proc", "sys", "dev", "run", "tmp", "mnt", "home/user", "root"} {
		require.NoError(tb, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	envd, err := os.ReadFile(need.File(tb, "build", harness.Build(tb, "bin/envd"), "run `make build`"))
	require.NoError(tb, err)
	require.NoError(tb, os.WriteFile(filepath.Join(root, "usr/bin/envd"), envd, 0o755))
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/usr/bin/envd\nuser:x:1000:1000::/home/user:/usr/bin/envd\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n",
	} {
		require.NoError(tb, os.WriteFile(filepath.Join(root, name), []byte(content), 0o644))
	}
	template := filepath.Join(image, "templates/base")
	require.NoError(tb, os.MkdirAll(template, 0o755))
	out, err := exec.Command("mkfs.ext4", "-q", "-d", root, filepath.Join(template, "rootfs.ext4"), "24M").CombinedOutput()
	require.NoError(tb, err, "%s", out)
	require.NoError(tb, os.RemoveAll(root))
	meta := `{"name":"base","vcpus":1,"memoryMib":128,"diskMib":24}`
	require.NoError(tb, os.WriteFile(filepath.Join(template, "template.json"), []byte(meta), 0o644))
	for _, name := range []string{"vmlinux", "initramfs.cpio.gz"} {
		// No VMM reads them here, but the agent and its probe look that they are there.
		require.NoError(tb, os.WriteFile(filepath.Join(image, name), []byte(name), 0o644))
	}
	return image
}
