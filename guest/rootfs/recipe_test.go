package rootfs

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const goodNumbers = `{"vcpus": 2, "memoryMib": 512, "diskMib": 1024}`

// recipeDir makes a recipe's folder named demo.
func recipeDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "demo")
	require.NoError(t, os.Mkdir(dir, 0o755))
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

func TestLoadRecipe(t *testing.T) {
	dir := recipeDir(t, map[string]string{
		"recipe.json": goodNumbers,
		"packages":    "# tools\nbash\n\n  libstdc++6  # with a reason\n",
	})
	r, err := LoadRecipe(dir)
	require.NoError(t, err)
	assert.Equal(t, Recipe{
		Name: "demo", Dir: dir, VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024, Packages: []string{"bash", "libstdc++6"},
	}, r)
}

func TestLoadRecipeOfEveryTemplate(t *testing.T) {
	dirs, err := filepath.Glob("../templates/*")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, dir := range dirs {
		_, err := LoadRecipe(dir)
		assert.NoError(t, err)
	}
}

func TestLoadRecipeRefuses(t *testing.T) {
	for _, c := range []struct {
		name, numbers, packages, want string
	}{
		{"no numbers", "", "bash", "EOF"},
		{"unknown field", `{"vcpus": 1, "memory": 1}`, "bash", `unknown field "memory"`},
		{"no cpu", `{"memoryMib": 512, "diskMib": 1024}`, "bash", "vcpus is 0, want 1..32"},
		{"small memory", `{"vcpus": 1, "memoryMib": 64, "diskMib": 1024}`, "bash", "memoryMib is 64, want 128.."},
		{"small disk", `{"vcpus": 1, "memoryMib": 512, "diskMib": 100}`, "bash", "diskMib is 100, want 512.."},
		{"option as package", goodNumbers, "bash\n--x y", `line 2: "--x y" is no package name`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := LoadRecipe(recipeDir(t, map[string]string{"recipe.json": c.numbers, "packages": c.packages}))
			assert.ErrorContains(t, err, c.want)
		})
	}
	_, err := LoadRecipe(recipeDir(t, map[string]string{"recipe.json": goodNumbers}))
	assert.ErrorContains(t, err, "packages")
	_, err = LoadRecipe(filepath.Join(t.TempDir(), "not a name"))
	assert.ErrorContains(t, err, "invalid name")
}

func TestHashContentFollowsWhatDecidesTheSystem(t *testing.T) {
	base := map[string]string{
		"recipe.json": goodNumbers, "packages": "bash\n", "setup.sh": "true", "overlay/etc/a": "1",
	}
	hash := func(t *testing.T, dir string) string {
		t.Helper()
		r, err := LoadRecipe(dir)
		require.NoError(t, err)
		h, err := r.hashContent()
		require.NoError(t, err)
		return h
	}
	want := hash(t, recipeDir(t, base))
	for _, c := range []struct {
		name, file, content string
		same                bool
	}{
		{"nothing", "overlay/etc/a", "1", true},
		{"numbers", "recipe.json", `{"vcpus": 1, "memoryMib": 256, "diskMib": 2048}`, true},
		{"a comment", "packages", "# why\nbash\n", true},
		{"a package", "packages", "bash\ncurl\n", false},
		{"set-up", "setup.sh", "false", false},
		{"an overlay file's content", "overlay/etc/a", "2", false},
		{"one more overlay file", "overlay/etc/b", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := maps.Clone(base)
			files[c.file] = c.content
			assert.Equal(t, c.same, want == hash(t, recipeDir(t, files)))
		})
	}
	t.Run("an executable bit", func(t *testing.T) {
		dir := recipeDir(t, base)
		require.NoError(t, os.Chmod(filepath.Join(dir, "overlay/etc/a"), 0o755))
		assert.NotEqual(t, want, hash(t, dir))
	})
	t.Run("a link", func(t *testing.T) {
		dir := recipeDir(t, base)
		require.NoError(t, os.Symlink("a", filepath.Join(dir, "overlay/etc/l")))
		assert.NotEqual(t, want, hash(t, dir))
	})
}
