package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
)

// DefaultConsoleBytes is how much console output is kept per sandbox: a kernel's boot messages are
// some 30 KiB, so 1 MiB holds them and hours of what usually follows.
const DefaultConsoleBytes = 1 << 20

// CapConsole cuts the console file at path down to its last limit bytes, limit ≥ 1, if it has grown past
// twice that; so a file takes at most 2 × limit plus what the guest prints between two calls, and
// every byte is copied at most once. The writer must have opened the file with O_APPEND, as Launch does:
// it goes on at the new end. It reports whether it cut. Bytes that the guest prints in the microseconds
// before the cut may be lost.
func CapConsole(path string, limit int64) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("cap the console: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("cap the console: %w", err)
	}
	if info.Size() <= 2*limit {
		return false, nil
	}
	from := info.Size() - limit
	// Moving down by more than limit bytes, the copy never reads what it has written. It goes on until
	// it meets the end, which the guest may still be moving.
	kept, err := io.Copy(io.NewOffsetWriter(f, 0), io.NewSectionReader(f, from, limit+limit))
	if err != nil {
		return false, fmt.Errorf("cap the console: move its tail: %w", err)
	}
	if err := f.Truncate(kept); err != nil {
		return false, fmt.Errorf("cap the console: %w", err)
	}
	return true, nil
}

// consolePeriod is how often KeepConsoleCapped looks. The emulated serial port passes a few MB/s at
// most, so a file exceeds its bound by a few MB for a second.
const consolePeriod = time.Second

// KeepConsoleCapped calls CapConsole every second until ctx or the process ends. Errors are logged and
// do not stop it, save that the file is gone.
func KeepConsoleCapped(ctx context.Context, log *slog.Logger, p *Process, path string, limit int64) {
	tick := time.NewTicker(consolePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-tick.C:
		}
		switch _, err := CapConsole(path, limit); {
		case errors.Is(err, os.ErrNotExist):
			return
		case err != nil:
			log.Warn("console file not capped", "path", path, "error", err)
		}
	}
}

// tail returns the end of the console file for an error message, as one quoted line.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "(unreadable: " + err.Error() + ")"
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > consoleTail {
		_, err = f.Seek(-consoleTail, io.SeekEnd)
		if err != nil {
			return "(unreadable: " + err.Error() + ")"
		}
	}
	raw, err := io.ReadAll(io.LimitReader(f, consoleTail))
	if err != nil {
		return "(unreadable: " + err.Error() + ")"
	}
	return fmt.Sprintf("%q", strings.TrimSpace(string(raw)))
}
