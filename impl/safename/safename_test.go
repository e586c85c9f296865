package safename

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// hostile are inputs that neither rule may let through.
var hostile = []string{
	"", ".", "..", "../x", "a/../b", "a/b", "/etc", "a..b", "%2e%2e", "%2e%2e%2f", "a\x00b", "a\n", "\na", "a b",
	"-rf", ".hidden", "_x", `a\b`, "ａ", "a․․b", "é", strings.Repeat("a", 65), strings.Repeat("a", 1<<20), "a;b", "a$b", "a:b",
}

func TestV01_CheckRefusesHostileNames(t *testing.T) {
	for _, s := range hostile {
		err := Check("template", s)
		assert.ErrorIs(t, err, ErrInvalid, "%.80q", s)
		assert.ErrorContains(t, err, "template", "%.80q", s)
		assert.Less(t, len(err.Error()), 800)
		assert.ErrorIs(t, CheckSandboxID("sandboxID", s), ErrInvalid, "%.80q", s)
	}
}

func TestV01_CheckAcceptsGoodNames(t *testing.T) {
	for _, s := range []string{"a", "0", "base", "Base-1.2_x", strings.Repeat("a", 64), "a.b.c"} {
		assert.NoError(t, Check("template", s), s)
	}
	for _, s := range []string{"a", "0", "i0123456789abcdefghij", strings.Repeat("z", 32)} {
		assert.NoError(t, CheckSandboxID("sandboxID", s), s)
	}
	for _, s := range []string{"A", "a-b", "a.b", "a_b", strings.Repeat("z", 33)} {
		assert.Error(t, CheckSandboxID("sandboxID", s), s)
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if Check("x", s) == nil && (strings.ContainsAny(s, "/\\\x00%\n ") || strings.Contains(s, "..") || len(s) > MaxLength) {
			t.Fatalf("accepted %q", s)
		}
	})
}
