package qemu

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// faultError is a refusal that the caller of the API is told about, with Firecracker's own words where it has
// any: tools match on them.
type faultError struct{ message string }

func (f *faultError) Error() string { return f.message }

func faultf(format string, args ...any) error {
	return &faultError{message: fmt.Sprintf(format, args...)}
}

// Firecracker's words for a call at the wrong time.
var (
	errAfterStart  = faultf("The requested operation is not supported after starting the microVM.")
	errBeforeStart = faultf("The requested operation is not supported before starting the microVM.")
)

// osText renders an error of the operating system as Firecracker's language does:
// "No such file or directory (os error 2)".
func osText(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	switch errno {
	case syscall.ENOENT:
		text = "No such file or directory"
	case syscall.EACCES:
		text = "Permission denied"
	case syscall.EBUSY:
		text = "Device or resource busy"
	case syscall.EINVAL:
		text = "Invalid argument"
	case syscall.EISDIR:
		text = "Is a directory"
	}
	return fmt.Sprintf("%s (os error %d)", text, int(errno))
}

// canOpen opens and closes a file, to refuse it when it is configured and not when the guest starts.
func canOpen(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
