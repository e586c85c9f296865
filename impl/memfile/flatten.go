package memfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// FlatSuffix makes the name of the note beside a flat file that says which layer's content it has.
const FlatSuffix = ".of"

// Flattened says what Flatten did.
type Flattened struct {
	// Updated is true where an older flat file was brought up to date, false where one was made.
	Updated bool
	// Reflinked is true where the base's data is shared with it by the file system.
	Reflinked bool
	// Copied is how many bytes were written, Shared how many of the layers above the base are shared as well.
	Copied, Shared int64
}

// Flatten makes the file dst hold the chain's content, for a VMM that maps one file. A flat file that is
// there already with the content of one of the chain's layers, as the note beside it says, only gets what
// the layers above that changed, in place: **no VMM may have it mapped**. One that has other hard links is
// replaced and not changed. A new one starts as a reflink of the base where the file system can do that, and long
// runs of other layers are reflinked too. (copy_file_range would save nothing elsewhere: it copies too, and would keep
// checksums from being seen.)
//
// One dst is for one call at a time. A file that has the content already is not written to, so it may be
// mapped by others then.
//
// What is copied is compared with its checksums; what is reflinked is not read: use no flat file of layers that
// Verify has not found right.
//
// A flat file is a cache and is not synced. Its note holds for the host's present boot alone, and is gone
// while the file is being changed, so that neither a killed process nor a crash of the host can leave one
// that is taken for more than it is.
func (c *Chain) Flatten(ctx context.Context, dst string) (Flattened, error) {
	boot, err := bootID()
	if err != nil {
		return Flattened{}, err
	}
	var done Flattened
	if have := c.holds(dst, boot); have >= 0 {
		done, err = c.update(ctx, dst, have)
	} else {
		done, err = c.makeFlat(ctx, dst)
	}
	if err != nil {
		return done, fmt.Errorf("flatten memory into %s: %w", dst, err)
	}
	note := dst + FlatSuffix
	if err := os.WriteFile(note+".new", []byte(c.Top().ID.String()+" "+boot+"\n"), 0o600); err != nil {
		return done, fmt.Errorf("flatten memory: %w", err)
	}
	if err := os.Rename(note+".new", note); err != nil {
		return done, fmt.Errorf("flatten memory: %w", err)
	}
	return done, nil
}

// holds returns which layer's content the file at dst is known to have, or -1.
func (c *Chain) holds(dst, boot string) int {
	note, err := os.ReadFile(dst + FlatSuffix)
	if err != nil {
		return -1
	}
	words := strings.Fields(string(note))
	if len(words) != 2 || words[1] != boot {
		return -1
	}
	var stat unix.Stat_t
	if err := unix.Lstat(dst, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != c.size || stat.Nlink != 1 {
		return -1
	}
	for i, l := range c.layers {
		if l.header.ID.String() == words[0] {
			return i
		}
	}
	return -1
}

func (c *Chain) update(ctx context.Context, dst string, have int) (Flattened, error) {
	done := Flattened{Updated: true}
	if have == len(c.layers)-1 {
		return done, nil
	}
	if err := os.Remove(dst + FlatSuffix); err != nil {
		return done, err
	}
	f, err := os.OpenFile(dst, os.O_RDWR, 0)
	if err != nil {
		return done, err
	}
	err = c.copyInto(ctx, f, have+1, &done)
	return done, errors.Join(err, f.Close())
}

func (c *Chain) makeFlat(ctx context.Context, dst string) (_ Flattened, err error) {
	var done Flattened
	// The old one goes first, with its note: to rename a file over another makes ext4 write it out, and nobody
	// needs a cache to be replaced in one step.
	if err := removeAny(dst+FlatSuffix, dst); err != nil {
		return done, err
	}
	beside := dst + ".new"
	f, err := os.OpenFile(beside, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return done, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), removeAny(beside))
		}
	}()
	lowest := 0
	if err := unix.IoctlFileClone(int(f.Fd()), int(c.layers[0].data.Fd())); err == nil {
		done.Reflinked, lowest = true, 1
	} else if err := f.Truncate(c.size); err != nil {
		return done, err
	}
	if err = c.copyInto(ctx, f, lowest, &done); err != nil {
		return done, err
	}
	if err := os.Rename(beside, dst); err != nil {
		return done, err
	}
	return done, f.Close()
}

// cloneLeast is the shortest run that is shared instead of copied: a clone takes the file system 20 to 50 µs, in which
// 64 KiB are copied (XFS on Linux 6.18).
const cloneLeast = 64 << 10

// copyInto gives f what comes from the layers from lowest on.
func (c *Chain) copyInto(ctx context.Context, f *os.File, lowest int, done *Flattened) error {
	var parts []Extent
	clones := true
	for r := range c.Runs(0, c.size) {
		if r.Layer < lowest {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if clones && r.Length >= cloneLeast {
			if clones = c.cloneRun(f, r); clones {
				done.Shared += r.Length
				continue
			}
		}
		done.Copied += r.Length
		// Runs of different layers that touch are written together; long ones are cut so that all CPUs help.
		for at := r.Offset; at < r.End(); {
			end := min((at/stretch+1)*stretch, r.End())
			if n := len(parts) - 1; n >= 0 && parts[n].End() == at && at%stretch != 0 {
				parts[n].Length += end - at
			} else {
				parts = append(parts, Extent{at, end - at})
			}
			at = end
		}
	}
	return parallel(ctx, len(parts), 8, stretch, func(from, to int, buf []byte) error {
		for _, p := range parts[from:to] {
			b := buf[:p.Length]
			if _, err := c.ReadAt(b, p.Offset); err != nil {
				return err
			}
			if _, err := f.WriteAt(b, p.Offset); err != nil {
				return err
			}
		}
		return nil
	})
}

// cloneRun makes f share a run's data; false where the file system cannot.
func (c *Chain) cloneRun(f *os.File, r Run) bool {
	return unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{
		Src_fd: int64(c.layers[r.Layer].data.Fd()), Src_offset: uint64(r.Offset), Src_length: uint64(r.Length), Dest_offset: uint64(r.Offset),
	}) == nil
}

// bootID names the host's present boot.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell which boot of the host this is: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
