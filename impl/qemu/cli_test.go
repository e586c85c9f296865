package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseArgs(t *testing.T) {
	given, err := parseArgs([]string{"--api-sock", "/s", "--id", "i-1", "--no-seccomp", "--boot-timer", "--level", "Debug"})
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"api-sock": "/s", "id": "i-1", "no-seccomp": "true", "boot-timer": "true", "level": "Debug"}, given)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--nope"}, "Found argument '--nope' which wasn't expected"},
		{[]string{"api-sock", "/s"}, "Found argument 'api-sock'"},
		{[]string{"--id"}, "The argument 'id' requires a value"},
		{[]string{"--id", "a", "--id", "b"}, "'id' was provided more than once"},
		{[]string{"--no-api"}, "Argument 'config-file' required"},
		{[]string{"--no-seccomp", "--seccomp-filter", "f"}, "cannot be used together"},
	} {
		_, err := parseArgs(test.args)
		require.ErrorContains(t, err, test.want, "%v", test.args)
	}
}

func TestSettings(t *testing.T) {
	none := func(string) string { return "" }
	cfg, err := settings(map[string]string{}, none)
	require.NoError(t, err)
	assert.Equal(t, Config{SocketPath: "/run/firecracker.socket", ID: "anonymous-instance",
		QEMU: "qemu-system-x86_64", Accel: "tcg", BodyLimit: 51200}, cfg)
	cfg, err = settings(map[string]string{"http-api-max-payload-size": "9"}, func(name string) string {
		return map[string]string{EnvQEMU: "/q", EnvAccel: "kvm"}[name]
	})
	require.NoError(t, err)
	assert.Equal(t, "/q", cfg.QEMU)
	assert.Equal(t, "kvm", cfg.Accel)
	assert.EqualValues(t, 9, cfg.BodyLimit)
	for _, given := range []map[string]string{
		{"id": "under_score"}, {"id": "../x"}, {"http-api-max-payload-size": "much"}, {"http-api-max-payload-size": "-1"},
	} {
		_, err := settings(given, none)
		require.Error(t, err, "%v", given)
	}
	_, err = settings(map[string]string{}, func(name string) string {
		if name == EnvAccel {
			return "hvf"
		}
		return ""
	})
	require.ErrorContains(t, err, "must be kvm or tcg")
}

func TestMainExitCodes(t *testing.T) {
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	defer out.Close()
	none := func(string) string { return "" }
	badConfig := filepath.Join(dir, "bad.json")
	require.NoError(t, os.WriteFile(badConfig, []byte(`{"boot-source":{"kernel_image_path":"/nonexistent"}}`), 0o600))
	used := filepath.Join(dir, "used")
	require.NoError(t, os.WriteFile(used, nil, 0o600))
	for name, test := range map[string]struct {
		args []string
		want int
	}{
		"version":         {[]string{"--version"}, 0},
		"help":            {[]string{"--help"}, 0},
		"bad flag":        {[]string{"--x"}, 153},
		"bad id":          {[]string{"--id", "a b"}, 153},
		"bad config":      {[]string{"--no-api", "--config-file", badConfig}, 152},
		"bad config, api": {[]string{"--api-sock", filepath.Join(dir, "s"), "--config-file", badConfig}, 152},
		"no config":       {[]string{"--no-api", "--config-file", filepath.Join(dir, "none")}, 152},
		"socket used":     {[]string{"--api-sock", used}, 1},
		"bad level":       {[]string{"--level", "loud", "--api-sock", filepath.Join(dir, "s2")}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, Main(test.args, none, nil, out, out))
		})
	}
	text, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	assert.Contains(t, string(text), "Firecracker v"+Version)
	assert.Contains(t, string(text), "The kernel file cannot be opened")
	assert.Contains(t, string(text), "Failed to open the API socket at: "+used)
}
