package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// ArtifactsEnv names the environment variable with the directory in which tests that fail leave logs and
// consoles, each below its own name; empty for none.
const ArtifactsEnv = "WRENN_ARTIFACTS"

// Artifact prints what may explain a failure, and files it where ArtifactsEnv says. Of two with one name
// the second gets a number.
func Artifact(tb testing.TB, name string, content []byte) {
	tb.Helper()
	tb.Logf("%s:\n%s", name, content)
	dir := os.Getenv(ArtifactsEnv)
	if dir == "" {
		return
	}
	dir = filepath.Join(dir, strings.NewReplacer("/", "_", " ", "_").Replace(tb.Name()))
	if !assert.NoError(tb, os.MkdirAll(dir, 0o755)) {
		return
	}
	path := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
	for i := 2; ; i++ {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if os.IsExist(err) {
			path = filepath.Join(dir, fmt.Sprintf("%d-%s", i, strings.ReplaceAll(name, "/", "_")))
			continue
		}
		if assert.NoError(tb, err) {
			_, err = f.Write(content)
			assert.NoError(tb, err)
			assert.NoError(tb, f.Close())
		}
		return
	}
}
