//go:build fault

package step

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestF01_FaultsComeWhereAndWhenTheyAreArmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	t.Setenv(FaultEnv, path)
	arm := func(line string) { require.NoError(t, os.WriteFile(path, []byte(line+"\n"), 0o600)) }
	run := func() (string, error) {
		var r recorder
		_, err := Run(t.Context(), "act", []Step{r.step("a", nil, nil), r.step("b", nil, nil)})
		return strings.Join(r.log, ", "), err
	}

	log, err := run()
	require.NoError(t, err, "nothing is armed")
	assert.Equal(t, "do a, do b", log)
	for line, want := range map[string]string{
		"act/b before error 1": "do a, undo b, undo a",
		"act/b after error 1":  "do a, do b, undo b, undo a",
		"act/a after error 1":  "do a, undo a",
	} {
		arm(line)
		log, err = run()
		require.ErrorContains(t, err, "step "+line[4:5], line)
		assert.Equal(t, want, log, line)
		log, err = run()
		require.NoError(t, err, "%s: it comes again", line)
		assert.Equal(t, "do a, do b", log, line)
	}

	arm("act/a after error 3")
	for i := range 4 {
		_, err = run()
		assert.Equal(t, i == 2, err != nil, "run %d", i+1)
	}

	arm("act/b after error 1\nact/a undone error 1")
	_, err = run()
	require.ErrorContains(t, err, "undo a")
	trace, err := os.ReadFile(path + FaultTrace)
	require.NoError(t, err)
	assert.Contains(t, string(trace), "act/a undone error\n")
}

// TestF01_AnAbandonedStepAbandonsThoseBesideIt: nobody goes on after any of them.
func TestF01_AnAbandonedStepAbandonsThoseBesideIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	t.Setenv(FaultEnv, path)
	for _, name := range []string{"a", "b"} {
		require.NoError(t, os.WriteFile(path, []byte("act/"+name+" after abandon 1\n"), 0o600))
		var a, b, later recorder
		first, beside := a.step("a", nil, nil), b.step("b", nil, nil)
		beside.Beside = true
		var begun sync.WaitGroup // so that neither is abandoned before the other has begun
		begun.Add(2)
		for _, s := range []*Step{&first, &beside} {
			do := s.Do
			s.Do = func(ctx context.Context) error {
				defer begun.Wait()
				defer begun.Done()
				return do(ctx)
			}
		}
		waits := Step{Name: "waits", Beside: true, Do: func(ctx context.Context) error {
			<-ctx.Done() // for what will never be done
			return ctx.Err()
		}}
		left := make(chan bool, 1)
		go func() {
			went := false
			defer func() { left <- went }()
			_, _ = Run(t.Context(), "act", []Step{first, beside, waits, later.step("c", nil, nil)})
			went = true
		}()
		assert.False(t, <-left, "%s was abandoned, and the act went on", name)
		assert.Equal(t, []string{"do a"}, a.log)
		assert.Equal(t, []string{"do b"}, b.log)
		assert.Empty(t, later.log)
	}
}
