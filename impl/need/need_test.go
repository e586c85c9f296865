package need

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
)

// witness notes how a test ended instead of ending it.
type witness struct {
	testing.TB
	skipped, failed string
}

func (w *witness) Helper()                        {}
func (w *witness) Skipf(format string, a ...any)  { w.skipped = fmt.Sprintf(format, a...) }
func (w *witness) Fatalf(format string, a ...any) { w.failed = fmt.Sprintf(format, a...); panic(w) }

func ask(t *testing.T, must string, what func(testing.TB)) *witness {
	t.Helper()
	t.Setenv(Env, must)
	w := &witness{TB: t}
	func() {
		defer func() { _ = recover() }()
		what(w)
	}()
	return w
}

func TestAMissingAbilitySkipsOrFailsWithItsRemedy(t *testing.T) {
	absent := func(tb testing.TB) { Program(tb, "no-such-program") }
	w := ask(t, "", absent)
	assert.Contains(t, w.skipped, "no-such-program")
	assert.Empty(t, w.failed)
	for _, must := range []string{"all", "kvm,no-such-program"} {
		w = ask(t, must, absent)
		assert.Contains(t, w.failed, "install no-such-program")
	}
	w = ask(t, "all,-no-such-program", absent)
	assert.Contains(t, w.skipped, "no-such-program")
	w = ask(t, "image", func(tb testing.TB) { File(tb, "image", "/no/such/file", "run `make image`") })
	assert.Contains(t, w.failed, "make image")
	w = ask(t, "all", func(tb testing.TB) { Program(tb, "go"); File(tb, "root", "/", "") })
	assert.Empty(t, w.skipped+w.failed)
}
