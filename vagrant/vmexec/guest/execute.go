package guest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/vagrant/vmexec/link"
)

// execute runs the test program to its end, with its output on the line, and looks at what it left
// behind. Signals whose numbers come in by the line, one byte each, are passed on to it.
func execute(job link.Job, line io.Reader, out *link.Writer) link.Status {
	if len(job.Args) == 0 {
		return link.Status{} // the machine was only to boot
	}
	failed := func(err error) link.Status { return link.Status{Code: 1, Error: err.Error()} }
	r, w, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return failed(err)
	}
	p, err := os.StartProcess(job.Args[0], job.Args, &os.ProcAttr{
		Dir: job.Dir, Env: job.Env, Files: []*os.File{null, w, w},
	})
	if err != nil {
		return failed(fmt.Errorf("start the test program: %w", err))
	}
	w.Close()
	pumped := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(link.Stream{Kind: link.Output, To: out}, onlyReader{r}, make([]byte, link.MaxPayload))
		pumped <- err
	}()
	go passSignals(line, p.Pid)

	status, err := reap(p.Pid)
	if err != nil {
		return failed(err)
	}
	status.Left = leftOver()
	// Whoever is left may hold the output open.
	_ = unix.Kill(-1, unix.SIGKILL)
	if err := <-pumped; err != nil {
		status.Error = fmt.Sprintf("pass on the test program's output: %v", err)
	}
	return status
}

// onlyReader hides that a pipe can write itself elsewhere: the pieces must be those of CopyBuffer.
type onlyReader struct{ io.Reader }

func passSignals(line io.Reader, pid int) {
	var b [1]byte
	for {
		if _, err := io.ReadFull(line, b[:]); err != nil {
			return
		}
		_ = unix.Kill(pid, unix.Signal(b[0])) // it may have ended meanwhile
	}
}

// reap waits for the process, and for every orphan that ends before it.
func reap(pid int) (link.Status, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && got != pid:
		case err != nil:
			return link.Status{}, fmt.Errorf("wait for the test program: %w", err)
		case ws.Signaled():
			return link.Status{Code: 128 + int(ws.Signal()), Signal: unix.SignalName(ws.Signal())}, nil
		default:
			return link.Status{Code: ws.ExitStatus()}, nil
		}
	}
}

// leftOver lists the processes that outlive the test program by more than grace: what it killed but did
// not wait for takes a moment to go.
func leftOver() []string {
	const grace, poll = time.Second, 10 * time.Millisecond
	for deadline := time.Now().Add(grace); ; time.Sleep(poll) {
		reapZombies()
		left := processes()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

func reapZombies() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
			return
		}
	}
}

// processes describes all processes but this one and the kernel's threads, which have no arguments.
func processes() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		arguments, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && len(arguments) > 0 {
			words := bytes.ReplaceAll(bytes.TrimRight(arguments, "\x00"), []byte{0}, []byte{' '})
			found = append(found, fmt.Sprintf("%d %.200s", pid, words))
		}
	}
	return found
}

// sendFiles writes a tar archive of those paths that exist, folders whole, under their full names.
func sendFiles(paths []string, w io.Writer) error {
	var archive *tar.Writer
	for _, root := range slices.Sorted(slices.Values(paths)) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == root {
				return filepath.SkipAll
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if archive == nil {
				archive = tar.NewWriter(w)
			}
			return sendFile(archive, path)
		})
		if err != nil {
			return fmt.Errorf("send files back: %w", err)
		}
	}
	if archive == nil {
		return nil
	}
	return archive.Close()
}

func sendFile(archive *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: int64(info.Mode().Perm()), Size: info.Size(), Typeflag: tar.TypeReg}
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(archive, f)
	return err
}
