package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inheritance is how long port and lock of an agent that was killed may stay taken: a program that it was
// about to start has its open files until it executes, a few milliseconds, or hundreds on a host that swaps.
const inheritance = time.Second

// outlive repeats try for as long as what it takes is taken and may be so by the heir of a dead agent.
func outlive(ctx context.Context, taken error, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, inheritance)
	defer cancel()
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	for {
		err := try()
		if !errors.Is(err, taken) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-pause.C:
		}
	}
}

// listen takes the agent's port.
func listen(ctx context.Context, addr string) (l net.Listener, err error) {
	err = outlive(ctx, unix.EADDRINUSE, func() error {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("agent: listen on %s: %w", addr, err)
	}
	return l, nil
}

// waitForLock is takeLock, save that it waits for the heir of a dead agent.
func waitForLock(ctx context.Context) (f *os.File, err error) {
	err = outlive(ctx, unix.EWOULDBLOCK, func() error {
		f, err = takeLock()
		return err
	})
	return f, err
}
