package step

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// recorder makes steps that note what ran.
type recorder struct{ log []string }

func (r *recorder) step(name string, doErr, undoErr error) Step {
	return Step{
		Name: name,
		Do:   func(context.Context) error { r.log = append(r.log, "do "+name); return doErr },
		Undo: func(context.Context) error { r.log = append(r.log, "undo "+name); return undoErr },
	}
}

func TestN04_RunUndoesInReverseAndNamesTheStep(t *testing.T) {
	var r recorder
	cause, undoErr := errors.New("boom"), errors.New("stuck")
	steps := []Step{r.step("a", nil, nil), r.step("b", nil, undoErr), r.step("c", cause, nil), r.step("d", nil, nil)}
	timings, err := Run(t.Context(), "net.create", steps)
	require.ErrorIs(t, err, cause)
	require.ErrorIs(t, err, undoErr)
	assert.ErrorContains(t, err, "net.create: step c: boom")
	assert.ErrorContains(t, err, "net.create: undo b: stuck")
	assert.Equal(t, []string{"do a", "do b", "do c", "undo c", "undo b", "undo a"}, r.log)
	assert.Equal(t, []string{"a", "b", "c", "d"}, Names(steps))
	assert.Len(t, timings, 3)
}

func TestN04_UndoRunsOnAContextOfItsOwn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var undoErr error
	_, err := Run(ctx, "act", []Step{{
		Name: "a",
		Do:   func(context.Context) error { cancel(); return nil },
		Undo: func(ctx context.Context) error { undoErr = ctx.Err(); return nil },
	}, {Name: "b", Do: func(context.Context) error { return nil }}})
	require.ErrorIs(t, err, context.Canceled)
	assert.NoError(t, undoErr, "the undo saw the caller's cancelled context")
}

func TestN04_UndosShareOneDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := Step{
			Name: "hang",
			Do:   func(context.Context) error { return errors.New("no") },
			Undo: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		}
		start := time.Now()
		_, err := Run(t.Context(), "act", []Step{hang})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, UndoTimeout, time.Since(start))
	})
}

func TestN05_RunAllTriesEveryStep(t *testing.T) {
	var r recorder
	one, two := errors.New("one"), errors.New("two")
	err := RunAll(t.Context(), "net.remove", []Step{r.step("a", one, nil), r.step("b", nil, nil), r.step("c", two, nil)})
	require.ErrorIs(t, err, one)
	require.ErrorIs(t, err, two)
	assert.Equal(t, []string{"do a", "do b", "do c"}, r.log)
	assert.False(t, slices.Contains(r.log, "undo a"))
}

// TestStepsBesideEachOther run at once; when one fails the others are cancelled, and all are undone, newest first,
// once none runs.
func TestStepsBesideEachOther(t *testing.T) {
	for _, fails := range []string{"", "b", "c", "d"} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var r recorder
			boom := errors.New("boom")
			beside := func(name string, lasts time.Duration) Step {
				return Step{
					Name: name, Beside: name != "b",
					Do: func(ctx context.Context) error {
						if name == fails {
							time.Sleep(time.Millisecond)
							return boom
						}
						select {
						case <-time.After(lasts):
						case <-ctx.Done():
						}
						time.Sleep(time.Second) // which it takes to end
						mu.Lock()
						defer mu.Unlock()
						r.log = append(r.log, "do "+name)
						return ctx.Err()
					},
					Undo: func(context.Context) error { r.log = append(r.log, "undo "+name); return nil },
				}
			}
			steps := []Step{r.step("a", nil, nil), beside("b", 3*time.Second), beside("c", 2*time.Second), beside("d", time.Second), r.step("e", nil, nil)}
			start := time.Now()
			timings, err := Run(t.Context(), "act", steps)
			if fails == "" {
				require.NoError(t, err)
				assert.Equal(t, []string{"do a", "do d", "do c", "do b", "do e"}, r.log)
				assert.Equal(t, []Timing{{"a", 0}, {"b", 4 * time.Second}, {"c", 3 * time.Second}, {"d", 2 * time.Second}, {"e", 0}}, timings)
				assert.Equal(t, 4*time.Second, time.Since(start))
				return
			}
			require.EqualError(t, err, "act: step "+fails+": boom")
			assert.Len(t, timings, 4)
			assert.Equal(t, "do a", r.log[0])
			assert.Equal(t, []string{"undo d", "undo c", "undo b", "undo a"}, r.log[3:])
			assert.Equal(t, time.Second+time.Millisecond, time.Since(start))
		})
	}
}

func TestStepsBesideEachOtherTellEachFailure(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	begun, ready := make(chan struct{}), make(chan struct{})
	_, err := Run(t.Context(), "act", []Step{
		{Name: "a", Do: func(context.Context) error { close(begun); <-ready; return one }},
		{Name: "b", Beside: true, Do: func(context.Context) error { <-begun; close(ready); return two }},
	})
	require.ErrorIs(t, err, one)
	require.ErrorIs(t, err, two)
}
