// Package host is vmexec on the machine where go test runs: it packs a test program into a virtual
// machine, runs it there, and passes on what it wrote, the files it made, and how it ended.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"wrenn/vagrant/vmexec/link"
	"wrenn/vagrant/vmexec/machine"
)

// Failed is vmexec's own exit status, where the test program has none: env(1) and timeout(1) use the
// same for their own failures.
const Failed = 125

const (
	// bootLimit bounds the time from power-on to the start of the test program: 2.5 s under emulation on
	// an idle machine.
	bootLimit = 45 * time.Second
	// emulatedBoots bounds how many machines are started for one run by emulation, where about one boot in three
	// hundred stands still. No test has begun then, so nothing is lost; what stands still again does so for a reason.
	emulatedBoots = 3
	// slack is added to the test's own time-out, which ends a hanging test with the stacks of its
	// goroutines. It stays under the minute after which go test sends SIGQUIT.
	slack = 50 * time.Second
	// lastWords is how long a test program has to write its stacks after SIGQUIT.
	lastWords = 5 * time.Second
)

// Run runs the test program argv[0] with its arguments, with the working directory and environment of
// this process, and writes its output to out and all else to diagnostics. It returns the exit status for
// this process: the test program's, 1 when that succeeded but left processes behind, 128 plus the
// signal's number when a signal ended it or this process, and Failed when the machine could not be made
// or died.
func Run(ctx context.Context, argv []string, signals <-chan os.Signal, out, diagnostics io.Writer) int {
	// The kernel ends the machine with the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := prepare(ctx, argv)
	if err != nil {
		fmt.Fprintln(diagnostics, "vmexec:", err)
		return Failed
	}
	r.out, r.diagnostics = out, diagnostics
	code, err := r.run(signals)
	if err != nil {
		fmt.Fprintln(diagnostics, "vmexec:", err)
		return Failed
	}
	return code
}

// run is one run of a test program.
type run struct {
	machine          machine.Config
	job              link.Job
	limit            time.Duration // from the first power-on, 0 for none
	boot             time.Duration // from power-on to the start of the test program
	out, diagnostics io.Writer
}

var (
	// errDied is what a machine that ended without a last frame comes to.
	errDied = errors.New("the machine died before the tests were over")
	// errNotBooted is what one comes to that is still there.
	errNotBooted = errors.New("the machine did not start the tests")
)

func (r *run) run(signals <-chan os.Signal) (int, error) {
	defer r.machine.Initramfs.Close()
	var late <-chan time.Time
	if r.limit > 0 {
		late = time.After(r.limit)
	}
	for boot := 1; ; boot++ {
		code, err := r.power(signals, late)
		if !errors.Is(err, errNotBooted) || r.machine.KVM || boot == emulatedBoots {
			return code, err
		}
		fmt.Fprintf(r.diagnostics, "vmexec: %s\nvmexec: starting another (%d of %d)\n", err, boot+1, emulatedBoots)
	}
}

// power runs the job in a machine of its own.
func (r *run) power(signals <-chan os.Signal, late <-chan time.Time) (int, error) {
	m, err := machine.Start(r.machine)
	if err != nil {
		return 0, err
	}
	defer m.Kill()
	done := make(chan outcome, 1)
	ready := make(chan struct{})
	go func() { done <- r.receive(m.Line, ready) }()
	return r.wait(m, signals, late, ready, done)
}

// outcome is how receiving ended.
type outcome struct {
	status link.Status
	err    error
}

// wait decides when it is over: by the last frame, a signal, or the time.
func (r *run) wait(
	m *machine.Machine, signals <-chan os.Signal, late <-chan time.Time, ready <-chan struct{}, done <-chan outcome,
) (int, error) {
	boot := time.After(r.boot)
	for {
		select {
		case o := <-done:
			return r.conclude(o, m)
		case <-ready:
			ready, boot = nil, nil
		case <-boot:
			return 0, fmt.Errorf("%w in %s%s", errNotBooted, r.boot, transcript(m))
		case <-late:
			fmt.Fprintf(r.diagnostics, "vmexec: the tests did not end in %s; their stacks:\n", r.limit)
			r.stacks(m, done)
			return 0, fmt.Errorf("ended the machine%s", transcript(m))
		case s := <-signals:
			if s == syscall.SIGQUIT {
				r.stacks(m, done)
			}
			fmt.Fprintf(r.diagnostics, "vmexec: %s: ended the machine\n", s)
			return 128 + int(s.(syscall.Signal)), nil
		}
	}
}

// stacks has the Go runtime in the test program write the stacks of all goroutines, and end it.
func (r *run) stacks(m *machine.Machine, done <-chan outcome) {
	if err := m.Signal(syscall.SIGQUIT); err != nil {
		return // the machine is gone, or never came up
	}
	select {
	case <-done:
	case <-time.After(lastWords):
	}
}

func (r *run) conclude(o outcome, m *machine.Machine) (int, error) {
	s := o.status
	switch {
	case errors.Is(o.err, errDied):
		return 0, fmt.Errorf("%w%s", o.err, transcript(m))
	case o.err != nil:
		return 0, o.err
	case s.Error != "":
		return 0, errors.New("in the machine: " + s.Error)
	case s.Signal != "":
		fmt.Fprintf(r.diagnostics, "vmexec: the test program was ended by %s\n", s.Signal)
	}
	for _, p := range s.Left {
		fmt.Fprintln(r.diagnostics, "vmexec: the tests left a process:", p)
	}
	if s.Code == 0 && len(s.Left) > 0 {
		return 1, nil
	}
	return s.Code, nil
}

func transcript(m *machine.Machine) string {
	m.Kill()
	return "; its console:\n" + m.Console.String()
}

// receive takes the frames of a machine until the last one.
func (r *run) receive(line io.Reader, ready chan<- struct{}) outcome {
	files := newFiles(r.job.Out)
	defer files.abandon()
	for {
		kind, payload, err := link.Receive(line)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return outcome{err: errDied}
		}
		if err != nil {
			return outcome{err: fmt.Errorf("read from the machine: %w", err)}
		}
		switch kind {
		case link.Ready:
			close(ready)
		case link.Output:
			_, err = r.out.Write(payload)
		case link.Files:
			err = files.write(payload)
		case link.Exit:
			o := outcome{}
			o.status, err = link.ParseStatus(payload)
			o.err = errors.Join(err, files.finish())
			return o
		default:
			err = fmt.Errorf("frame of the unknown kind %q", kind)
		}
		if err != nil {
			return outcome{err: err}
		}
	}
}

// moduleRoot is the folder with go.mod that dir lies in.
func moduleRoot(dir string) (string, error) {
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("find the module that %s lies in: no go.mod", dir)
		}
	}
}
