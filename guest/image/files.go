package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	lockName = "lock"
	// lockPoll is how often a waiting run asks for the lock: nothing beside the minute it waits for.
	lockPoll = 200 * time.Millisecond
)

// lock takes the output folder for one run. The kernel gives it back when the process dies.
func lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	for told := false; ; told = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // an empty file: nothing to lose
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if !told {
			fmt.Fprintln(progress, "waiting for another build of this image")
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another build of this image: %w", ctx.Err()), f.Close())
		case <-time.After(lockPoll):
		}
	}
}

// publish gives a cache entry its public name. It is a hard link put in place by rename: whoever has
// the former file open keeps it, and nobody ever sees half a file.
func (b *builder) publish(cached, public string) error {
	link := b.cache(".link-" + filepath.Base(public))
	// A run that was killed may have left one.
	err := os.RemoveAll(link)
	if err == nil {
		err = os.Link(cached, link)
	}
	// Where both names are one file already, rename does nothing and leaves the link.
	if err == nil {
		err = errors.Join(os.Rename(link, public), os.RemoveAll(link))
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", public, err)
	}
	return nil
}

// writeFile writes in the cache and renames, so that path is never half written, not even by a crash of
// the machine, and a killed run leaves nothing where others look.
func (b *builder) writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(b.cache(), ".write-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

func (b *builder) writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return b.writeFile(path, append(text, '\n'))
}
