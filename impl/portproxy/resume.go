package portproxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/singleflight"
)

// ResumeTimeout is how long a request waits for its sandbox to wake. It is E2B's figure.
const ResumeTimeout = 15 * time.Second

var errResumeTimeout = errors.New("sandbox did not resume in time")

// Resumer wakes paused sandboxes.
type Resumer interface {
	// Resume returns nil when sandbox id runs, also where it ran before. Of the requests that come for a
	// sandbox meanwhile only the first calls it. ctx ends after ResumeTimeout and not with that request.
	// Its errors are those of EdgeConfig.Lookup, and ErrDenied.
	Resume(ctx context.Context, id string) error
}

// waker calls a Resumer once for all requests that wait for the same sandbox.
type waker struct {
	resumer Resumer
	flights singleflight.Group
}

// wake returns nil when sandbox id has been resumed. A client that goes away does not stop what it began,
// since others may wait for it.
func (w *waker) wake(ctx context.Context, id string) error {
	if w.resumer == nil {
		return ErrPaused
	}
	flight := w.flights.DoChan(id, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ResumeTimeout)
		defer cancel()
		err := w.resumer.Resume(ctx, id)
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", errResumeTimeout, err)
		}
		return nil, err
	})
	select {
	case r := <-flight:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}
