package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyLimit bounds the wait for a device that something has open: the kernel closes a killed VMM's files
	// in milliseconds, and a scan by another program ends within a second or two.
	busyLimit = 5 * time.Second
	// busyFirst and busyMost are the waits between two tries, which double.
	busyFirst = 2 * time.Millisecond
	busyMost  = 200 * time.Millisecond
)

// retryBusy repeats try while its error is EBUSY, until busyLimit is over or the context ends.
func retryBusy(ctx context.Context, try func() error) error {
	deadline := time.NewTimer(busyLimit)
	defer deadline.Stop()
	for wait := busyFirst; ; wait = min(wait*2, busyMost) {
		err := try()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-deadline.C:
			return fmt.Errorf("still busy after %v: %w", busyLimit, err)
		case <-time.After(wait):
		}
	}
}
