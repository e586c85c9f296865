package account

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func basic(s string) http.Header {
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(s))}}
}

func TestUserOfARequest(t *testing.T) {
	need.Root(t)
	for name, c := range map[string]struct {
		header     http.Header
		named, def string
		want       string
		err        error
	}{
		"nobody named":         {nil, "", "", "root", nil},
		"default":              {nil, "", "daemon", "daemon", nil},
		"query before default": {nil, "nobody", "daemon", "nobody", nil},
		"header before all":    {basic("bin:"), "nobody", "daemon", "bin", nil},
		"a password is idle":   {basic("bin:x:y"), "", "", "bin", nil},
		"unknown":              {basic("no-such-user:"), "", "", "", ErrUnknown},
		"unknown default":      {nil, "", "no-such-user", "", ErrUnknown},
		"endless name":         {nil, strings.Repeat("x", 300), "", "", ErrUnknown},
		"no colon":             {basic("bin"), "", "", "", ErrCredentials},
		"no name":              {basic(":"), "", "", "", ErrCredentials},
		"no base64":            {http.Header{"Authorization": {"Basic %%"}}, "", "", "", ErrCredentials},
		"another scheme":       {http.Header{"Authorization": {"Bearer x"}}, "", "", "", ErrCredentials},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := OfRequest(c.header, c.named, c.def)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.want, u.Name)
		})
	}
}

func TestPath(t *testing.T) {
	u := User{Home: "/home/user"}
	for raw, want := range map[string]string{
		"": "/home/user", ".": "/home/user", "a/b": "/home/user/a/b", "~": "/home/user", "~/a": "/home/user/a",
		"/a//b/../c/": "/a/c", "../x": "/home/x", "../../../../etc": "/etc", "a~b": "/home/user/a~b", "/": "/",
		"a\\b": "/home/user/a\\b", "%2e%2e/x": "/home/user/%2e%2e/x",
	} {
		got, err := Path(raw, u, "")
		require.NoError(t, err)
		assert.Equal(t, want, got, "%q", raw)
	}
	for _, raw := range []string{"a\x00", "~other", "~other/x", strings.Repeat("x", MaxPath+1)} {
		_, err := Path(raw, u, "")
		require.ErrorIs(t, err, ErrPath)
	}
	for workdir, want := range map[string]string{"/w": "/w/x", "w": "/home/user/w/x", "~/w": "/home/user/w/x"} {
		got, err := Path("x", u, workdir)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"~/../x", "/a/./b", "..", "~x", "a\x00"} {
		f.Add(s, "/w")
	}
	f.Fuzz(func(t *testing.T, raw, workdir string) {
		got, err := Path(raw, User{Home: "/home/user"}, workdir)
		if err != nil {
			require.ErrorIs(t, err, ErrPath)
			return
		}
		if !filepath.IsAbs(got) || filepath.Clean(got) != got || strings.ContainsRune(got, 0) {
			t.Fatalf("%q becomes %q", raw, got)
		}
	})
}

func TestMakeParents(t *testing.T) {
	dir := t.TempDir()
	u, err := Self()
	require.NoError(t, err)
	require.NoError(t, MakeParents(filepath.Join(dir, "a/b/c"), u))
	require.NoError(t, MakeParents(filepath.Join(dir, "a/b/c"), u))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	require.ErrorContains(t, MakeParents(filepath.Join(dir, "f/x"), u), "not a directory")
}
