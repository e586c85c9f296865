// Package snapshot is the format of the directories that keep a machine which does not run: its memory's
// layers, the VMM's state and its disk, under a manifest that names them all.
//
// Every file of a committed directory is immutable, so directories share files by hard links and the file
// system counts the references. A directory is written beside its place, sealed, and put there by one
// rename, before which nobody trusts it; what does not fit its manifest is refused by the file's name.
package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/internal/known"
)

// Names of files in a snapshot's directory.
const (
	// ManifestName is of the file that is written last.
	ManifestName = "manifest.json"
	// StateName is of the VMM's own state file.
	StateName = "vmstate"
	// memoryPrefix begins the names of the layers of memory: memory.0, memory.0.hdr, memory.1, ...
	memoryPrefix = "memory."
	// FlatName is of a cache beside the snapshot's own files, which no manifest names: the layers in one file.
	// What is named after it belongs to it.
	FlatName = "memory.flat"
	// WorkingSetName is of another: which pages are needed first.
	WorkingSetName = "memory.first"
)

// LayerName is the name of the data of the n-th layer of memory.
func LayerName(n int) string { return memoryPrefix + strconv.Itoa(n) }

// HeaderName is the name of the header of the n-th layer of memory.
func HeaderName(n int) string { return LayerName(n) + ".hdr" }

// isLayerData tells the files whose checksums are in their headers, piece by piece, and not in the manifest.
func isLayerData(name string) bool {
	n, ok := strings.CutPrefix(name, memoryPrefix)
	if !ok {
		return false
	}
	_, err := strconv.ParseUint(n, 10, 16)
	return err == nil
}

// IsCache tells the files that are not part of a snapshot though they lie in its directory: none is needed.
func IsCache(name string) bool {
	name = strings.TrimPrefix(name, ".") // what a page server was writing when it was killed
	return strings.HasSuffix(name, sumsSuffix) || strings.HasPrefix(name, FlatName) || strings.HasPrefix(name, WorkingSetName)
}

// Layers counts the layers of memory in dir from the first on, by their headers; 0 where dir does not exist.
func Layers(dir string) (int, error) {
	for n := 0; ; n++ {
		_, err := os.Stat(filepath.Join(dir, HeaderName(n)))
		if errors.Is(err, fs.ErrNotExist) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("count layers: %w", err)
		}
	}
}

// NewID returns 16 random bytes in hexadecimal.
func NewID() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails: it ends the program instead
	return hex.EncodeToString(raw[:])
}

// Create makes dir afresh; what an unfinished snapshot has left there is removed.
func Create(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove an unfinished snapshot: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make a snapshot's directory: %w", err)
	}
	return nil
}

// LinkLayers hard-links the first n layers of memory with their headers from one directory to another.
func LinkLayers(from, to string, n int) error {
	for i := range n {
		for _, name := range []string{LayerName(i), HeaderName(i)} {
			if err := os.Link(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
				return fmt.Errorf("link a layer of memory: %w", err)
			}
		}
	}
	return nil
}

// Link hard-links every file that m names from one directory to another, with its sums if they are known; the manifest
// is not among them.
func Link(from, to string, m Manifest) error {
	for _, f := range m.Files {
		if err := os.Link(filepath.Join(from, f.Name), filepath.Join(to, f.Name)); err != nil {
			return fmt.Errorf("link a file of a snapshot: %w", err)
		}
		_ = os.Link(filepath.Join(from, f.Name+sumsSuffix), filepath.Join(to, f.Name+sumsSuffix)) // a cache
	}
	return nil
}

// DescribeDisk syncs the files in dir that are neither memory's nor the VMM's, and returns what they hold, for
// Seal: the rest may still be being written. The former directories are snapshots that the disk may have been made
// from: what it shares with the first that is there need not be read.
func DescribeDisk(ctx context.Context, dir string, seen *known.Files, former ...string) ([]File, error) {
	names, err := filesOf(dir)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !isDisk(name) })
	if err := syncAll(dir, names); err != nil { // not before do file systems tell what two files share
		return nil, err
	}
	return describeAll(ctx, dir, names, nil, seen, former...)
}

// isDisk tells the files that are neither memory's nor the VMM's, also while they are written under another name.
func isDisk(name string) bool {
	name = strings.TrimPrefix(name, ".")
	return !strings.HasPrefix(name, StateName) && !strings.HasPrefix(name, memoryPrefix)
}

// Seal completes the snapshot in dir: it notes sizes and checksums in m, writes the manifest, and syncs every file and
// the directory. Files that were described before are taken as they are. It returns the manifest as written. A loss of
// power may leave a manifest without what it names; what has not been committed is trusted by nobody.
func Seal(ctx context.Context, dir string, m Manifest, described ...File) (Manifest, error) {
	names, err := filesOf(dir)
	if err != nil {
		return m, err
	}
	if m.Files, err = describeAll(ctx, dir, names, described, nil); err != nil {
		return m, fmt.Errorf("seal a snapshot: %w", err)
	}
	data, err := m.encode()
	if err != nil {
		return m, err
	}
	if err := os.WriteFile(filepath.Join(dir, ManifestName), data, 0o600); err != nil {
		return m, fmt.Errorf("seal a snapshot: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return slices.ContainsFunc(described, named(name)) })
	return m, syncAll(dir, append(names, ManifestName, "."))
}

func named(name string) func(File) bool { return func(f File) bool { return f.Name == name } }

// syncAll syncs what has these names in dir at once: one commit of the file system's journal serves all who wait for it.
func syncAll(dir string, names []string) error {
	var all errgroup.Group
	for _, name := range names {
		all.Go(func() error {
			f, err := os.Open(filepath.Join(dir, name))
			if err != nil {
				return fmt.Errorf("sync a snapshot: %w", err)
			}
			return errors.Join(f.Sync(), f.Close())
		})
	}
	return all.Wait()
}

// describeAll describes files at once; those that are described already are not read again.
func describeAll(ctx context.Context, dir string, names []string, have []File, seen *known.Files, former ...string) ([]File, error) {
	files := make([]File, len(names))
	all, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		if at := slices.IndexFunc(have, named(name)); at >= 0 {
			files[i] = have[at]
			continue
		}
		all.Go(func() error {
			var err error
			files[i], err = describe(ctx, dir, name, seen, former...)
			return err
		})
	}
	return files, all.Wait()
}

// filesOf lists the snapshot's own files in dir but the manifest, by name.
func filesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list a snapshot: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() == ManifestName || IsCache(e.Name()) {
			continue
		}
		if !e.Type().IsRegular() {
			return nil, fmt.Errorf("%w: %s is no regular file", ErrDamaged, filepath.Join(dir, e.Name()))
		}
		names = append(names, e.Name())
	}
	return names, nil
}

// Commit puts the sealed snapshot at from in the place of the one at to by one rename, and makes it durable.
// The former one, if there was one, is at from afterwards; a second Commit puts it back.
func Commit(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return fmt.Errorf("commit %s as %s: %w", from, to, err)
	}
	return errors.Join(atomicfile.SyncDir(filepath.Dir(from)), atomicfile.SyncDir(filepath.Dir(to)))
}

// Load reads the snapshot in dir and verifies it.
func Load(ctx context.Context, dir string) (Manifest, error) {
	m, err := Read(dir)
	if err != nil {
		return m, err
	}
	return m, Verify(ctx, dir, m, nil)
}

// Verify compares every file in dir with the manifest, save the data of memory's layers, whose checksums are in
// their headers. A disk that is known is not read. What it refuses wraps ErrDamaged and names the file.
func Verify(ctx context.Context, dir string, m Manifest, seen *known.Files) error {
	names, err := filesOf(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == name }) {
			return fmt.Errorf("%w: %s is not of this snapshot", ErrDamaged, filepath.Join(dir, name))
		}
	}
	for _, f := range m.Files {
		if err := f.verify(ctx, dir, seen); err != nil {
			return err
		}
	}
	return nil
}

// Size is how many bytes the files below the paths take on the disk: allocated blocks, each file once however
// many names it has. What does not exist takes none.
func Size(paths ...string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has gone meanwhile
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				if errors.Is(err, unix.ENOENT) {
					return nil
				}
				return fmt.Errorf("size of %s: %w", path, err)
			}
			key := inode{st.Dev, st.Ino}
			if !seen[key] {
				seen[key] = true
				total += st.Blocks * 512
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}
