package step

import (
	"context"
	"errors"
	"slices"
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
