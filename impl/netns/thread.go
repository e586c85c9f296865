package netns

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// onThread runs enter, which changes the thread's namespace, and then fn, on a new goroutine locked to
// its thread. The thread is unlocked only once its namespace is restored; where that fails the
// goroutine ends locked, upon which the runtime destroys the thread.
func onThread(enter, fn func() error) error {
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if !o.returned {
				if p := recover(); p != nil {
					o.panicked = fmt.Sprintf("%v\n\ninside a network namespace:\n%s", p, debug.Stack())
				}
			}
			done <- o
		}()
		runtime.LockOSThread()
		o.err = visit(enter, fn)
		o.returned = true
	}()
	o := <-done
	switch {
	case o.panicked != "":
		panic(o.panicked)
	case !o.returned:
		runtime.Goexit()
	}
	return o.err
}

// outcome is how the function ended: it returned, panicked, or (neither) ended its goroutine.
type outcome struct {
	err      error
	returned bool
	panicked string
}

// visit runs on a locked thread and unlocks it once it is back where it came from, however fn ended.
func visit(enter, fn func() error) error {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("opening the thread's own namespace: %w", err)
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	if err := enter(); err != nil {
		return fmt.Errorf("entering namespace: %w", err)
	}
	return fn()
}
